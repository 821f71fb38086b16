"""Where points are drawn: boxes, balls, and time x space.

A domain hands out samplers: `interior`, `boundary`, faces. A `Sampler` fills a unit cube (with
`uniform`, `sobol` or `grid` points) and places it in the domain; called as
sampler(n, generator, dtype, device) it returns points of shape (n, d), drawn in that dtype.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

__all__ = [
    "Ball",
    "Box",
    "Domain",
    "Fill",
    "Sampler",
    "TimeSpace",
    "grid",
    "sobol",
    "together",
    "uniform",
]

Device: TypeAlias = "torch.device | str | None"
Fill: TypeAlias = Callable[[int, int, "Generator | None", torch.dtype], Tensor]
Place: TypeAlias = Callable[[Tensor], Tensor]


def uniform(n: int, d: int, generator: Generator | None, dtype: torch.dtype) -> Tensor:
    """Independent uniform points of [0, 1)^d, shape (n, d), on the generator's device."""
    device = None if generator is None else generator.device
    return torch.rand(n, d, generator=generator, dtype=dtype, device=device)


def sobol(n: int, d: int, generator: Generator | None, dtype: torch.dtype) -> Tensor:
    """The first n points of a scrambled Sobol sequence: more even than chance, shape (n, d).

    The scrambling is drawn from the generator. Source: Owen (1998); 30 bits a coordinate.
    """
    device = None if generator is None else generator.device
    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=device).item()
    engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=int(seed))
    return engine.draw(n, dtype=dtype).to(device or "cpu")


def grid(n: int, d: int, generator: Generator | None, dtype: torch.dtype) -> Tensor:
    """The midpoints of k^d equal cells, shape (n, d); draws nothing.

    Raises:
        ValueError: unless n = k^d.
    """
    k = round(n ** (1 / d))
    if k**d != n:
        raise ValueError(f"a grid in {d} dimensions has k^{d} points, not {n}; ask for {k**d}")
    line = (torch.arange(k, dtype=dtype) + 0.5) / k
    points = torch.stack(torch.meshgrid(*[line] * d, indexing="ij"), dim=-1).reshape(n, d)
    return points if generator is None else points.to(generator.device)


@dataclass(frozen=True)
class Sampler:
    """Draws points: fills the unit cube of so many coordinates and places it.

    Attributes:
        place: unit points (n, coordinates) -> points (n, d).
        coordinates: unit coordinates a point is made of.
        fill: `uniform`, `sobol`, `grid` or a function like them.
    """

    place: Place
    coordinates: int
    fill: Fill = uniform

    def __call__(
        self,
        n: int,
        generator: Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """So many points, (n, d): drawn on the generator's device, then moved to `device`.

        Raises:
            TypeError, ValueError: unless n is an integer >= 0 and dtype is floating.
        """
        check_count(n)
        unit = self.fill(n, self.coordinates, generator, dtype or torch.get_default_dtype())
        return self.place(unit if device is None else unit.to(device))


def check_count(n: object) -> None:
    """Points are counted."""
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"the number of points must be an integer, found {n!r}")
    if n < 0:
        raise ValueError(f"the number of points must not be negative, found {n}")


def corner(name: str, numbers: object) -> tuple[float, ...]:
    """A point given as a sequence of finite numbers, one a dimension.

    Raises:
        TypeError, ValueError: for anything else; the line to write is in the message.
    """
    if isinstance(numbers, (int, float)) or (isinstance(numbers, Tensor) and not numbers.ndim):
        raise TypeError(
            f"{name} must hold one number a dimension, found {numbers!r}: in one dimension write "
            f"({numbers},), for a cube Box.cube(dim, lower, upper)"
        )
    try:
        found = tuple(float(each) for each in numbers)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise TypeError(f"{name} must hold one number a dimension, found {numbers!r}") from None
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must hold finite numbers, one a dimension, found {numbers!r}")
    return found


class Domain(Protocol):
    """A subset of R^dim with an interior and a boundary to draw from."""

    @property
    def dim(self) -> int: ...

    @property
    def interior(self) -> Sampler: ...

    @property
    def boundary(self) -> Sampler: ...


@dataclass(frozen=True)
class Box:
    """The box [lower_1, upper_1] x ... x [lower_d, upper_d].

    Box((0.0, -1.0), (1.0, 1.0))

    Raises:
        TypeError: if a corner is no sequence of numbers.
        ValueError: if the corners differ in length, are out of order or not finite.
    """

    lower: Sequence[float]
    upper: Sequence[float]
    fill: Fill = uniform

    def __post_init__(self) -> None:
        lower, upper = corner("a Box's lower", self.lower), corner("a Box's upper", self.upper)
        if len(lower) != len(upper) or not all(map(operator.lt, lower, upper)):
            raise ValueError(f"a Box needs lower < upper, not {self.lower} and {self.upper}")
        if not callable(self.fill):
            raise TypeError(f"fill is a function: uniform, sobol or grid, not {self.fill!r}")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    @classmethod
    def cube(cls, dim: int, lower: float = 0.0, upper: float = 1.0, fill: Fill = uniform) -> Box:
        """The cube [lower, upper]^dim."""
        return cls((lower,) * dim, (upper,) * dim, fill)

    @property
    def dim(self) -> int:
        """The dimension d."""
        return len(self.lower)

    @property
    def interior(self) -> Sampler:
        """Points of the box."""
        return Sampler(self._place, self.dim, self.fill)

    @property
    def boundary(self) -> Sampler:
        """Points of the box of which one random coordinate is set to its lower or upper bound.

        All 2 d faces are equally likely, whatever their size; the last unit coordinate chooses.
        Source: the experiments of Dangel, Mueller & Zeinhofer (2024).
        """

        def place(unit: Tensor) -> Tensor:
            face = (2 * self.dim * unit[:, -1:]).long().clamp(max=2 * self.dim - 1)
            coordinate, end = face // 2, (face % 2).to(unit.dtype)
            return self._place(unit[:, :-1].scatter(1, coordinate, end))

        return Sampler(place, self.dim + 1, self.fill)

    def face(self, coordinate: int, end: int) -> Sampler:
        """Points whose coordinate is at its lower (end = 0) or upper bound (end = 1).

        Raises:
            ValueError: for a coordinate that is none of 0 .. d-1, or another end.
        """
        if not (0 <= coordinate < self.dim and end in (0, 1)):
            raise ValueError(
                f"a face is a coordinate in 0 .. {self.dim - 1} and an end, 0 or 1, not "
                f"{coordinate} and {end}"
            )

        def place(unit: Tensor) -> Tensor:
            wall = unit.new_full((len(unit), 1), end)
            return self._place(torch.cat([unit[:, :coordinate], wall, unit[:, coordinate:]], 1))

        return Sampler(place, self.dim - 1, self.fill)

    def _place(self, unit: Tensor) -> Tensor:
        lower, upper = unit.new_tensor(self.lower), unit.new_tensor(self.upper)
        return lower + (upper - lower) * unit


@dataclass(frozen=True)
class Ball:
    """The ball ||x - center|| <= radius.

    Raises:
        TypeError, ValueError: for a center that is no sequence of finite numbers, or radius <= 0.
    """

    center: Sequence[float]
    radius: float = 1.0
    fill: Fill = uniform

    def __post_init__(self) -> None:
        corner("a Ball's center", self.center)
        if not self.radius > 0:
            raise ValueError(f"a Ball needs a radius > 0, not {self.radius}")

    @property
    def dim(self) -> int:
        """The dimension d."""
        return len(self.center)

    @property
    def interior(self) -> Sampler:
        """Center + radius u^(1/d) direction: the volume within r grows as r^d."""

        def place(unit: Tensor) -> Tensor:
            return self._place(unit[:, 1:], unit[:, :1] ** (1 / self.dim))

        return Sampler(place, self.dim + 1, self.fill)

    @property
    def boundary(self) -> Sampler:
        """Points of the sphere."""
        return Sampler(lambda unit: self._place(unit, 1.0), self.dim, self.fill)

    def _place(self, unit: Tensor, length: Tensor | float) -> Tensor:
        """Center + radius length direction; normal variables (quantiles) give the direction."""
        eps = torch.finfo(unit.dtype).eps
        normal = torch.erfinv((2 * unit - 1).clamp(eps - 1, 1 - eps))
        direction = normal / normal.norm(dim=1, keepdim=True)
        return unit.new_tensor(self.center) + self.radius * length * direction


@dataclass(frozen=True)
class TimeSpace:
    """[start, end] x space, with points (t, x) of shape (n, 1 + d).

    Raises:
        TypeError: if `space` is no domain.
        ValueError: unless start < end.
    """

    start: float
    end: float
    space: Domain

    def __post_init__(self) -> None:
        if not hasattr(self.space, "interior"):
            raise TypeError(
                f"TimeSpace needs a domain of space, found {self.space!r}: "
                "TimeSpace(0.0, 1.0, Box((0.0,), (1.0,)))"
            )
        if not self.start < self.end:
            raise ValueError(f"TimeSpace needs start < end, not {self.start} and {self.end}")

    @property
    def dim(self) -> int:
        """1 + the dimension of space."""
        return 1 + self.space.dim

    @property
    def interior(self) -> Sampler:
        """Points of space at any time."""
        return self._during(self.space.interior)

    @property
    def boundary(self) -> Sampler:
        """Points of the boundary of space at any time: neither initial nor final ones."""
        return self._during(self.space.boundary)

    @property
    def initial(self) -> Sampler:
        """Points of space at the start."""
        return self.at(self.start)

    def at(self, time: float) -> Sampler:
        """Points of space at one time."""
        inner = self.space.interior

        def place(unit: Tensor) -> Tensor:
            return torch.cat([unit.new_full((len(unit), 1), time), inner.place(unit)], dim=1)

        return Sampler(place, inner.coordinates, inner.fill)

    def _during(self, inner: Sampler) -> Sampler:
        """What `inner` draws, at times from one more unit coordinate."""

        def place(unit: Tensor) -> Tensor:
            t = self.start + (self.end - self.start) * unit[:, :1]
            return torch.cat([t, inner.place(unit[:, 1:])], dim=1)

        return Sampler(place, 1 + inner.coordinates, inner.fill)


def together(*samplers: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sampler whose n points are shared equally among others, the first get the remainder."""

    def sample(n: int, *args: Any) -> Tensor:
        share, extra = divmod(n, len(samplers))
        return torch.cat([s(share + (i < extra), *args) for i, s in enumerate(samplers)])

    return sample
