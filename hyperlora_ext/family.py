"""A family of PDE problems: one residual, many tasks.

A task is a vector of p numbers (a viscosity, an initial condition on a grid); tasks are stacked as
(T, p), their points as (T, n, d), and residuals are evaluated at all T n points in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.condition import Condition, Function, Points, draw, residuals_of
from hyperlora_ext.near_tasks import Near
from hyperlora_ext.task_spaces import Task, TaskSpace, shown, single
from kfac_pinn.pinn.domains import Domain
from kfac_pinn.pinn.problem import Problem, is_domain, placed_like
from kfac_pinn.settings import (
    FUNCTION,
    GENERATOR,
    INTEGER,
    SIZES,
    TENSOR,
    TEXT,
    check,
    having,
    instance,
    many,
    named,
    optional,
    takes,
    whole,
)

__all__ = ["FAMILY", "Errors", "Family", "Splits", "values"]


def outputs(network: Function) -> Function:
    """The fields of a network whose outputs they are."""
    return network


def unknown(x: Tensor, task: Tensor) -> Tensor:
    """The solution of a family whose solution is not known.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "no solution of this family is known, so there are no errors and no data. How good a "
        "network is, its loss on new points tells: `solve`, or `held_out_loss`"
    )


@dataclass(frozen=True)
class Splits:
    """Task sets (T, p), reproducible by seed; `extrapolation` lies outside the trained range."""

    train: Tensor
    valid: Tensor
    test: Tensor
    extrapolation: Tensor


@dataclass(frozen=True)
class Errors:
    """Errors of T predicted fields on the family's grid.

    Attributes:
        mse: mean square over fields and grid points, as the paper's tables, shape (T,).
        relative: ||u - u*|| / ||u*||, shape (T,).
        front: mean square over the points of the family's `front` alone, (T,); none: empty.
    """

    mse: Tensor
    relative: Tensor
    front: Tensor = field(default_factory=lambda: torch.empty(0))

    def summary(self) -> dict[str, float]:
        """Mean, median and worst task."""
        front = {"front_mse": float(self.front.mean())} if len(self.front) else {}
        return {
            "mse": float(self.mse.mean()),
            "median_mse": float(self.mse.median()),
            "worst_mse": float(self.mse.max()),
            "relative_l2": float(self.relative.mean()),
            "worst_relative_l2": float(self.relative.max()),
            **front,
        }


CONDITION = instance(Condition, "a Condition, e.g. Condition(box.interior, residual, 100)")


def predicts(name: str, value: Any) -> None:
    """A function of the task that returns its network."""
    if isinstance(value, nn.Module):
        raise TypeError(
            f"{name} must be a function of the task that returns its network: `hyper.pinn` of a "
            f"HyperLoRA, `lambda task: network` of one network, found a {type(value).__name__}"
        )
    FUNCTION(name, value)


def network_of(predict: Callable[[Tensor], Function], task: Tensor) -> Function:
    """What was predicted for a task, a function of points."""
    found = predict(task)
    if not callable(found):
        raise TypeError(
            f"predict must return a network, a function of points, found a "
            f"{type(found).__name__} for the task {shown(task)}: return the network itself"
        )
    return found


@dataclass(frozen=True)
class Family:
    """Find, for every task, the u whose residuals vanish.

    Attributes:
        name: for reports.
        domain: of the points.
        space: of the tasks: how they are drawn, embedded, and what was trained on.
        conditions: by name; the loss of a task is sum_k 1/2 mean(r_k^2).
        solution: the exact or reference fields, (x (N, d), task (p,)) -> (N, c), if they are known:
            errors and training by data need them, training by physics does not.
        solver: the same for many tasks on the grid at once, tasks (T, p) -> (T, M, c), where that
            is cheaper than one after the other; None: it is not.
        known: a part of the fields that needs no network, likewise; None: zero. Networks represent
            the rest, of which the residuals must be written; `field` puts both together.
        observed: network -> what of it the fields are, a function of points (N, d) -> (N, c): its
            outputs by default, the derivative of a potential, say. Residuals are of the network.
        grid: where errors are measured, shape (M, d); not needed without a solution.
        counts: numbers of train, validation and test tasks of the paper.
        front: which points (x (N, d), task (p,)) lie where the solution is steep, bools (N,).

    Raises:
        TypeError, ValueError: for what is none of these; it is named.
    """

    name: str
    domain: Domain
    space: TaskSpace
    conditions: Mapping[str, Condition]
    solution: Callable[[Tensor, Tensor], Tensor] = unknown
    grid: Tensor = field(default_factory=lambda: torch.empty(0, 0), repr=False)
    counts: tuple[int, int, int] = (20, 20, 20)
    front: Callable[[Tensor, Tensor], Tensor] | None = None
    known: Callable[[Tensor, Tensor], Tensor] | None = None
    solver: Callable[[Tensor], Tensor] | None = None
    observed: Callable[[Function], Function] = outputs

    def __post_init__(self) -> None:
        check(self, name=TEXT, domain=is_domain, space=having("sample", "Interval(0.0, 1.0)"))
        check(self, conditions=named(CONDITION), solution=FUNCTION, grid=TENSOR)
        check(self, counts=many(whole(1), 3), front=optional(FUNCTION))
        check(self, known=optional(FUNCTION), solver=optional(FUNCTION), observed=FUNCTION)

    @takes(seed=INTEGER)
    def splits(self, seed: int = 0) -> Splits:
        """Four task sets, each from a stream of its own: none depends on another's size."""
        train, valid, test = self.counts
        draws = [(self.space.sample, train), (self.space.sample, valid), (self.space.sample, test)]
        draws.append((self.space.outside, test))
        # Four numbers a seed: no two seeds share a stream
        streams = [Generator().manual_seed(4 * seed + i) for i in range(4)]
        return Splits(*[draw(n, g) for (draw, n), g in zip(draws, streams, strict=True)])

    def near(self, task: Task, share: float) -> Family:
        """The family of the tasks task + share (t - task), t all its own: a part, to begin with.

        Where some tasks are hard, training goes from an easy one to a growing share of them:

            for share in (0.1, 0.3, 0.6, 1.0):
                train(network, parametric(family.near(1.0, share)), seconds=20)

        Args:
            task: (p,), one of its tasks, the easiest or the base's own.
            share: above 0, at most 1.

        Raises:
            TypeError, ValueError: for another share, or a task that is none of the family's.
        """
        return replace(self, space=Near(self.space, task, share))

    @takes(generator=optional(GENERATOR), sizes=SIZES)
    def sample(
        self,
        tasks: Tensor,
        generator: Generator | None = None,
        sizes: Mapping[str, int] | None = None,
    ) -> Points:
        """New points of every condition for the tasks (T, p): (T, n_k, d) by name.

        They have the tasks' dtype and device.

        Raises:
            ValueError: for tasks of the wrong size.
            KeyError: if `sizes` names a condition that the family does not have.
        """
        tasks = self.space.check(tasks)
        points = draw(self.conditions, tasks, generator, sizes)
        return {name: x.to(tasks) for name, x in points.items()}

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """All residuals of all tasks: r_k (T n_k,) by name, those of a system numbered.

        Args:
            u: maps stacked points (T n, d), task after task, to fields (T n, c).
            tasks: (T, p).
            points: of `sample`.

        Raises:
            ValueError: for residuals that are not one number a point and equation.
        """
        return residuals_of(self.conditions, u, tasks, points)

    def problem(self, task: Task) -> Problem:
        """The single task (p,) as a kfac_pinn problem, ready for `kfac_pinn.pinn.training`.

        Its solution is what outputs are compared with: where fields are observed it has none.

        Raises:
            ValueError: for a task of the wrong size, or several.
        """
        one = single(self.space, task)
        terms = {name: condition.at(one) for name, condition in self.conditions.items()}

        def solution(x: Tensor) -> Tensor:
            return self.rest(x, one.to(x))

        # A problem compares outputs, and what is observed of a network need not be one
        hidden = self.solution is unknown or self.observed is not outputs
        known = None if hidden else solution
        return Problem(f"{self.name}, task {shown(one)}", self.domain, terms, known)

    def rest(self, x: Tensor, task: Tensor) -> Tensor:
        """What is observed of a network of the task (p,) should be this at x (N, d): all but the
        known.
        """
        whole = self.solution(x, task)
        return whole if self.known is None else whole - self.known(x, task)

    def field(self, network: Function, task: Tensor) -> Callable[[Tensor], Tensor]:
        """u of the task (p,), x (N, d) -> (N, c): what is observed, and the known part."""
        observed = self.observed(network)
        if (known := self.known) is None:
            return observed
        return lambda x: observed(x) + known(x, task.to(x))

    def reference(self, task: Task) -> Tensor:
        """What is observed of a network should be this on the grid, (M, c); computed once a task.

        Raises:
            ValueError: if the family has no solution.
        """
        return self.references(single(self.space, task)[None])[0]

    def references(self, tasks: Tensor) -> Tensor:
        """What is observed of networks of the tasks (T, p) should be this on the grid, (T, M, c);
        computed once a task.

        Raises:
            ValueError: if the family has no solution.
        """
        if self.solution is not unknown and not len(self.grid):
            raise ValueError(
                f"{self.name} has a solution and no points to compare with it at: "
                "Family(..., grid=points (M, d))"
            )
        tasks = self.space.check(tasks).to(self.grid)
        keys = [tuple(task.tolist()) for task in tasks]
        new = {key: i for i, key in enumerate(keys) if key not in self._references}
        if new:
            solved = self._solved(tasks[list(new.values())])
            self._references.update(zip(new, solved, strict=True))
        return torch.stack([self._references[key] for key in keys])

    def _solved(self, tasks: Tensor) -> Tensor:
        """The references, all at once where the family has a solver."""
        if self.solver is None:
            return torch.stack([self.rest(self.grid, task) for task in tasks])
        whole = self.solver(tasks)
        if (known := self.known) is None:
            return whole
        return whole - torch.stack([known(self.grid, task) for task in tasks])

    def _size(self, task: Tensor) -> Tensor:
        """||u*|| of all of u on the grid."""
        rest = self.reference(task)
        return (rest if self.known is None else rest + self.known(self.grid, task)).norm()

    @cached_property
    def _references(self) -> dict[tuple[float, ...], Tensor]:
        return {}

    @torch.no_grad()
    @takes(predict=predicts)
    def errors(self, predict: Callable[[Tensor], Function], tasks: Tensor) -> Errors:
        """Errors on the grid of predict(task) -> u, for each of the tasks (T, p).

        Raises:
            ValueError: if the family has no solution, or u other fields than it.
        """
        tasks = self.space.check(tasks).to(self.grid)
        pairs = zip(tasks, self.references(tasks), strict=True)
        seen = ((self.observed(network_of(predict, task)), truth) for task, truth in pairs)
        differences = [values(u, self.grid, truth) - truth for u, truth in seen]
        # Relative to all of u: a known part that is nearly everything would make errors look large
        sizes = torch.stack([self._size(task) for task in tasks])
        steep = [self.front(self.grid, task) for task in tasks] if self.front else []
        inside = [d[where].square().mean() for d, where in zip(differences, steep, strict=False)]
        return Errors(
            torch.stack([d.square().mean() for d in differences]),
            torch.stack([d.norm() for d in differences]) / sizes,
            torch.stack(inside) if inside else torch.empty(0),
        )


FAMILY = instance(Family, "a Family, e.g. kovasznay()")


def values(u: Function, grid: Tensor, truth: Tensor) -> Tensor:
    """u on the grid, computed in its own dtype and device, returned in the truth's.

    Raises:
        ValueError: if u has other fields than the truth (M, c): (M, 1) would broadcast.
    """
    parameters = getattr(u, "parameters", None)
    like = next(parameters(), grid) if callable(parameters) else grid
    found: Tensor = u(grid.to(**placed_like(like))).to(truth)
    if found.shape != truth.shape:
        raise ValueError(
            f"the network returns shape {tuple(found.shape)} and the solution has "
            f"{tuple(truth.shape)}: give the network one output a field"
        )
    return found
