"""Small problems in float64 that the tests of all optimizers share."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from kfac_pinn import laplacian

Closure = Callable[[], Any]


def network(*sizes: int, seed: int = 0) -> nn.Sequential:
    """A tanh network in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for d_in, d_out in itertools.pairwise(sizes):
        layers += [nn.Linear(d_in, d_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).to(torch.float64)


def points(n: int, d: int = 2, seed: int = 0) -> Tensor:
    """(n, d) in the unit cube."""
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poisson(model: nn.Module, x: Tensor, xb: Tensor) -> Closure:
    """-Laplace u = 1 at x with u = x_0 at xb."""
    return lambda: (laplacian(model, x) + 1, model(xb) - xb[:, :1])


def small_case(n: int = 12, hidden: int = 5, seed: int = 0) -> tuple[nn.Sequential, Closure]:
    """A network with 4 hidden + 1 parameters and n + 3 residuals."""
    model = network(2, hidden, 1, seed=seed)
    return model, poisson(model, points(n, seed=seed), points(3, seed=seed + 1))


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Sequential, Closure]:
    """More points than parameters, or fewer."""
    n, hidden = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    return small_case(n, hidden, draw(st.integers(0, 10_000)))


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def relative(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found - expected).norm() / expected.norm())
