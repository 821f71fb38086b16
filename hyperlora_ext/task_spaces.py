"""Where tasks come from: intervals of one number or of several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from kfac_pinn.notices import outside
from kfac_pinn.settings import FINITE, FUNCTION, NOT_NEGATIVE, check, instance, many, takes, whole

__all__ = [
    "Interval",
    "Intervals",
    "Task",
    "TaskSpace",
    "shown",
    "single",
    "stacked",
    "warn_outside",
]

Task: TypeAlias = Tensor | float

OUTSIDE = (
    "{n} of {total} tasks lie outside the trained range ({range}): predictions there extrapolate; "
    "certify them by their held-out residuals, or adapt to the task"
)


class TaskSpace(Protocol):
    """The tasks of a family: vectors of `inputs` numbers, float64 on the CPU when drawn."""

    @property
    def inputs(self) -> int:
        """p, the numbers a task has."""

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Random tasks, (n, p)."""

    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Tasks beyond the trained range, to measure extrapolation, (n, p)."""

    def middle(self) -> Tensor:
        """The task that a base is trained on unless told otherwise, (p,)."""

    def embed(self, tasks: Tensor) -> Tensor:
        """What a hypernetwork is fed: (T, p) of order one."""

    def unembed(self, inputs: Any) -> Any:
        """The tasks, in their own frames, that are embedded so, (T, p); of a jet, too."""

    def offset(self, tasks: Tensor) -> Tensor:
        """How far the last q coordinates are moved in each task's own frame, (T, q)."""

    def contains(self, tasks: Tensor) -> Tensor:
        """Which tasks lie in the trained range, bools (T,)."""

    def check(self, tasks: Task) -> Tensor:
        """The tasks as (T, p), real numbers.

        Raises:
            ValueError: for tasks of the wrong size, or that are not finite.
        """

    def warn(self, tasks: Tensor) -> None:
        """Warn where tasks lie outside the trained range."""


def single(space: TaskSpace, task: Task) -> Tensor:
    """One task as (p,).

    Raises:
        ValueError: for a task of the wrong size, or several.
    """
    found = space.check(task)
    if len(found) != 1:
        raise ValueError(f"one task is expected, found a stack of {len(found)}: take one of them")
    return found[0]


def shown(task: Tensor) -> str:
    """A task in a few characters."""
    numbers = [f"{value:.4g}" for value in task[:3].tolist()]
    return ", ".join(numbers + ["..."] * (len(task) > 3))


def identity(value: Tensor) -> Tensor:
    """The value itself."""
    return value


def mapped(name: str, function: Callable[[Tensor], Tensor], *values: float) -> list[float]:
    """Numbers by one of an interval's functions, in float64 on the CPU.

    Raises:
        TypeError: for a function of something else than tensors.
    """
    try:
        found = function(torch.tensor(values, dtype=torch.float64, device="cpu"))
        return [float(value) for value in found.tolist()]
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        text = f"Interval: {name} must map tensors to tensors, as torch.log does: {error}"
        raise TypeError(text) from None


@dataclass(frozen=True)
class Interval:
    """One number in [lower, upper], p = 1.

    Attributes:
        lower, upper: the trained range.
        scale: monotone; tasks are embedded by scale(value), mapped to [-1, 1]. `torch.reciprocal`
            where the solution depends on 1 / value.
        inverse: of `scale`.
        margin: how far `outside` reaches, as a fraction of the range (in `scale`).

    Raises:
        TypeError, ValueError: for a setting of another kind, an empty range, one that `scale` does
            not take, or an `inverse` that is not that of `scale`.
    """

    lower: float
    upper: float
    scale: Callable[[Tensor], Tensor] = identity
    inverse: Callable[[Tensor], Tensor] = identity
    margin: float = 0.25

    inputs = 1

    def __post_init__(self) -> None:
        check(self, lower=FINITE, upper=FINITE, scale=FUNCTION, inverse=FUNCTION)
        check(self, margin=NOT_NEGATIVE)
        if not self.lower < self.upper:
            raise ValueError(f"tasks from {self.lower:g} to {self.upper:g}: give a longer range")
        low, high = self._ends
        if not (math.isfinite(low) and math.isfinite(high) and low != high):
            raise ValueError(
                f"Interval: scale maps {self.lower:g} and {self.upper:g} to {low:g} and {high:g}, "
                "which must be two finite numbers"
            )
        # One within, too: squares of 0 and 1 are 0 and 1
        known = (self.lower, self.lower + 0.3 * (self.upper - self.lower), self.upper)
        back = mapped("inverse", self.inverse, *mapped("scale", self.scale, *known))
        for value, found in zip(known, back, strict=True):
            if not abs(found - value) < 1e-6 * (self.upper - self.lower):
                raise ValueError(
                    f"Interval: inverse maps scale({value:g}) to {found:g}: give the inverse of "
                    "scale, as in Interval(1.0, 20.0, torch.log, torch.exp)"
                )

    @takes(n=whole(0))
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Uniform in the value itself."""
        unit = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return self.lower + (self.upper - self.lower) * unit

    @takes(n=whole(1))
    def nodes(self, n: int) -> Tensor:
        """The n Chebyshev nodes, in `scale`: they leave no gap at the ends of the range, (n, 1)."""
        angles = (2 * torch.arange(n, dtype=torch.float64) + 1) * (math.pi / (2 * n))
        return self.unembed(torch.cos(angles))[:, None]

    def middle(self) -> Tensor:
        """The middle of the range, in `scale`."""
        return self.nodes(1)[0]

    @takes(n=whole(0))
    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Up to `margin` of the range beyond either end, half of them each."""
        unit = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        side = torch.arange(n)[:, None] % 2 * 2 - 1
        return self.unembed(side * (1 + 2 * self.margin * (1 - unit)))

    def embed(self, tasks: Tensor) -> Tensor:
        """(scale(value) - middle) / half the range, in [-1, 1] within the trained range."""
        low, high = self._ends
        return (2 * self.scale(tasks) - (high + low)) / (high - low)

    def unembed(self, inputs: Any) -> Any:
        """The value that is embedded so."""
        low, high = self._ends
        return self.inverse((low + high) / 2 + (high - low) / 2 * inputs)

    def offset(self, tasks: Tensor) -> Tensor:
        """None: q = 0."""
        return tasks[:, :0]

    def contains(self, tasks: Tensor) -> Tensor:
        """Up to rounding."""
        # A float32 task at an end of the range is not outside of it
        slack = 1e-6 * (self.upper - self.lower)
        return ((tasks >= self.lower - slack) & (tasks <= self.upper + slack)).all(-1)

    def check(self, tasks: Task) -> Tensor:
        """A task (the number itself will do) or a stack of them."""
        return stacked(tasks, 1)

    def warn(self, tasks: Tensor) -> None:
        """Say so where tasks lie outside the trained range."""
        warn_outside(self.contains(tasks), f"{self.lower:g} to {self.upper:g}")

    @property
    def _ends(self) -> tuple[float, float]:
        low, high = mapped("scale", self.scale, self.lower, self.upper)
        return low, high


@dataclass(frozen=True)
class Intervals:
    """Several numbers, each in an interval of its own: a task is (d,), tasks are (n, d).

    Attributes:
        parts: the intervals, one a number.

    Raises:
        TypeError, ValueError: for something else than intervals, or none.
    """

    parts: tuple[Interval, ...]

    def __post_init__(self) -> None:
        check(self, parts=many(instance(Interval, "e.g. Interval(0.0, 1.0)")))

    @property
    def inputs(self) -> int:
        """p."""
        return len(self.parts)

    @takes(n=whole(0))
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Uniform in the box."""
        return torch.cat([part.sample(n, generator) for part in self.parts], dim=1)

    def middle(self) -> Tensor:
        """Each number in the middle of its interval."""
        return torch.cat([part.middle() for part in self.parts])

    @takes(n=whole(0))
    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Each number in turn is the one beyond its interval."""
        inside = self.sample(n, generator)
        beyond = torch.cat([part.outside(n, generator) for part in self.parts], dim=1)
        turn = torch.arange(n)[:, None] // 2 % self.inputs == torch.arange(self.inputs)
        return torch.where(turn, beyond, inside)

    def embed(self, tasks: Tensor) -> Tensor:
        """Each number as its interval embeds it."""
        return torch.cat([part.embed(t) for part, t in self._columns(tasks)], dim=1)

    def unembed(self, inputs: Any) -> Any:
        """Each number as its interval takes it back."""
        columns = enumerate(self.parts)
        return torch.cat([part.unembed(inputs[:, i : i + 1]) for i, part in columns], dim=1)

    def offset(self, tasks: Tensor) -> Tensor:
        """None: q = 0."""
        return tasks[:, :0]

    def contains(self, tasks: Tensor) -> Tensor:
        """Tasks all of whose numbers are."""
        return torch.stack([part.contains(t) for part, t in self._columns(tasks)]).all(0)

    def check(self, tasks: Task) -> Tensor:
        """A task or a stack of them."""
        return stacked(tasks, self.inputs)

    def warn(self, tasks: Tensor) -> None:
        """Say so where tasks lie outside the trained range."""
        ranges = ", ".join(f"{part.lower:g} to {part.upper:g}" for part in self.parts)
        warn_outside(self.contains(tasks), ranges)

    def _columns(self, tasks: Tensor) -> Iterator[tuple[Interval, Tensor]]:
        return zip(self.parts, tasks.split(1, dim=1), strict=True)


def stacked(tasks: Task, inputs: int) -> Tensor:
    """Tasks as (T, inputs)."""
    if not isinstance(tasks, Tensor) or not tasks.is_floating_point():
        tasks = numbers_of(tasks, inputs)
    if tasks.ndim > 2 or (tasks.shape[-1] if tasks.ndim else 1) != inputs:
        raise ValueError(
            f"a task of this family has {inputs} number(s); found shape {tuple(tasks.shape)}. Pass "
            f"one task ({inputs},) or a stack (T, {inputs})"
        )
    tasks = tasks.reshape(-1, inputs)
    # Tensors on the meta device have no numbers to look at
    if not tasks.is_meta and not tasks.isfinite().all():
        first = int((~tasks.isfinite()).any(1).nonzero()[0])
        raise ValueError(
            f"task {first} of {len(tasks)} is not finite: {tasks[first].tolist()[:4]}. A task is "
            f"{inputs} finite number(s)"
        )
    return tasks


def numbers_of(task: Any, inputs: int) -> Tensor:
    """A task that is given as a number, or several."""
    error = TypeError(f"a task of this family is {inputs} number(s), found {task!r}")
    if isinstance(task, bool):
        raise error
    try:
        return torch.as_tensor(task, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise error from None


def warn_outside(inside: Tensor, trained: str) -> None:
    """A warning at the line that asks a hypernetwork for the prediction."""
    if n := int((~inside).sum()):
        warnings.warn(
            OUTSIDE.format(n=n, total=len(inside), range=trained),
            stacklevel=outside("hyperlora_ext."),
        )
