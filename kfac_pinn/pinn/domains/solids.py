"""Boxes and balls in any dimension."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.pinn.domains.samplers import Fill, Sampler, is_fill, uniform
from kfac_pinn.pinn.domains.shapes import Shape, corner
from kfac_pinn.settings import INTEGER, POSITIVE, takes, whole

__all__ = ["Ball", "Box"]


@dataclass(frozen=True)
class Box(Shape):
    """The box [lower_1, upper_1] x ... x [lower_d, upper_d].

    Box((0.0, -1.0), (1.0, 1.0))

    Args:
        lower, upper: the corners.
        fill: how points are drawn in the unit cube: `uniform`, `sobol` or `grid`.

    Raises:
        TypeError: if a corner is no sequence of numbers.
        ValueError: if the corners differ in length, are out of order or not finite.
    """

    lower: Sequence[float]  # type: ignore[assignment]
    upper: Sequence[float]  # type: ignore[assignment]
    fill: Fill = uniform

    def __post_init__(self) -> None:
        lower, upper = corner("a Box's lower", self.lower), corner("a Box's upper", self.upper)
        if len(lower) != len(upper) or not all(map(operator.lt, lower, upper)):
            raise ValueError(f"a Box needs lower < upper, not {self.lower} and {self.upper}")
        settings.check(self, fill=is_fill)
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    @classmethod
    @takes(dim=whole(1))
    def cube(cls, dim: int, lower: float = 0.0, upper: float = 1.0, fill: Fill = uniform) -> Box:
        """The cube [lower, upper]^dim."""
        return cls((lower,) * dim, (upper,) * dim, fill)

    @property
    def interior(self) -> Sampler:  # type: ignore[override]
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
            return self._on_face(unit, face)

        return Sampler(place, self.dim + 1, self.fill)

    @property
    def surface(self) -> Sampler:  # type: ignore[override]
        """Points of the boundary, evenly: a face is as likely as it is large."""

        def place(unit: Tensor) -> Tensor:
            sizes = unit.new_tensor([1 / width for width in self._widths for _ in range(2)])
            ends = sizes.cumsum(0)[:-1] / sizes.sum()
            return self._on_face(unit, torch.bucketize(unit[:, -1:].contiguous(), ends, right=True))

        return Sampler(place, self.dim + 1, self.fill)

    @takes(coordinate=INTEGER, end=INTEGER)
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

    @property
    def measure(self) -> float:  # type: ignore[override]
        """The product of the widths."""
        return math.prod(self._widths)

    @property
    def boundary_measure(self) -> float:  # type: ignore[override]
        """2 sum_i measure / width_i."""
        return 2 * math.fsum(self.measure / width for width in self._widths)

    def distance(self, x: Tensor) -> Tensor:
        beyond = torch.maximum(*self._gaps(x))
        outside = beyond.clamp(min=0).norm(dim=1)
        return outside + beyond.amax(1).clamp(max=0)

    def normal(self, x: Tensor) -> Tensor:
        gaps = torch.cat([gap.abs() for gap in self._gaps(x)], dim=1)
        signs = torch.eye(self.dim, dtype=x.dtype, device=x.device)
        return torch.cat([-signs, signs])[gaps.argmin(1)]

    @property
    def _widths(self) -> list[float]:
        return [up - low for low, up in zip(self.lower, self.upper, strict=True)]

    def _gaps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How far points are beyond the lower and the upper faces, (N, d) each."""
        return x.new_tensor(self.lower) - x, x - x.new_tensor(self.upper)

    def _on_face(self, unit: Tensor, face: Tensor) -> Tensor:
        """Points of the face 2 i + end, one coordinate moved to its end."""
        coordinate, end = face // 2, (face % 2).to(unit.dtype)
        return self._place(unit[:, :-1].scatter(1, coordinate, end))

    def _place(self, unit: Tensor) -> Tensor:
        lower, upper = unit.new_tensor(self.lower), unit.new_tensor(self.upper)
        return lower + (upper - lower) * unit


@dataclass(frozen=True)
class Ball(Shape):
    """The ball ||x - center|| <= radius.

    Args:
        center, radius: of the ball.
        fill: how points are drawn in the unit cube: `uniform` or `sobol`.

    Raises:
        TypeError, ValueError: for a center that is no sequence of finite numbers, or radius <= 0.
    """

    center: Sequence[float]
    radius: float = 1.0
    fill: Fill = uniform

    def __post_init__(self) -> None:
        corner("a Ball's center", self.center)
        settings.check(self, radius=POSITIVE, fill=is_fill)

    @property
    def dim(self) -> int:
        """The dimension d."""
        return len(self.center)

    @property
    def interior(self) -> Sampler:  # type: ignore[override]
        """Center + radius u^(1/d) direction: the volume within r grows as r^d."""

        def place(unit: Tensor) -> Tensor:
            return self._place(unit[:, 1:], unit[:, :1] ** (1 / self.dim))

        return Sampler(place, self.dim + 1, self.fill)

    @property
    def surface(self) -> Sampler:  # type: ignore[override]
        """Points of the sphere."""
        return Sampler(lambda unit: self._place(unit, 1.0), self.dim, self.fill)

    @property
    def lower(self) -> tuple[float, ...]:  # type: ignore[override]
        """The lower corner of the cube around it."""
        return tuple(c - self.radius for c in self.center)

    @property
    def upper(self) -> tuple[float, ...]:  # type: ignore[override]
        """The upper corner of the cube around it."""
        return tuple(c + self.radius for c in self.center)

    @property
    def measure(self) -> float:  # type: ignore[override]
        """pi^(d/2) r^d / Gamma(d/2 + 1)."""
        half = self.dim / 2
        return math.pi**half * self.radius**self.dim / math.gamma(half + 1)

    @property
    def boundary_measure(self) -> float:  # type: ignore[override]
        """d / r times the measure."""
        return self.dim * self.measure / self.radius

    def distance(self, x: Tensor) -> Tensor:
        return (x - x.new_tensor(self.center)).norm(dim=1) - self.radius

    def normal(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(x - x.new_tensor(self.center), dim=1)

    def _place(self, unit: Tensor, length: Tensor | float) -> Tensor:
        """Center + radius length direction; normal variables (quantiles) give the direction."""
        eps = torch.finfo(unit.dtype).eps
        normal = torch.erfinv((2 * unit - 1).clamp(eps - 1, 1 - eps))
        direction = normal / normal.norm(dim=1, keepdim=True)
        return unit.new_tensor(self.center) + self.radius * length * direction
