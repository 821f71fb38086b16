"""One condition on u, for every task of a family: where it holds, and its residual.

Tasks are stacked as (T, p), their points as (T, n, d). Both are drawn in float64 on the CPU, and
placed once, where they are handed on: a seed means the same points for every dtype and device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from kfac_pinn.pinn.domains import Sampler, grid
from kfac_pinn.pinn.problem import Term, named_equations

__all__ = ["Condition", "Function", "Points", "draw", "residuals_of"]

Function: TypeAlias = Callable[[Any], Any]
Points: TypeAlias = "dict[str, Tensor]"


@dataclass(frozen=True)
class Condition(Term):
    """A term that is told its task.

    Attributes:
        points: where they do not depend on the task, any sampler that a `Term` takes
            (`box.interior`, `together(...)`, a function of n, generator, dtype, device); else a
            function, called as points(n, tasks (T, p), generator) -> (T, n, d).
        residual: (u, x (N, d), task (N, p)) -> (N,) or (N, 1), or a tuple of them for a system;
            u maps points to fields (N, c). Weights are factors sqrt(w) written here.
        size: points a task draws unless told otherwise.
    """

    points: Callable[..., Tensor]
    residual: Callable[..., Any]

    def draw(self, n: int, tasks: Tensor, generator: Generator | None = None) -> Tensor:
        """New points of the tasks (T, p), (T, n, d), in float64 on the CPU.

        Raises:
            ValueError: if the sampler returns another shape.
        """
        # Random numbers of a device differ from another's: a seed is to mean the same points
        tasks = tasks.to("cpu", torch.float64)
        # One sequence shared among the tasks is more even than one each; a grid is all or nothing
        if isinstance(self.points, Sampler) and self.points.fill is not grid:
            return self.points(len(tasks) * n, generator, tasks.dtype).unflatten(0, (-1, n))
        if ignores_tasks(self.points):
            each = [self.points(n, generator, tasks.dtype, None) for _ in tasks]
            return torch.stack([x.to("cpu", torch.float64) for x in each])
        x = self.points(n, tasks, generator)
        if x.ndim != 3 or len(x) != len(tasks):
            raise ValueError(
                f"the sampler of a condition returned shape {tuple(x.shape)} for {len(tasks)} "
                "tasks: return (T, n, d), to each task its own points"
            )
        return x

    def at(self, task: Tensor) -> Term:
        """The condition of one task (p,), as a `Problem` has it."""

        def points(
            n: int, generator: Generator | None = None, dtype: Any = None, device: Any = None
        ) -> Tensor:
            dtype = dtype or torch.get_default_dtype()
            return self.draw(n, task[None], generator)[0].to(dtype=dtype, device=device)

        def residual(u: Function, x: Tensor) -> Any:
            return self.residual(u, x, task.to(x).expand(len(x), -1))

        return Term(points, residual, self.size)


def ignores_tasks(points: Callable[..., Any]) -> bool:
    """Whether it is a sampler of points alone, (n, generator, dtype, device)."""
    try:
        signature = inspect.signature(points)
    except (TypeError, ValueError):  # some builtins have none
        return False

    def takes(count: int) -> bool:
        try:
            signature.bind(*range(count))
        except TypeError:
            return False
        return True

    # Of n alone, or of four arguments and not of the three (n, tasks, generator)
    return takes(1) or (takes(4) and not takes(3))


def draw(
    conditions: Mapping[str, Condition],
    tasks: Tensor,
    generator: Generator | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Points:
    """New points (T, n_k, d) of every condition, in float64 on the CPU.

    Raises:
        KeyError: if `sizes` names a condition that there is not.
    """
    sizes = sizes or {}
    if unknown := set(sizes) - set(conditions):
        raise KeyError(f"the conditions are {list(conditions)}, not {sorted(unknown)}")
    return {
        name: condition.draw(sizes.get(name, condition.size), tasks, generator)
        for name, condition in conditions.items()
    }


def residuals_of(
    conditions: Mapping[str, Condition], u: Function, tasks: Tensor, points: Points
) -> dict[str, Tensor]:
    """All residuals of all tasks: r_k (T n_k,) by name, those of a system numbered.

    Args:
        u: maps stacked points (T n, d), task after task, to fields (T n, c).
        tasks: (T, p).
        points: of `draw`, some or all of them.

    Raises:
        ValueError: for residuals that are not one number a point and equation.
    """
    found: dict[str, Tensor] = {}
    for name, x in points.items():
        # One row a point: a residual is written for points, and need not know of tasks
        repeated = tasks.repeat_interleave(x.shape[1], dim=0)
        residual = conditions[name].residual(u, x.flatten(0, 1), repeated)
        found.update(vectors(named_equations(name, residual), len(repeated)))
    return found


def vectors(residuals: Mapping[str, Tensor], count: int) -> Iterator[tuple[str, Tensor]]:
    """Each residual as a vector of so many points."""
    for name, r in residuals.items():
        if r.shape not in ((count,), (count, 1)):
            raise ValueError(
                f"residual {name!r} has shape {tuple(r.shape)} at {count} points: return (N,) or "
                "(N, 1), and a tuple of them for a system"
            )
        yield name, r.reshape(-1)
