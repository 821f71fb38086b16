"""What goes around a network: scaled points, values on the boundary, fields, unknown numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kfac_pinn import settings
from kfac_pinn.pinn.domains import Box
from kfac_pinn.settings import FINITE, FUNCTION, MODULE, instance, named, takes

__all__ = ["HardConstraint", "Normalized", "SideBySide", "WithUnknowns", "wall_distance"]

Activation: TypeAlias = Callable[[Tensor], Tensor]


class Normalized(nn.Module):
    """Scales a box to [-1, 1]^d, to stand in front of a network.

    x -> slope x + shift, from (N, d) to (N, d).

    Args:
        box: of the points.

    Raises:
        TypeError: for what is no `Box`.
    """

    slope: Tensor
    shift: Tensor

    def __init__(self, box: Box) -> None:
        super().__init__()
        instance(Box, "a Box, e.g. Box((0.0, 0.0), (1.0, 1.0))")("Normalized: box", box)
        lower, upper = torch.tensor(box.lower).double(), torch.tensor(box.upper).double()
        self.register_buffer("slope", 2 / (upper - lower))
        self.register_buffer("shift", -(upper + lower) / (upper - lower))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.slope.to(x.dtype) + self.shift.to(x.dtype)


class HardConstraint(nn.Module):
    """u(x) = value(x) + factor(x) network(x): u equals `value` wherever `factor` vanishes.

    Args:
        network: any module, outputs (N, 1) or (N, d_out).
        value: g, points -> (N, 1) or (N, d_out).
        factor: phi, points -> (N, 1), zero where the condition holds; `wall_distance(box)`, say.

    Raises:
        TypeError: for a network that is no module, a value or factor that is no function.
    """

    def __init__(self, network: nn.Module, value: Activation, factor: Activation) -> None:
        super().__init__()
        if not (callable(value) and callable(factor)):
            raise TypeError(
                "HardConstraint: value and factor are functions of the points, found "
                f"{value!r} and {factor!r}: wall_distance(box) for the walls "
                "of a box, lambda x: torch.zeros_like(x[:, :1]) for zero"
            )
        self.network, self.value, self.factor = network, value, factor
        settings.check(self, network=MODULE, value=FUNCTION, factor=FUNCTION)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) + self.factor(x) * self.network(x)


class SideBySide(nn.Module):
    """The outputs of several networks as columns of one: a solution and a coefficient, say.

    Args:
        networks: of the same points, with outputs (N, C_i).

    Raises:
        ValueError: if there is none.
        TypeError: for something else than modules.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        if not networks:
            raise ValueError("SideBySide needs networks: SideBySide(MLP((2, 8, 1)), ...)")
        for network in networks:
            MODULE("SideBySide: networks", network)
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], dim=1)


class WithUnknowns(nn.Module):
    """A network together with numbers to be found, its attributes: `model.viscosity`, shape ().

    Args:
        network: u.
        guesses: where each number starts, by its name.

    Raises:
        TypeError: for a network that is no module, or guesses that are no numbers by name.
        ValueError: for a name that the module has already, or that is none.
    """

    def __init__(self, network: nn.Module, guesses: Mapping[str, float]) -> None:
        super().__init__()
        self.network = network
        settings.check(self, network=MODULE)
        named(FINITE)("WithUnknowns: guesses", guesses)
        for name, guess in guesses.items():
            if not name.isidentifier() or hasattr(self, name):
                raise ValueError(f"{name!r} cannot be the name of an unknown: take another one")
            self.register_parameter(name, nn.Parameter(torch.tensor(float(guess))))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@takes(box=instance(Box, "a Box, e.g. Box.cube(2)"))
def wall_distance(box: Box) -> Activation:
    """The factor prod_i 4 (x_i - lower_i)(upper_i - x_i) / (upper_i - lower_i)^2, shape (N, 1).

    It vanishes on the boundary of the box and is 1 in its middle.
    """

    def factor(x: Tensor) -> Tensor:
        walls = enumerate(zip(box.lower, box.upper, strict=True))
        columns = [
            (x[..., i : i + 1] - low) * (up - x[..., i : i + 1]) * (4 / (up - low) ** 2)
            for i, (low, up) in walls
        ]
        return math.prod(columns[1:], start=columns[0])

    return factor
