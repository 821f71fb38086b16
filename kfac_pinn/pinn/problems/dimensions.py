"""Five dimensions: PNd and HNd of Hao et al. (2023), "PINNacle"."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet, neumann
from kfac_pinn.pinn.domains import Ball, TimeSpace
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.poisson_equation import poisson
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import takes, whole
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["heat_ball", "poisson_nd"]


@problem
@takes(dim=whole(1))
def poisson_nd(dim: int = 5) -> Problem:
    """-Laplace u = pi^2/4 sum_i sin(pi x_i / 2) on [0, 1]^d, u = sum_i sin(pi x_i / 2)."""

    def solution(x: Tensor) -> Tensor:
        return torch.sin(pi / 2 * x).sum(1, keepdim=True)

    def source(x: Tensor) -> Tensor:
        return pi**2 / 4 * solution(x)

    return poisson(dim, source, solution, (3000, 500), networks=((dim, 30, 30, 1),))


@problem
@takes(dim=whole(1))
def heat_ball(dim: int = 5) -> Problem:
    """u_t = Laplace u / d - |x|^2/d u* in the unit ball, du/dn given, u* = e^(|x|^2/2 + t)."""
    domain = TimeSpace(0.0, 1.0, Ball((0.0,) * dim))

    def square(x: Tensor) -> Tensor:
        return (x[:, 1:] * x[:, 1:]).sum(1, keepdim=True)

    def solution(x: Tensor) -> Tensor:
        return torch.exp(square(x) / 2 + x[:, :1])

    def interior(u: Function, x: Tensor) -> Tensor:
        _, slopes, laplace = taylor(u, x, weights=[0.0] + [1.0] * dim)
        return slopes[0] - laplace / dim + square(x) / dim * solution(x)

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "initial": Term(domain.initial, dirichlet(solution), 500),
        "flux": Term(domain.boundary, neumann(domain, solution), 500),  # du/dr = r u, r = 1
    }
    return Problem(f"heat in a {dim}d ball", domain, terms, solution, ((dim + 1, 30, 30, 1),))
