"""What plain networks are known to fail on: convection, reaction, a wave. Points are (t, x).

Source: Krishnapriyan et al. (2021), "Characterizing possible failure modes in PINNs".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import pi

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet, periodic
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import PROBLEMS, problem
from kfac_pinn.settings import FINITE, POSITIVE, many, takes, whole
from kfac_pinn.taylor_mode.operators import homogeneous, taylor
from kfac_pinn.taylor_mode.operators import partial as derivative

__all__ = ["convection", "reaction", "wave"]

NETWORKS = ((2, 40, 40, 40, 1),)


@problem
@takes(speed=FINITE)
def convection(speed: float = 50.0) -> Problem:
    """u_t + beta u_x = 0 on [0, 1] x [0, 2 pi], periodic, u(0, x) = sin x: u = sin(x - beta t)."""
    space = Box((0.0,), (2 * pi,))
    domain = TimeSpace(0.0, 1.0, space)

    def solution(x: Tensor) -> Tensor:
        return torch.sin(x[:, 1:2] - speed * x[:, :1])

    def interior(u: Function, x: Tensor) -> Tensor:
        return taylor(u, x, order=1, directions=x.new_tensor([[1.0, speed]]))[1][0]

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "initial": Term(domain.initial, dirichlet(solution), 600),
        # A wave of speed 50 passes eight times: it needs points in time as it does in space
        "periodic": Term(domain.box.face(1, 0), periodic(1, 2 * pi), 600),
    }
    return Problem(f"convection, speed {speed:g}", domain, terms, solution, NETWORKS)


@problem
@takes(rate=FINITE)
def reaction(rate: float = 5.0) -> Problem:
    """u_t = rho u (1 - u) on [0, 1] x [0, 2 pi], periodic, from a Gaussian h of width pi/4.

    u = h e^(rho t) / (h e^(rho t) + 1 - h), h = exp(-(x - pi)^2 / (2 (pi/4)^2)).
    """
    domain = TimeSpace(0.0, 1.0, Box((0.0,), (2 * pi,)))

    def solution(x: Tensor) -> Tensor:
        h = torch.exp(-((x[:, 1:2] - pi) ** 2) * (8 / pi**2))
        grown = h * torch.exp(rate * x[:, :1])
        return grown / (grown + 1 - h)

    def interior(u: Function, x: Tensor) -> Tensor:
        value, (u_t,) = taylor(u, x, order=1, directions=x.new_tensor([[1.0, 0.0]]))
        return u_t - rate * value * (1 - value)

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "initial": Term(domain.initial, dirichlet(solution), 300),
        "periodic": Term(domain.box.face(1, 0), periodic(1, 2 * pi), 300),
    }
    return Problem(f"reaction, rate {rate:g}", domain, terms, solution, NETWORKS)


@problem
@takes(modes=many(whole(1)), speed=POSITIVE)
def wave(modes: Sequence[int] = (1,), speed: float = 2.0) -> Problem:
    """u_tt = c^2 u_xx on [0, 1]^2, zero at the ends, at rest at first.

    u = sum_j a_j sin(m_j pi x) cos(c m_j pi t), a = 1, 1/2, 1/2, ...
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(1))
    sizes = [1.0] + [0.5] * (len(modes) - 1)

    def solution(x: Tensor) -> Tensor:
        t, s = pi * speed * x[:, :1], pi * x[:, 1:2]
        parts = [a * torch.sin(m * s) * torch.cos(m * t) for a, m in zip(sizes, modes, strict=True)]
        return sum(parts[1:], start=parts[0])

    def interior(u: Function, x: Tensor) -> Tensor:
        return homogeneous(u, x, {(0, 0): 1.0, (1, 1): -(speed**2)})

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "initial": Term(domain.initial, dirichlet(solution), 600),
        "at rest": Term(domain.initial, lambda u, x: derivative(u, x, (0,)), 600),
        "walls": Term(domain.boundary, dirichlet(), 600),
    }
    name = f"wave, speed {speed:g}, modes {', '.join(map(str, modes))}"
    return Problem(name, domain, terms, solution, NETWORKS)


PROBLEMS["wave_two_modes"] = partial(wave, (1, 3))
PROBLEMS["wave_pinnacle"] = partial(wave, (1, 4))
