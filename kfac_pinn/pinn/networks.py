"""The usual networks for PINNs: plain modules, built of torch functions that jets have rules for.

Embeddings (`FourierFeatures`, `PeriodicFeatures`) go in front with `nn.Sequential`. All map points
(N, d_in) to outputs (N, d_out); what goes around a network is in `wrappers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kfac_pinn import settings
from kfac_pinn.settings import FUNCTION, POSITIVE, WIDTHS, many, optional, whole_number

__all__ = [
    "MLP",
    "SIREN",
    "FourierFeatures",
    "ModifiedMLP",
    "PeriodicFeatures",
    "PirateNet",
]

Activation: TypeAlias = Callable[[Tensor], Tensor]


class MLP(nn.Module):
    """Linear layers with an activation between them: W_L s(... s(W_1 x + b_1) ...) + b_L.

    With tanh and PyTorch's default initialisation (both default) the network of the published
    K-FAC experiments: `MLP((5, 64, 64, 48, 48, 1))`. From (N, d_in) to (N, d_out).

    Args:
        sizes: (d_in, hidden widths ..., d_out).
        activation: any function; a module (with parameters of its own, say) is shared by the
            layers.

    Raises:
        TypeError, ValueError: for sizes that are not two or more positive integers in one tuple,
            and an activation that is no function.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation = torch.tanh) -> None:
        super().__init__()
        self.layers = _linears(self, sizes)
        self.activation = _function(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class SIREN(nn.Module):
    """Sine network: hidden layers sin(omega (W x + b)), a linear output.

    W uniform in +-1/d_in for the first layer and +-sqrt(6/d_in)/omega after it, so that every
    layer's input to the sine has unit variance. From (N, d_in) to (N, d_out).
    Source: Sitzmann et al. (2020), section 3.2.

    Args:
        sizes: (d_in, hidden widths ..., d_out).
        omega: the frequency; 30 for images, 1 to 10 for smooth solutions.

    Raises:
        ValueError: if omega is not positive; the others of `MLP`.
    """

    def __init__(self, sizes: Sequence[int], omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        settings.check(self, omega=POSITIVE)
        self.layers = _linears(self, sizes)
        for index, (layer, width) in enumerate(zip(self.layers, sizes, strict=False)):
            bound = 1 / width if index == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.get_parameter("weight"), -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x)


class ModifiedMLP(nn.Module):
    """An MLP whose hidden layers are mixed with two encodings of the input.

    U = s(W_U x + b_U), V = s(W_V x + b_V), H_{l+1} = (1 - Z_l) U + Z_l V, Z_l = s(W_l H_l + b_l).
    From (N, d_in) to (N, d_out). Source: Wang, Teng & Perdikaris (2021), eqs. 43-47.

    Args:
        sizes: (d_in, hidden widths, all equal, ..., d_out).
        activation: s.

    Raises:
        ValueError: if the hidden widths differ.
    """

    def __init__(self, sizes: Sequence[int], activation: Activation = torch.tanh) -> None:
        super().__init__()
        self.layers = _linears(self, sizes)
        if len(set(sizes[1:-1])) != 1:
            raise ValueError(
                f"ModifiedMLP: sizes must have hidden layers of one width, not {sizes[1:-1]}"
            )
        self.encoders = nn.ModuleList(nn.Linear(sizes[0], sizes[1]) for _ in range(2))
        self.activation = _function(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        U, V = (self.activation(encoder(x)) for encoder in self.encoders)
        for layer in self.layers[:-1]:
            x = _mix(self.activation(layer(x)), V, U)
        return self.layers[-1](x)


class PirateNet(nn.Module):
    """Residual blocks that start as the identity, on a random Fourier embedding.

    Each block: f = s(W_1 x), z = f U + (1-f) V, g = s(W_2 z), z = g U + (1-g) V, h = s(W_3 z),
    x <- alpha h + (1 - alpha) x with the trainable alpha = 0 at first.
    Source: Wang, Li, Chen & Perdikaris (2024), section 4.

    Args:
        sizes: (d_in, width, d_out), the width even.
        blocks: the number of residual blocks.
        scale: standard deviation of the embedding's frequencies.
        activation: s.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.
    """

    def __init__(
        self,
        sizes: tuple[int, int, int],
        blocks: int = 2,
        scale: float = 1.0,
        activation: Activation = torch.tanh,
    ) -> None:
        super().__init__()
        WIDTHS("PirateNet: sizes", sizes)
        if len(sizes) != 3:
            raise ValueError(f"PirateNet: sizes must be (d_in, width, d_out), found {sizes}")
        d_in, width, d_out = sizes
        whole_number("PirateNet: blocks", blocks)
        POSITIVE("PirateNet: scale", scale)
        self.activation = _function(self, activation)
        self.embedding = FourierFeatures(d_in, width, scale)
        self.encoders = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.blocks = nn.ModuleList(_PirateBlock(width, activation) for _ in range(blocks))
        self.output = nn.Linear(width, d_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        U, V = (self.activation(encoder(x)) for encoder in self.encoders)
        for block in self.blocks:
            x = block(x, U, V)
        return self.output(x)


class _PirateBlock(nn.Module):
    """Three layers, twice gated by U and V, then mixed with the input by alpha."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.layers = _linears(self, [width] * 4)
        # 0: the block is the identity at first, and the network a linear map of its embedding
        self.alpha = nn.Parameter(torch.zeros(1))
        self.activation = _function(self, activation)

    def forward(self, x: Tensor, U: Tensor, V: Tensor) -> Tensor:
        z = x
        for layer in self.layers[:-1]:
            z = _mix(self.activation(layer(z)), U, V)
        return _mix(self.alpha, self.activation(self.layers[-1](z)), x)


class FourierFeatures(nn.Module):
    """x -> (cos(B x), sin(B x)) with a fixed random B; from (N, d_in) to (N, width).

    Source: Tancik et al. (2020).

    Args:
        d_in: the dimension of x.
        width: the number of features, even: half cosines, half sines.
        scale: standard deviation of the entries of B (radians a unit of x).

    Raises:
        TypeError, ValueError: for a setting of another kind, or a width that is odd.
    """

    frequencies: Tensor

    def __init__(self, d_in: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        whole_number("FourierFeatures: d_in", d_in)
        POSITIVE("FourierFeatures: scale", scale)
        if whole_number("FourierFeatures: width", width) % 2:
            raise ValueError(f"FourierFeatures come in pairs (cos, sin); width {width} is odd")
        self.register_buffer("frequencies", scale * torch.randn(width // 2, d_in))

    def forward(self, x: Tensor) -> Tensor:
        phase = nn.functional.linear(x, self.frequencies)
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


ONE_EACH = "one number a coordinate, None where there is none"


class PeriodicFeatures(nn.Module):
    """Exact periodicity: x_i -> cos, sin(2 pi k x_i / period_i), k = 1 ... harmonics.

    From (N, d) to (N, width). Coordinates without a period pass unchanged and come first. The
    frequencies are float64 until the module is cast: a period is right to the last bit of x.

    Args:
        periods: one period a coordinate, None where there is none.
        harmonics: how many multiples of each frequency.

    Attributes:
        width: the number of features, d_in of the network behind.

    Raises:
        TypeError, ValueError: for a setting of another kind, or no period at all.
    """

    frequencies: Tensor
    passed: Tensor

    def __init__(self, periods: Sequence[float | None], harmonics: int = 1) -> None:
        super().__init__()
        many(optional(POSITIVE), 1, ONE_EACH)("PeriodicFeatures: periods", periods)
        whole_number("PeriodicFeatures: harmonics", harmonics)
        if all(period is None for period in periods):
            raise ValueError(f"PeriodicFeatures: periods must be {ONE_EACH}, found {periods}")
        # float64 whatever the default: 2 pi / period in float32 is off in its eighth digit
        units = torch.eye(len(periods), dtype=torch.float64)
        rows = [
            2 * math.pi * k / period * unit
            for unit, period in zip(units, periods, strict=True)
            if period is not None
            for k in range(1, harmonics + 1)
        ]
        self.register_buffer("frequencies", torch.stack(rows))
        self.register_buffer("passed", units[[p is None for p in periods]])
        self.width = 2 * len(rows) + len(self.passed)

    def forward(self, x: Tensor) -> Tensor:
        phase = nn.functional.linear(x, self.frequencies.to(x.dtype))
        waves = [torch.cos(phase), torch.sin(phase)]
        passed = [nn.functional.linear(x, self.passed.to(x.dtype))] if len(self.passed) else []
        return torch.cat(passed + waves, dim=-1)


def _linears(owner: nn.Module, sizes: Sequence[int]) -> nn.ModuleList:
    """One linear layer between any two neighbouring sizes."""
    WIDTHS(f"{type(owner).__name__}: sizes", sizes)
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))


def _function(owner: nn.Module, activation: Activation) -> Activation:
    """The activation, or an error for a class such as `nn.SiLU` and for a name."""
    if not callable(activation):
        raise TypeError(
            f"{type(owner).__name__}: activation must be a function such as torch.tanh, not "
            f"{activation!r}; the sizes are one tuple, MLP((2, 64, 1))"
        )
    FUNCTION(f"{type(owner).__name__}: activation", activation)
    return activation


def _mix(z: Tensor, one: Tensor, zero: Tensor) -> Tensor:
    """Z one + (1 - z) zero."""
    # One product in place of two
    return zero + z * (one - zero)
