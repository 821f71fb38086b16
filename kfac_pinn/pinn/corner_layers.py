"""Diffusion whose start contradicts its boundary: the layers at the corner as inputs of a network.

A rod of temperature one that begins to lose heat at an end has a slope there at once, and none
beside it: near (0, wall) the solution is no smooth function of (t, x), and a network trained on
residuals puts the contradiction where there are no points. Such a solution is a combination of the
layers E_1 and E_2, which solve u_t = kappa u_ss on s > 0 and vanish at the start, with smooth
coefficients: all further ones are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from kfac_pinn import settings
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Points
from kfac_pinn.settings import FUNCTION, POSITIVE, at_least, instance, many

__all__ = ["CornerLayers", "early"]

Wall = tuple[int, int]

TIME_SPACE = instance(TimeSpace, "a TimeSpace: TimeSpace(0.0, 1.0, Box((0.0,), (1.0,)))")


class CornerLayers(nn.Module):
    """(t, x) -> (t, x, E_k / (4 kappa T)^(k/2)): what a diffusion does at a wall from t = 0 on.

    From (N, 1 + d) to (N, width), the points themselves first. With s the distance to the wall,

        E_k = (4 kappa t)^(k/2) i^k erfc(s / sqrt(4 kappa t)),      k = 1, 2,
        E_k = (2 kappa t E_{k-2} - s E_{k-1}) / k.

    E_1 has slope -1 at the wall from the first moment on, and is 0 at t = 0. Points must crowd at
    the start for a network to be held to the equation there: `early`.

        domain = TimeSpace(0.0, 1.0, Box((0.0,), (1.0,)))
        layers = CornerLayers(domain, 1.0, [(1, 1)])                 # at x = 1
        network = nn.Sequential(layers, MLP((layers.width, 30, 30, 1)))

    Args:
        domain: start, duration T, and the box around space.
        diffusivity: kappa, of u_t = kappa u_xx + ..., in the units of x^2 / t.
        walls: coordinate of (t, x) and end, 0 or 1, as of `Box.face`.

    Attributes:
        width: 1 + d, and two for each wall, d_in of the network behind.

    Raises:
        TypeError, ValueError: for a setting of another kind, or a wall that the box does not have.

    Source of the functions: Carslaw & Jaeger, Conduction of Heat in Solids, appendix II.
    """

    def __init__(self, domain: TimeSpace, diffusivity: float, walls: Sequence[Wall]) -> None:
        super().__init__()
        self.domain, self.diffusivity = domain, diffusivity
        settings.check(self, domain=TIME_SPACE, diffusivity=POSITIVE)
        many(is_wall, 1, "pairs of a coordinate and an end, [(1, 0)]")("CornerLayers: walls", walls)
        self.walls = tuple(place_of(domain.box, wall) for wall in walls)
        self.width = domain.dim + 2 * len(self.walls)

    def forward(self, x: Any) -> Any:
        """Features (N, width) at the points (N, 1 + d), or at a jet of them."""
        # Later by rounding: at the start itself the layers are 0 / 0
        duration = self.domain.end - self.domain.start
        t = x[:, :1] - self.domain.start + torch.finfo(x.dtype).eps * duration
        layers = [each for wall in self.walls for each in self._at(t, x, wall)]
        return torch.cat([x, *layers], dim=1)

    def _at(self, t: Any, x: Any, wall: tuple[int, float, int]) -> Iterator[Any]:
        """The layers (N, 1) of a wall, in units of their size at the end."""
        coordinate, place, inward = wall
        s, kappa = inward * (x[:, coordinate : coordinate + 1] - place), self.diffusivity
        size = torch.sqrt(4 * kappa * t)
        z = s / size
        below, layer = 2 / math.sqrt(math.pi) * torch.exp(-z * z) / size, torch.erfc(z)
        scale = math.sqrt(4 * kappa * (self.domain.end - self.domain.start))
        for k in (1, 2):
            below, layer = layer, (2 * kappa * t * below - s * layer) / k
            yield layer / scale**k


def is_wall(name: str, value: Any) -> None:
    """A coordinate of space and an end, as of `Box.face`."""
    pair = isinstance(value, Sequence) and len(value) == 2 and not isinstance(value, str)
    if not (pair and all(type(each) is int for each in value) and value[1] in (0, 1)):
        raise TypeError(
            f"{name} must be a coordinate and an end, 0 or 1, e.g. (1, 0), found {value!r}"
        )


def place_of(box: Box, wall: Wall) -> tuple[int, float, int]:
    """Coordinate, its value on a face of the box, and the sign of the way inward."""
    coordinate, end = wall
    if not 0 < coordinate < box.dim:
        raise ValueError(
            f"CornerLayers: walls have a coordinate of space, in 1 .. {box.dim - 1}, found {wall}"
        )
    return (coordinate, (box.lower, box.upper)[end][coordinate], 1 - 2 * end)


def early(points: Points, domain: TimeSpace, power: float = 2.0) -> Points:
    """A sampler's points (t, x), more of them at early times: t -> t_0 + T ((t - t_0) / T)^power.

    Uniform times have the density t^(1/power - 1) then: those of layers that grow as sqrt(t) for 2.

    Args:
        points: a sampler, as of `Term`.
        domain: start and duration.
        power: at least one, which changes nothing.

    Raises:
        TypeError, ValueError: for a setting of another kind.
    """
    FUNCTION("early: points", points)
    TIME_SPACE("early: domain", domain)
    at_least(1.0)("early: power", power)
    duration = domain.end - domain.start

    def sample(
        n: int,
        generator: Generator | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Tensor:
        x = points(n, generator, dtype, device)
        share = ((x[:, :1] - domain.start) / duration).clamp(min=0)
        return torch.cat([domain.start + duration * share**power, x[:, 1:]], dim=1)

    return sample
