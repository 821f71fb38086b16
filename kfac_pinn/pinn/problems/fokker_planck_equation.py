"""The logarithmic Fokker-Planck equation of an Ornstein-Uhlenbeck process, in any dimension."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import takes, whole
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["fokker_planck"]


@problem
@takes(dim=whole(1))
def fokker_planck(dim: int = 9) -> Problem:
    """q_t - d/2 - 1/2 x.grad q - ||grad q||^2 - Laplace q = 0 on [0, 1] x [-5, 5]^d, q = log p.

    p is the density of N(0, sigma^2 I), sigma^2 = exp(-t) + 2 (1 - exp(-t)): a standard normal at
    the start, which is the only condition. Points are (t, x), x of dim d.
    Source: Dangel, Mueller & Zeinhofer (2024), with d = 9.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(dim, -5.0, 5.0))

    def solution(x: Tensor) -> Tensor:
        variance = 2 - torch.exp(-x[:, 0:1])
        squares = (x[:, 1:] * x[:, 1:]).sum(1, keepdim=True)
        return -0.5 * (squares / variance + dim * torch.log(variance) + dim * log(2 * pi))

    def interior(u: Function, x: Tensor) -> Tensor:
        weights = x.new_tensor([0.0] + [1.0] * dim)
        _, (q_t, *grad), laplacian = taylor(u, x, weights=weights)
        drift = sum(x[:, i : i + 1] * q_i for i, q_i in enumerate(grad, 1))
        speed = sum(q_i * q_i for q_i in grad)
        return q_t - dim / 2 - 0.5 * drift - speed - laplacian

    def initial(u: Function, x: Tensor) -> Tensor:
        return u(x) - solution(x)

    return Problem(
        f"{dim}+1d log-Fokker-Planck",
        domain,
        {
            "interior": Term(domain.interior, interior, 3000),
            "initial": Term(domain.initial, initial, 1000),
        },
        solution,
        networks=((dim + 1, 256, 256, 128, 128, 1),),
        resample_every=10,
    )
