"""Polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.pinn.domains.samplers import Fill, Sampler, is_fill, uniform
from kfac_pinn.pinn.domains.shapes import Shape, corner
from kfac_pinn.pinn.domains.solids import Box
from kfac_pinn.settings import accept, many

__all__ = ["Polygon"]


@dataclass(frozen=True)
class Polygon(Shape):
    """The polygon with these corners, in either direction round.

    Polygon([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)])

    Args:
        corners: pairs (x, y), in order.
        fill: how points are drawn in the unit square: `uniform` or `sobol`.

    Raises:
        TypeError: if a corner is no pair of numbers.
        ValueError: for fewer than three corners, or sides that cross or touch.
    """

    corners: Sequence[Sequence[float]]
    fill: Fill = uniform

    def __post_init__(self) -> None:
        settings.check(self, corners=many(accept, 0), fill=is_fill)
        corners = tuple(corner("a Polygon's corner", each) for each in self.corners)
        if len(corners) < 3 or any(len(each) != 2 for each in corners):
            raise ValueError(
                f"a Polygon needs three corners (x, y) or more: corners are {self.corners}"
            )
        sides: list[Side] = list(zip(corners, (*corners[1:], corners[0]), strict=True))
        if any(_touch(*pair) for pair in _apart(sides)) or any(
            map(_folds, sides, sides[1:] + sides)
        ):
            raise ValueError(f"the sides of a Polygon must not cross or touch: {self.corners}")
        object.__setattr__(self, "corners", corners if _area(corners) > 0 else corners[::-1])

    @property
    def lower(self) -> tuple[float, ...]:  # type: ignore[override]
        """The lower corner of the box around it."""
        return tuple(map(min, zip(*self.corners, strict=True)))

    @property
    def upper(self) -> tuple[float, ...]:  # type: ignore[override]
        """The upper corner of the box around it."""
        return tuple(map(max, zip(*self.corners, strict=True)))

    @property
    def measure(self) -> float:  # type: ignore[override]
        """Its area, 1/2 sum_i (x_i y_(i+1) - x_(i+1) y_i)."""
        return _area(self.corners)

    @property
    def boundary_measure(self) -> float:  # type: ignore[override]
        """Its perimeter."""
        return math.fsum(map(math.dist, self.corners, [*self.corners[1:], self.corners[0]]))

    @property
    def interior(self) -> Sampler:  # type: ignore[override]
        """Points of the polygon, evenly."""
        return Box(self.lower, self.upper, self.fill).interior.where(self.contains)

    @property
    def surface(self) -> Sampler:  # type: ignore[override]
        """Points of the sides, by the length of the way round."""

        def place(unit: Tensor) -> Tensor:
            start, along = self._sides(unit)
            lengths = along.norm(dim=1)
            ends = lengths.cumsum(0)
            way = (unit[:, 0] * ends[-1]).contiguous()
            side = torch.bucketize(way, ends[:-1], right=True)
            part = (way - ends[side] + lengths[side]) / lengths[side]
            return start[side] + part[:, None] * along[side]

        return Sampler(place, 1, self.fill)

    def distance(self, x: Tensor) -> Tensor:
        size = self._to_sides(x).amin(1)
        return torch.where(self._inside(x), -size, size)

    def normal(self, x: Tensor) -> Tensor:
        _, along = self._sides(x)
        unit = torch.nn.functional.normalize(along, dim=1)
        outward = torch.stack([unit[:, 1], -unit[:, 0]], dim=1)  # the corners run to the left
        return outward[self._to_sides(x).argmin(1)]

    def _sides(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Where each side starts, and the way to its end, (sides, 2)."""
        start = like.new_tensor(self.corners)
        return start, start.roll(-1, 0) - start

    def _to_sides(self, x: Tensor) -> Tensor:
        """The distances (N, sides) of points to the segments."""
        start, along = self._sides(x)
        way = x[:, None] - start
        part = ((way * along).sum(-1) / along.square().sum(-1)).clamp(0, 1)
        return (way - part[..., None] * along).norm(dim=-1)

    def _inside(self, x: Tensor) -> Tensor:
        """Whether a ray to the right meets the sides an odd number of times, (N,)."""
        start, along = self._sides(x)
        way = x[:, None] - start
        passes = (way[..., 1] < 0) != ((way - along)[..., 1] < 0)
        level = torch.where(passes, along[:, 1], 1)
        right = start[:, 0] + way[..., 1] / level * along[:, 0] > x[:, :1]
        return (passes & right).sum(1) % 2 == 1


Corner: TypeAlias = "Sequence[float]"
Side: TypeAlias = "tuple[Corner, Corner]"


def _area(corners: Sequence[Corner]) -> float:
    """Positive where the corners run to the left."""
    pairs = zip(corners, (*corners[1:], corners[0]), strict=True)
    return math.fsum(a[0] * b[1] - b[0] * a[1] for a, b in pairs) / 2


def _apart(sides: list[Side]) -> list[tuple[Side, ...]]:
    """The pairs of sides that have no corner in common."""
    n = len(sides)
    pairs = combinations(range(n), 2)
    return [(sides[i], sides[j]) for i, j in pairs if j - i not in (1, n - 1)]


def _touch(one: Side, other: Side) -> bool:
    """Whether two segments have a point in common."""
    (a, b), (c, d) = one, other
    return _turns(a, b, c, d) and _turns(c, d, a, b)


def _folds(one: Side, following: Side) -> bool:
    """Whether a side has no length, or the next one goes back on it."""
    (a, b), (_, c) = one, following
    back = sum((q - p) * (r - q) for p, q, r in zip(a, b, c, strict=True)) <= 0
    return a == b or (_area((a, b, c)) == 0 and back)


def _turns(a: Corner, b: Corner, c: Corner, d: Corner) -> bool:
    """Whether c and d are not both on one side of the line through a and b."""
    one, other = _area((a, b, c)), _area((a, b, d))
    return one * other <= 0 and not (one == other == 0 and not _overlap(a, b, c, d))


def _overlap(a: Corner, b: Corner, c: Corner, d: Corner) -> bool:
    """Whether the boxes around two segments meet."""
    pairs = zip(a, b, c, d, strict=True)
    return all(min(p, q) <= max(r, s) and min(r, s) <= max(p, q) for p, q, r, s in pairs)
