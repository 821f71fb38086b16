"""Where tasks come from: intervals of one or several numbers, a Gaussian random field on a grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from kfac_pinn.settings import (
    FINITE,
    FLAG,
    FUNCTION,
    NOT_NEGATIVE,
    POSITIVE,
    check,
    instance,
    many,
    whole,
)

__all__ = ["GaussianField", "Interval", "Intervals", "Task", "TaskSpace", "single"]

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


def identity(value: Tensor) -> Tensor:
    """The value itself."""
    return value


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
        TypeError, ValueError: for a setting of another kind, or an empty range.
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

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Uniform in the value itself."""
        unit = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return self.lower + (self.upper - self.lower) * unit

    def nodes(self, n: int) -> Tensor:
        """The n Chebyshev nodes, in `scale`: they leave no gap at the ends of the range, (n, 1)."""
        angles = (2 * torch.arange(n, dtype=torch.float64) + 1) * (math.pi / (2 * n))
        return self._value(torch.cos(angles))[:, None]

    def middle(self) -> Tensor:
        """The middle of the range, in `scale`."""
        return self.nodes(1)[0]

    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Up to `margin` of the range beyond either end, half of them each."""
        unit = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        side = torch.arange(n)[:, None] % 2 * 2 - 1
        return self._value(side * (1 + 2 * self.margin * (1 - unit)))

    def embed(self, tasks: Tensor) -> Tensor:
        """(scale(value) - middle) / half the range, in [-1, 1] within the trained range."""
        low, high = self._ends(tasks)
        return (2 * self.scale(tasks) - (high + low)) / (high - low)

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
        return _stacked(tasks, 1)

    def warn(self, tasks: Tensor) -> None:
        """Say so where tasks lie outside the trained range."""
        _warn(self.contains(tasks), f"{self.lower:g} to {self.upper:g}")

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale(like.new_tensor(self.lower)), self.scale(like.new_tensor(self.upper))

    def _value(self, coordinate: Tensor) -> Tensor:
        low, high = self._ends(coordinate)
        return self.inverse((low + high) / 2 + (high - low) / 2 * coordinate)


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

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Uniform in the box."""
        return torch.cat([part.sample(n, generator) for part in self.parts], dim=1)

    def middle(self) -> Tensor:
        """Each number in the middle of its interval."""
        return torch.cat([part.middle() for part in self.parts])

    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Each number in turn is the one beyond its interval."""
        inside = self.sample(n, generator)
        beyond = torch.cat([part.outside(n, generator) for part in self.parts], dim=1)
        turn = torch.arange(n)[:, None] // 2 % self.inputs == torch.arange(self.inputs)
        return torch.where(turn, beyond, inside)

    def embed(self, tasks: Tensor) -> Tensor:
        """Each number as its interval embeds it."""
        return torch.cat([part.embed(t) for part, t in self._columns(tasks)], dim=1)

    def offset(self, tasks: Tensor) -> Tensor:
        """None: q = 0."""
        return tasks[:, :0]

    def contains(self, tasks: Tensor) -> Tensor:
        """Tasks all of whose numbers are."""
        return torch.stack([part.contains(t) for part, t in self._columns(tasks)]).all(0)

    def check(self, tasks: Task) -> Tensor:
        """A task or a stack of them."""
        return _stacked(tasks, self.inputs)

    def warn(self, tasks: Tensor) -> None:
        """Say so where tasks lie outside the trained range."""
        ranges = ", ".join(f"{part.lower:g} to {part.upper:g}" for part in self.parts)
        _warn(self.contains(tasks), ranges)

    def _columns(self, tasks: Tensor) -> Iterator[tuple[Interval, Tensor]]:
        return zip(self.parts, tasks.split(1, dim=1), strict=True)


@dataclass(frozen=True)
class GaussianField:
    """Periodic random functions on [0, 1), given by their values at p equidistant points.

    u0 ~ N(0, sigma^2 (-Laplace + tau^2)^-gamma) without its mean:

        u0(x) = sum_{k=1}^{p/2-1} sqrt(2) s_k (xi_k cos 2 pi k x + eta_k sin 2 pi k x),
        s_k = sigma (4 pi^2 k^2 + tau^2)^(-gamma / 2),   xi_k, eta_k ~ N(0, 1).

    Source: Li et al. (2021), the generator GRF1.m of the Fourier neural operator's data.

    Attributes:
        inputs: p, even.
        sigma, tau, gamma: amplitude, inverse length, smoothness.
        centred: networks see each function moved so that its first mode is a positive cosine: all
            tasks then look alike, where the equation does not depend on x and the network is
            periodic.

    Raises:
        TypeError, ValueError: for a setting of another kind, or an odd number of inputs.
    """

    inputs: int = 128
    sigma: float = 25.0  # with tau and gamma, of the source's data
    tau: float = 5.0
    gamma: float = 2.0
    centred: bool = False

    def __post_init__(self) -> None:
        check(self, inputs=whole(4), sigma=POSITIVE, tau=NOT_NEGATIVE, gamma=POSITIVE)
        check(self, centred=FLAG)
        if self.inputs % 2:
            raise ValueError(f"GaussianField: inputs must be even, found {self.inputs}")

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """n functions, (n, p)."""
        spectrum = self.spectrum
        normal = torch.randn(2, n, len(spectrum), generator=generator, dtype=torch.float64)
        # irfft of c_k gives 2 Re(c_k e^{i ...}) / p: hence p / 2 here.
        modes = torch.complex(normal[0], -normal[1]) * (2**0.5 * self.inputs / 2) * spectrum
        # Neither a mean nor the highest mode, whose sine a grid of p points does not see
        zero = modes.new_zeros(n, 1)
        return torch.fft.irfft(torch.cat([zero, modes, zero], dim=1), n=self.inputs)

    def middle(self) -> Tensor:
        """A draw of the usual size: of a hundred, that whose norm is their median."""
        draws = self.sample(100, Generator().manual_seed(0))
        typical = draws[draws.norm(dim=1).argsort()[50]][None]
        # In its own frame, in which networks see all tasks
        return self.moved(typical, self.offset(typical))[0]

    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Functions of twice the amplitude: fronts twice as steep."""
        return 2 * self.sample(n, generator)

    def embed(self, tasks: Tensor) -> Tensor:
        """The values (in the task's own frame), in units of their standard deviation."""
        return self.moved(tasks, self.offset(tasks)) / self.deviation

    def offset(self, tasks: Tensor) -> Tensor:
        """s such that the first mode of u0(x + s) is a positive cosine, (T, 1); else (T, 0)."""
        if not self.centred:
            return tasks[:, :0]
        first = torch.fft.rfft(tasks)[:, 1:2]
        return -torch.angle(first) / (2 * math.pi)

    def moved(self, tasks: Tensor, shift: Tensor) -> Tensor:
        """u0(x + s) of u0 (T, p) and s (T, 1), band-limited; u0 itself for s of (T, 0)."""
        if not shift.shape[1]:
            return tasks
        k = torch.arange(self.inputs // 2 + 1, dtype=tasks.dtype, device=tasks.device)
        waves = torch.exp(2j * math.pi * k * shift)
        return torch.fft.irfft(torch.fft.rfft(tasks) * waves, n=self.inputs)

    def contains(self, tasks: Tensor) -> Tensor:
        """Functions without a mean, as large and as rough as those drawn, (T,) bools.

        The root mean square is at most three times that of the distribution, and the mean over k of
        |c_k|^2 / s_k^2, which is 1 +- 0.13 for draws, at most 2.
        """
        modes = torch.fft.rfft(tasks)[:, : self.inputs // 2].abs() / self.inputs
        rough = (modes[:, 1:] / self.spectrum.to(modes)).square().mean(-1)
        size, mean = tasks.square().mean(-1).sqrt() / self.deviation, modes[:, 0] / self.deviation
        # Three deviations; a mean that rounding and interpolation leave; eight deviations of 0.13
        return (size <= 3) & (mean <= 0.01) & (rough <= 2)

    def check(self, tasks: Task) -> Tensor:
        """A function or a stack of them."""
        return _stacked(tasks, self.inputs)

    def warn(self, tasks: Tensor) -> None:
        """Say so where functions are larger or rougher than those drawn, or have a mean."""
        _warn(self.contains(tasks), "functions without a mean, as large and as rough as draws")

    @property
    def spectrum(self) -> Tensor:
        """s_k for k = 1 ... p/2 - 1."""
        k = torch.arange(1, self.inputs // 2, dtype=torch.float64)
        return self.sigma * (4 * math.pi**2 * k**2 + self.tau**2) ** (-self.gamma / 2)

    @property
    def deviation(self) -> float:
        """The pointwise standard deviation, sqrt(2 sum s_k^2)."""
        return float((2 * self.spectrum.square().sum()).sqrt())


def _stacked(tasks: Task, inputs: int) -> Tensor:
    """Tasks as (T, inputs)."""
    if not isinstance(tasks, Tensor) or not tasks.is_floating_point():
        tasks = torch.as_tensor(tasks, dtype=torch.float64)
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


def _warn(inside: Tensor, trained: str) -> None:
    """A warning at the line that asks a hypernetwork for the prediction."""
    if n := int((~inside).sum()):
        warnings.warn(OUTSIDE.format(n=n, total=len(inside), range=trained), stacklevel=4)
