"""Poisson's equation -Laplace u = f on unit cubes, u = u* on the boundary.

The four problems of Dangel, Mueller & Zeinhofer (2024), "Kronecker-factored approximate curvature
for physics-informed neural networks", with their numbers of points and networks.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import FUNCTION, many, takes, whole
from kfac_pinn.taylor_mode.operators import laplacian

__all__ = ["poisson", "poisson_2d", "poisson_5d", "poisson_10d", "poisson_100d"]


@takes(dim=whole(1), source=FUNCTION, solution=FUNCTION, sizes=many(whole(1), 2))
def poisson(
    dim: int,
    source: Callable[[Tensor], Tensor],
    solution: Callable[[Any], Any],
    sizes: tuple[int, int],
    **published: Any,
) -> Problem:
    """-Laplace u = source on [0, 1]^dim with u = solution on the boundary.

    Args:
        dim: d.
        source: f, (N, d) -> (N, 1).
        solution: u*, (N, d) -> (N, 1).
        sizes: numbers of interior and boundary points.
        **published: further fields of `Problem`.
    """
    box = Box.cube(dim)

    def interior(u: Function, x: Tensor) -> Tensor:
        return laplacian(u, x) + source(x)

    def boundary(u: Function, x: Tensor) -> Tensor:
        return u(x) - solution(x)

    terms = {
        "interior": Term(box.interior, interior, sizes[0]),
        "boundary": Term(box.boundary, boundary, sizes[1]),
    }
    return Problem(f"{dim}d Poisson", box, terms, solution, **published)


@problem
def poisson_2d() -> Problem:
    """-Laplace u = 2 pi^2 sin(pi x) sin(pi y) with u = 0 on the boundary, one fixed batch."""

    def solution(x: Tensor) -> Tensor:
        return torch.sin(pi * x[:, 0:1]) * torch.sin(pi * x[:, 1:2])

    networks = ((2, 64, 1), (2, 64, 64, 48, 48, 1), (2, 256, 256, 128, 128, 1))
    return poisson(2, lambda x: 2 * pi**2 * solution(x), solution, (900, 120), networks=networks)


@problem
def poisson_5d() -> Problem:
    """-Laplace u = pi^2 sum_i cos(pi x_i), u* = sum_i cos(pi x_i)."""

    def solution(x: Tensor) -> Tensor:
        return torch.cos(pi * x).sum(1, keepdim=True)

    return poisson(
        5,
        lambda x: pi**2 * solution(x),
        solution,
        (3000, 500),
        networks=((5, 64, 1), (5, 64, 64, 48, 48, 1), (5, 256, 256, 128, 128, 1)),
        resample_every=100,
    )


@problem
def poisson_10d() -> Problem:
    """Laplace u = 0, u* = sum_i x_(2i-1) x_(2i). The recorded runs divide u* by 1.34."""

    def solution(x: Tensor) -> Tensor:
        return (x[:, 0::2] * x[:, 1::2]).sum(1, keepdim=True)

    return poisson(
        10,
        lambda x: torch.zeros_like(x[:, :1]),
        solution,
        (3000, 1000),
        networks=((10, 256, 256, 128, 128, 1),),
        resample_every=100,
    )


@problem
def poisson_100d() -> Problem:
    """-Laplace u = -200 / s, u* = ||x||^2 / s with s = 33.47, as in the recorded runs.

    Its root mean square is 1. Printed is s = 1: the first steps have thirty times as far to go.
    """
    scale = 33.47

    def solution(x: Tensor) -> Tensor:
        return (x * x).sum(1, keepdim=True) / scale

    return poisson(
        100,
        lambda x: torch.full_like(x[:, :1], -200.0 / scale),
        solution,
        (175, 2086),
        networks=((100, 768, 768, 512, 512, 1),),
        resample_every=16,
    )
