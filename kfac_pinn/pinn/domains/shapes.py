"""Shapes and their unions, intersections and differences: `A | B`, `A & B`, `A - B`.

A shape is known by its signed distance, negative inside. A combination is known by those of its
pieces: min(a, b) for the union, max(a, b) for the intersection, max(a, -b) for the difference.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Generator, Tensor

from kfac_pinn.pinn.domains.samplers import Fill, Sampler, sobol

__all__ = ["Combination", "Difference", "Domain", "Intersection", "Shape", "Union", "corner"]

TRIED = 2**16  # points a measure is estimated from: it is right to three or four digits


class Domain(Protocol):
    """A subset of R^dim with an interior and a boundary to draw from."""

    @property
    def dim(self) -> int: ...

    @property
    def interior(self) -> Sampler: ...

    @property
    def boundary(self) -> Sampler: ...


class Shape(ABC):
    """A bounded part of R^d.

    A subclass says `lower` and `upper` corners of a box around it, `fill`, `distance`, `normal`,
    `measure`, `boundary_measure`, `interior` and `surface`.

    Attributes:
        lower, upper: corners of a box around the shape.
        fill: `uniform` or `sobol`.
        measure: its length, area or volume.
        boundary_measure: of its boundary; in one dimension the number of its points.
        interior: draws points of the shape, evenly.
        surface: draws points of its boundary, evenly.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    fill: Fill
    measure: float
    boundary_measure: float
    interior: Sampler
    surface: Sampler

    @abstractmethod
    def distance(self, x: Tensor) -> Tensor:
        """The signed distance to the boundary, (N, d) -> (N,): negative inside.

        Of a combination a bound of it, with the right sign and the right zeros.
        """

    @abstractmethod
    def normal(self, x: Tensor) -> Tensor:
        """The outward unit normals at points of the boundary, (N, d) -> (N, d).

        Anywhere else that of the nearest part of the boundary.
        """

    @property
    def dim(self) -> int:
        """The dimension d."""
        return len(self.lower)

    @property
    def boundary(self) -> Sampler:
        """Points of the boundary, evenly."""
        return self.surface

    @property
    def pieces(self) -> tuple[Shape, ...]:
        """What it was combined of."""
        return (self,)

    def contains(self, x: Tensor) -> Tensor:
        """Whether points (N, d) belong to the shape, (N,)."""
        return self.distance(x) <= 0

    def __or__(self, other: Shape) -> Union:
        return Union(self, other) if isinstance(other, Shape) else NotImplemented

    def __and__(self, other: Shape) -> Intersection:
        return Intersection(self, other) if isinstance(other, Shape) else NotImplemented

    def __sub__(self, other: Shape) -> Difference:
        return Difference(self, other) if isinstance(other, Shape) else NotImplemented


@dataclass(frozen=True)
class Combination(Shape):
    """Two shapes as one.

    Points are drawn by rejection, with the fill of the first shape; measures are estimated.

    Raises:
        TypeError: for what is no shape.
        ValueError: for shapes of different dimensions.
    """

    first: Shape
    second: Shape

    def __post_init__(self) -> None:
        for shape in (self.first, self.second):
            if not isinstance(shape, Shape):
                raise TypeError(f"shapes are combined: Box(...) - Ball(...), found {shape!r}")
        if self.first.dim != self.second.dim:
            raise ValueError(
                f"shapes of {self.first.dim} and of {self.second.dim} dimensions do not combine"
            )

    @property
    def around(self) -> Shape:
        """A shape that contains it, of which points are drawn."""
        return self.first

    @property
    def fill(self) -> Fill:  # type: ignore[override]
        """That of the first shape."""
        return self.first.fill

    @property
    def lower(self) -> tuple[float, ...]:  # type: ignore[override]
        """The lower corner of a box around it."""
        return self.around.lower

    @property
    def upper(self) -> tuple[float, ...]:  # type: ignore[override]
        """The upper corner of a box around it."""
        return self.around.upper

    @property
    def pieces(self) -> tuple[Shape, ...]:
        """The shapes without pieces of their own."""
        return (*self.first.pieces, *self.second.pieces)

    @property
    def interior(self) -> Sampler:  # type: ignore[override]
        """Points of the combined shape, evenly."""
        return self.around.interior.where(self.contains)

    @property
    def surface(self) -> Sampler:  # type: ignore[override]
        """Points of the boundaries of the pieces, where that is the boundary of the whole."""
        every = self._surfaces

        def keep(unit: Tensor, x: Tensor) -> Tensor:
            return every.accepts(unit, x) & self._is_boundary(x, self._piece_of(unit))

        return Sampler(every.place, every.coordinates, every.fill, keep)

    @property
    def _surfaces(self) -> Sampler:
        """Points of all boundaries of the pieces; the first unit coordinate chooses the piece."""
        surfaces = [piece.surface for piece in self.pieces]

        def parts(unit: Tensor) -> list[Tensor]:
            return [unit[:, 1 : 1 + s.coordinates] for s in surfaces]

        def place(unit: Tensor) -> Tensor:
            found = [s.place(part) for s, part in zip(surfaces, parts(unit), strict=True)]
            return _chosen(found, self._piece_of(unit))

        def keep(unit: Tensor, x: Tensor) -> Tensor:
            found = [s.accepts(part, x) for s, part in zip(surfaces, parts(unit), strict=True)]
            return _chosen(found, self._piece_of(unit))

        return Sampler(place, 1 + max(s.coordinates for s in surfaces), self.fill, keep)

    def _piece_of(self, unit: Tensor) -> Tensor:
        """The piece that each point is drawn from: it is as likely as its boundary is large."""
        sizes = torch.tensor([piece.boundary_measure for piece in self.pieces], dtype=torch.float64)
        ends = sizes.cumsum(0)[:-1] / sizes.sum()
        return torch.bucketize(unit[:, 0].contiguous(), ends.to(unit), right=True)

    @cached_property
    def measure(self) -> float:  # type: ignore[override]
        """Its length, area or volume, to three or four digits."""
        return self.around.measure * _share(self.around.interior, self.interior)

    @cached_property
    def boundary_measure(self) -> float:  # type: ignore[override]
        """The size of its boundary, to three or four digits."""
        sizes = [piece.boundary_measure for piece in self.pieces]
        return math.fsum(sizes) * _share(self._surfaces, self.surface)

    def normal(self, x: Tensor) -> Tensor:
        nearest = torch.stack([piece.distance(x).abs() for piece in self.pieces]).argmin(0)
        normal, behind, _ = self._across(x, nearest)
        return torch.where(behind[:, None], normal, -normal)

    def _is_boundary(self, x: Tensor, which: Tensor) -> Tensor:
        """Whether x, on the boundary of a piece, is on that of the whole, and of no piece before.

        Where two pieces share a part of their boundaries, one of them draws it.
        """
        _, behind, ahead = self._across(x, which)
        gaps = torch.stack([piece.distance(x).abs() for piece in self.pieces])
        before = torch.arange(len(gaps), device=x.device)[:, None] < which
        return (behind != ahead) & ~((gaps < self._step(x)) & before).any(0)

    def _across(self, x: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normals of pieces at x, and whether the points next to x behind and ahead belong."""
        normal = _chosen([piece.normal(x) for piece in self.pieces], which)
        aside = self._step(x) * normal
        return normal, self.contains(x - aside), self.contains(x + aside)

    def _step(self, x: Tensor) -> float:
        """A length far above rounding and far below the size of the shape."""
        width = max(up - low for low, up in zip(self.lower, self.upper, strict=True))
        return float(width * torch.finfo(x.dtype).eps ** 0.5)


class Union(Combination):
    """A | B, the points of either."""

    @property
    def around(self) -> Shape:
        """The box around both."""
        return self._box

    @cached_property
    def _box(self) -> Shape:
        from kfac_pinn.pinn.domains.solids import Box  # a shape itself

        corners = zip(self.first.lower, self.second.lower, strict=True)
        ends = zip(self.first.upper, self.second.upper, strict=True)
        return Box(tuple(map(min, corners)), tuple(map(max, ends)), self.fill)

    def distance(self, x: Tensor) -> Tensor:
        return torch.minimum(self.first.distance(x), self.second.distance(x))


class Intersection(Combination):
    """A & B, the points of both."""

    @property
    def around(self) -> Shape:
        """The smaller of both."""
        return min(self.first, self.second, key=lambda shape: shape.measure)

    def distance(self, x: Tensor) -> Tensor:
        return torch.maximum(self.first.distance(x), self.second.distance(x))


class Difference(Combination):
    """A - B, the points of A that are not in B."""

    def distance(self, x: Tensor) -> Tensor:
        return torch.maximum(self.first.distance(x), -self.second.distance(x))


def _chosen(values: list[Tensor], which: Tensor) -> Tensor:
    """values[which_n][n]: one of several values a point, (n, ...)."""
    return torch.stack(values)[which, torch.arange(len(which), device=which.device)]


def _share(every: Sampler, some: Sampler) -> float:
    """The share of the points of one sampler that another one, of the same places, keeps."""
    even = Sampler(every.place, every.coordinates, sobol)
    tried = even.tried(TRIED, Generator().manual_seed(0), torch.float64, "cpu")
    return float(some.accepts(*tried).sum() / every.accepts(*tried).sum())


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
        if isinstance(numbers, (str, bytes)):
            raise TypeError
        found = tuple(float(each) for each in numbers)  # type: ignore[attr-defined]
        if any(isinstance(each, (str, bytes, bool)) for each in numbers):  # type: ignore[attr-defined]
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"{name} must hold one number a dimension, found {numbers!r}") from None
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must hold finite numbers, one a dimension, found {numbers!r}")
    return found
