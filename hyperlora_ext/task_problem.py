"""What a hypernetwork is trained on: the physics of a family, known fields, or known weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from hyperlora_ext.family import Family, Points
from hyperlora_ext.task_residuals import TaskResiduals
from kfac_pinn.pinn.problem import Batch, Problem

__all__ = ["Data", "Objective", "Sizes", "TaskBatch", "TaskProblem", "Weights", "task_problem"]

Function = Callable[[Any], Any]
Sizes = Mapping[str, int]


class Objective(Protocol):
    """What u of many tasks is asked to satisfy: a `Family` (its physics), or `Data`."""

    def sample(
        self, tasks: Tensor, generator: Generator | None = None, sizes: Sizes | None = None
    ) -> Points:
        """Points (T, n_k, d) by name."""

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """Residuals (T n_k,) by name."""


@dataclass(frozen=True)
class Data:
    """Supervised: u equals known fields at random points of the family's grid.

    Attributes:
        family: whose grid.
        fields: tasks (T, p) -> values (T, M, c) on the grid; `family.references` for the truth, or
            the fields that trained PINNs predict.
        size: points a task.
    """

    family: Family
    fields: Callable[[Tensor], Tensor]
    size: int = 200

    @torch.no_grad()
    def sample(
        self, tasks: Tensor, generator: Generator | None = None, sizes: Sizes | None = None
    ) -> Points:
        """Points x (T, n, d) and the fields there, (T, n, c)."""
        n, grid = (sizes or {}).get("data", self.size), self.family.grid
        chosen = torch.randint(len(grid), (len(tasks), n), generator=generator)
        values = self.fields(tasks)[torch.arange(len(tasks))[:, None], chosen]
        return {"x": grid[chosen].to(tasks), "values": values.to(tasks)}

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """u - u*, field by field."""
        difference = u(points["x"].flatten(0, 1)) - points["values"].flatten(0, 1)
        return {f"field {i}": r for i, r in enumerate(difference.unbind(1))}


@dataclass(frozen=True)
class Weights:
    """Regression on the numbers of trained networks, whatever fields they make.

    Its residuals do not pass through the networks: for torch's optimizers only.

    Attributes:
        numbers: theta_t of the tasks that are drawn, in their order, (T, size).
    """

    numbers: Tensor

    def sample(
        self, tasks: Tensor, generator: Generator | None = None, sizes: Sizes | None = None
    ) -> Points:
        """No points: the numbers themselves."""
        return {"theta": self.numbers.to(tasks)}

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """All entries of H(task) - theta."""
        return {"theta": (u.theta - points["theta"]).reshape(-1)}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TaskBatch(Batch):
    """Tasks and their points, drawn once.

    Attributes:
        points: the tasks (T, p) themselves under the name "tasks", so that checkpoints hold them,
            and their points.
        objective: what is asked of u there.
    """

    objective: Objective

    @property
    def tasks(self) -> Tensor:
        """(T, p)."""
        return self.points["tasks"]

    def residuals(self, u: Any) -> TaskResiduals:  # type: ignore[override]
        """The closure of a hypernetwork: call it, or let an optimizer linearise it."""
        points = {name: x for name, x in self.points.items() if name != "tasks"}
        return TaskResiduals(
            u, self.tasks, lambda fields: self.objective.residuals(fields, self.tasks, points)
        )


@dataclass(frozen=True, kw_only=True)
class TaskProblem(Problem):
    """A family, or part of it, as a problem that `fit` trains a hypernetwork on.

    Attributes:
        tasks: drawn anew with each batch, called as tasks(generator) -> (T, p): fresh tasks by
            `lambda g: family.space.sample(20, g)`, a fixed set by `lambda g: nodes`.
        objective: the family itself (physics), or `Data`.
        sizes: points a task and condition.
    """

    tasks: Callable[[Generator | None], Tensor]
    objective: Objective
    sizes: Sizes | None = None

    def sample(
        self,
        generator: Generator | None = None,
        sizes: Sizes | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> TaskBatch:
        """Tasks, and new points for them."""
        tasks = self.tasks(generator).to(dtype=dtype, device=device)
        points = self.objective.sample(tasks, generator, sizes or self.sizes)
        return TaskBatch(self.terms, {"tasks": tasks, **points}, self.objective)

    def held_out(
        self,
        generator: Generator | None = None,
        n: int | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Tensor:
        """Points of the domain; there is no one solution to compare with."""
        return self.domain.interior(n or 1, generator, dtype, device)


def task_problem(
    family: Family,
    tasks: Callable[[Generator | None], Tensor],
    objective: Objective | None = None,
    sizes: Sizes | None = None,
) -> TaskProblem:
    """The problem of all tasks of a family: its physics, unless another objective is given."""
    domain = family.domain
    return TaskProblem(
        family.name, domain, {}, tasks=tasks, objective=objective or family, sizes=sizes
    )
