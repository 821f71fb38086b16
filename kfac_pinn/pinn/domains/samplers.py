"""Points drawn: a unit cube is filled, placed, and where need be some of the points are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from kfac_pinn import settings
from kfac_pinn.settings import FUNCTION, GENERATOR, many, optional, takes, whole

__all__ = [
    "Device",
    "Fill",
    "Sampler",
    "grid",
    "is_fill",
    "sobol",
    "together",
    "uniform",
]

Device: TypeAlias = "torch.device | str | None"
Fill: TypeAlias = Callable[[int, int, "Generator | None", torch.dtype], Tensor]
Place: TypeAlias = Callable[[Tensor], Tensor]
Keep: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def uniform(n: int, d: int, generator: Generator | None, dtype: torch.dtype) -> Tensor:
    """Independent uniform points of [0, 1)^d, (n, d), of the dtype, on the generator's device."""
    device = None if generator is None else generator.device
    return torch.rand(n, d, generator=generator, dtype=dtype, device=device)


def sobol(n: int, d: int, generator: Generator | None, dtype: torch.dtype) -> Tensor:
    """The first n points of a scrambled Sobol sequence: more even than chance, shape (n, d).

    The scrambling is drawn from the generator. Source: Owen (1998); 30 bits a coordinate, whatever
    the dtype.
    """
    device = None if generator is None else generator.device
    # SobolEngine knows no generator, only a seed of its own
    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=device).item()
    engine = torch.quasirandom.SobolEngine(d, scramble=True, seed=int(seed))
    return engine.draw(n, dtype=dtype).to(device or "cpu")


def grid(n: int, d: int, generator: Generator | None, dtype: torch.dtype) -> Tensor:
    """The midpoints of k^d equal cells, shape (n, d); draws nothing.

    Args:
        n, d: the number of points, and of dimensions.
        generator: says the device, and is not used otherwise.
        dtype: of the points.

    Raises:
        ValueError: unless n = k^d.
    """
    k = round(n ** (1 / d))
    if k**d != n:
        raise ValueError(f"a grid in {d} dimensions has k^{d} points, not {n}; ask for {k**d}")
    line = (torch.arange(k, dtype=dtype) + 0.5) / k
    points = torch.stack(torch.meshgrid(*[line] * d, indexing="ij"), dim=-1).reshape(n, d)
    return points if generator is None else points.to(generator.device)


def is_fill(name: str, value: Any) -> None:
    """A function that fills the unit cube, as a rule of `settings`."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(f"{name} is a function: uniform, sobol or grid, not {value!r}")


@dataclass(frozen=True)
class Sampler:
    """Draws points: fills the unit cube of so many coordinates, places it, and keeps some.

    Attributes:
        place: unit points (n, coordinates) -> points (n, d).
        coordinates: unit coordinates a point is made of.
        fill: `uniform`, `sobol`, `grid` or a function like them.
        keep: (unit points, points) -> (n,), which of them are kept; all, where it is None.
    """

    place: Place
    coordinates: int
    fill: Fill = uniform
    keep: Keep | None = None

    def __post_init__(self) -> None:
        settings.check(self, place=FUNCTION, coordinates=whole(0), fill=is_fill)
        settings.check(self, keep=optional(FUNCTION))

    @takes(n=whole(0), generator=optional(GENERATOR))
    def __call__(
        self,
        n: int,
        generator: Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """So many points, (n, d): drawn on the generator's device, then moved to `device`.

        Raises:
            TypeError, ValueError: unless n is an integer >= 0 and dtype is floating; if hardly
                any point is kept; for a `grid` of which points are left out.
        """
        if self.keep is None:
            return self.tried(n, generator, dtype, device)[1]
        if self.fill is grid:
            raise ValueError(
                "a grid cannot be drawn where points are left out (combined shapes, polygons, "
                "`where`): their number is not known before; fill with sobol"
            )
        tries = 2 * n + 64
        while True:  # anew from the start: the first n of one sequence that are kept
            unit, x = self.tried(tries, generator, dtype, device)
            kept = x[self.accepts(unit, x)]
            if len(kept) >= n:
                return kept[:n]
            if tries >= 2**20 and 2000 * len(kept) < tries:
                raise ValueError(
                    f"of {tries} points tried {len(kept)} lie in the shape: it is empty, or much "
                    "smaller than the box around it"
                )
            tries = min(16 * tries, max(2 * tries, 2 * tries * n // max(len(kept), 1)))

    @takes(condition=FUNCTION)
    def where(self, condition: Callable[[Tensor], Tensor]) -> Sampler:
        """Those of its points at which a condition, (n, d) -> (n,) of truth values, holds.

        plate.boundary.where(lambda x: x[:, 0] < 0)
        """

        def keep(unit: Tensor, x: Tensor) -> Tensor:
            holds = condition(x)
            if holds.shape != x.shape[:1] or holds.dtype != torch.bool:
                raise ValueError(
                    f"a condition gives one truth value a point, ({len(x)},), not "
                    f"{tuple(holds.shape)} of {holds.dtype}: lambda x: x[:, 0] < 0"
                )
            return holds & self.accepts(unit, x)

        return Sampler(self.place, self.coordinates, self.fill, keep)

    def tried(self, n: int, generator: Any, dtype: Any, device: Any) -> tuple[Tensor, Tensor]:
        """Unit points, and where they are placed, whether kept or not."""
        unit = self.fill(n, self.coordinates, generator, dtype or torch.get_default_dtype())
        unit = unit if device is None else unit.to(device)
        return unit, self.place(unit)

    def accepts(self, unit: Tensor, x: Tensor) -> Tensor:
        """Which of the points tried are kept, (n,)."""
        if self.keep is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        return self.keep(unit, x)


def together(*samplers: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sampler whose n points are shared equally among others, the first get the remainder.

    Args:
        samplers: called as sampler(n, generator, dtype, device) -> (n, d), all of one d.
    """
    many(FUNCTION)("together: samplers", samplers)

    def sample(n: int, *args: Any) -> Tensor:
        share, extra = divmod(n, len(samplers))
        return torch.cat([s(share + (i < extra), *args) for i, s in enumerate(samplers)])

    return sample
