"""Time and space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.pinn.domains.samplers import Sampler
from kfac_pinn.pinn.domains.shapes import Domain
from kfac_pinn.pinn.domains.solids import Box
from kfac_pinn.settings import FINITE

__all__ = ["TimeSpace"]


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
        if isinstance(self.space, type) or not hasattr(self.space, "interior"):
            raise TypeError(
                f"TimeSpace: space must be a domain of space, found {self.space!r}: "
                "TimeSpace(0.0, 1.0, Box((0.0,), (1.0,)))"
            )
        settings.check(self, start=FINITE, end=FINITE)
        if not self.start < self.end:
            raise ValueError(f"TimeSpace needs start < end, not {self.start} and {self.end}")

    @property
    def dim(self) -> int:
        """1 + the dimension of space."""
        return 1 + self.space.dim

    @property
    def box(self) -> Box:
        """The box [start, end] x (the box around space)."""
        lower, upper, fill = (getattr(self.space, name) for name in ("lower", "upper", "fill"))
        return Box((self.start, *lower), (self.end, *upper), fill)

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

        def keep(unit: Tensor, x: Tensor) -> Tensor:
            return inner.accepts(unit, x[:, 1:])

        kept = None if inner.keep is None else keep
        return Sampler(place, inner.coordinates, inner.fill, kept)

    def normal(self, x: Tensor) -> Tensor:
        """The outward normals of space at points (t, x) of its boundary, (N, 1 + d): 0 in time."""
        return torch.cat([torch.zeros_like(x[:, :1]), self.space.normal(x[:, 1:])], dim=1)  # type: ignore[attr-defined]

    def _during(self, inner: Sampler) -> Sampler:
        """What `inner` draws, at times from one more unit coordinate."""

        def place(unit: Tensor) -> Tensor:
            t = self.start + (self.end - self.start) * unit[:, :1]
            return torch.cat([t, inner.place(unit[:, 1:])], dim=1)

        def keep(unit: Tensor, x: Tensor) -> Tensor:
            return inner.accepts(unit[:, 1:], x[:, 1:])

        kept = None if inner.keep is None else keep
        return Sampler(place, 1 + inner.coordinates, inner.fill, kept)
