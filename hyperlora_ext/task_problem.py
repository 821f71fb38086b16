"""What a hypernetwork is trained on: the conditions of a family, or known fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypeAlias, cast

import torch
from torch import Generator, Tensor

from hyperlora_ext.condition import Condition, draw, residuals_of
from hyperlora_ext.family import CONDITION, FAMILY, Family
from hyperlora_ext.task_residuals import TaskResiduals
from kfac_pinn.pinn.problem import Batch, Problem
from kfac_pinn.settings import FUNCTION, GENERATOR, SIZES, named, optional, takes

__all__ = ["Sizes", "TaskBatch", "TaskProblem", "Tasks", "known_fields"]

Sizes: TypeAlias = Mapping[str, int]
Tasks: TypeAlias = "int | Tensor | Callable[[Generator | None], Tensor]"
POINTS = 1000  # of all tasks and conditions: rows that a kernel of a step takes a moment for


@dataclass(frozen=True)
class TaskBatch(Batch):
    """Tasks and their points, drawn once.

    Attributes:
        points: the tasks (T, p) themselves under the name "tasks", so that checkpoints hold them,
            and their points (T, n, d).
    """

    @property
    def tasks(self) -> Tensor:
        """(T, p)."""
        return self.points["tasks"]

    def residuals(self, u: Any) -> TaskResiduals:  # type: ignore[override]
        """The closure of a hypernetwork: call it, or let an optimizer linearise it.

        Raises:
            TypeError: for a network of one task, or of points and tasks.
        """
        if not callable(getattr(u, "fields", None)):
            raise TypeError(
                f"a TaskProblem trains a HyperLoRA, found a {type(u).__name__}: one task is "
                "family.problem(task), and all tasks as inputs of one network parametric(family)"
            )
        points = {name: self.points[name] for name in self.terms}
        terms = cast(Mapping[str, Condition], self.terms)
        return TaskResiduals(u, self.tasks, lambda f: residuals_of(terms, f, self.tasks, points))


@dataclass(frozen=True, init=False)
class TaskProblem(Problem):
    """Find a hypernetwork whose networks solve all tasks of a family: what `fit` trains it on.

    Args:
        family: whose tasks.
        tasks: so many new ones with every batch; or a fixed set (T, p); or a function of the
            generator that draws them.
        terms: what is asked of them; the family's conditions by default.
        sizes: points a task, by condition; about 1000 of all tasks by default, shared as the
            conditions' own sizes are.

    Raises:
        TypeError: for what is none of these; it is named.
        ValueError: for fewer tasks than one, or tasks that are not the family's.
    """

    family: Family = field(kw_only=True)
    tasks: Tasks = field(kw_only=True)
    sizes: Sizes | None = field(kw_only=True)

    def __init__(
        self,
        family: Family,
        tasks: Tasks = 20,
        terms: Mapping[str, Condition] | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        FAMILY("TaskProblem: family", family)
        named(CONDITION)("TaskProblem: terms", family.conditions if terms is None else terms)
        SIZES("TaskProblem: sizes", sizes)
        super().__init__(family.name, family.domain, family.conditions if terms is None else terms)
        # 20, but also an integer of NumPy; 20.0 is the task itself
        if isinstance(tasks, Integral):
            tasks = counted(int(tasks), isinstance(tasks, bool))
        elif callable(tasks):
            FUNCTION("TaskProblem: tasks", tasks)
        else:
            tasks = checked_tasks(family, tasks)
        for name, value in (("family", family), ("tasks", tasks), ("sizes", sizes)):
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @takes(generator=optional(GENERATOR), sizes=SIZES)
    def sample(
        self,
        generator: Generator | None = None,
        sizes: Sizes | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> TaskBatch:
        """Tasks, and new points for them."""
        tasks = self._draw_tasks(generator)
        terms = cast(Mapping[str, Condition], self.terms)
        sizes = sizes or self.sizes or shared(terms, POINTS // len(tasks))
        drawn = {"tasks": tasks, **draw(terms, tasks, generator, sizes)}
        return TaskBatch(terms, {n: x.to(dtype=dtype, device=device) for n, x in drawn.items()})

    def held_out(
        self,
        generator: Generator | None = None,
        n: int | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Tensor:
        """Points of the domain; there is no one solution to compare with."""
        return self.domain.interior(n or 1, generator, dtype, device)

    def value(self, model: Any, x: Tensor) -> Tensor:
        """What a hypernetwork says of one of the tasks at points (N, d)."""
        found: Tensor = model(self.family.space.middle(), x)
        return found

    def _draw_tasks(self, generator: Generator | None) -> Tensor:
        """(T, p)."""
        if isinstance(self.tasks, int):
            return self.family.space.sample(self.tasks, generator)
        return self.family.space.check(
            self.tasks(generator) if callable(self.tasks) else self.tasks
        )


def counted(count: int, is_flag: bool) -> int:
    """How many tasks a batch has: any whole number from one."""
    if count < 1 or is_flag:
        raise ValueError(
            f"TaskProblem: {bool(count) if is_flag else count} tasks in a batch: give at least 1"
        )
    return count


def checked_tasks(family: Family, tasks: Any) -> Tensor:
    """A fixed set of tasks, (T, p)."""
    try:
        return family.space.check(tasks)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"TaskProblem: tasks are none of this family, found {tasks!r}: {error}"
        ) from None


def shared(terms: Mapping[str, Condition], points: int) -> Sizes:
    """So many points shared among the conditions as their own sizes are, at least two each."""
    whole = sum(term.size for term in terms.values())
    return {name: max(2, points * term.size // whole) for name, term in terms.items()}


def known_fields(
    family: Family, fields: Callable[[Tensor], Tensor] | None = None, size: int = 200
) -> dict[str, Condition]:
    """The term of supervised training: u is known on the family's grid.

        TaskProblem(family, tasks, known_fields(family))

    Args:
        fields: tasks (T, p) -> values (T, M, c) on the grid; the family's solution by default, or
            what trained networks predict.
        size: points a task, at random places of the grid.
    """
    values_of, dim = fields or family.references, family.domain.dim

    @torch.no_grad()
    def points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
        """[x, values] (T, n, d + c)."""
        chosen = torch.randint(len(family.grid), (len(tasks), n), generator=generator)
        values = values_of(tasks)[torch.arange(len(tasks))[:, None], chosen]
        return torch.cat([family.grid[chosen], values], dim=-1)

    def residual(u: Callable[[Any], Any], pairs: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        """u - u*, field by field."""
        return (family.observed(u)(pairs[:, :dim]) - pairs[:, dim:]).unbind(1)

    return {"field": Condition(points, residual, size)}
