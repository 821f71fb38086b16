"""A rod that loses heat at its end, and a beam that is shaken. Points are (t, x)."""

from __future__ import annotations

from functools import cache
from math import pi

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet, neumann, robin
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import POSITIVE, takes
from kfac_pinn.taylor_mode.operators import partial, taylor

__all__ = ["forced_beam", "robin_heat"]


@problem
@takes(loss=POSITIVE)
def robin_heat(loss: float = 1.0) -> Problem:
    """u_t = u_xx on [0, 1]^2, u = 1 at first, insulated at x = 0, u_x + h u = 0 at x = 1.

    Start and end do not agree at (0, 1): u_x jumps there from 0 to -h.

    u = sum_n A_n cos(l_n x) e^(-l_n^2 t), l tan l = h, A = 4 sin l / (2 l + sin 2 l). 2000 terms:
    to rounding from t = 1e-6 on; for t = 0 the start is given.
    """
    space = Box((0.0,), (1.0,))
    domain = TimeSpace(0.0, 1.0, space)

    def solution(x: Tensor) -> Tensor:
        rates = rates_of(loss).to(x.device, x.dtype)
        sizes = 4 * torch.sin(rates) / (2 * rates + torch.sin(2 * rates))
        parts = torch.cos(x[:, 1:2] * rates) * torch.exp(-x[:, :1] * rates**2) * sizes
        return torch.where(x[:, :1] == 0, 1.0, parts.sum(1, keepdim=True))

    def interior(u: Function, x: Tensor) -> Tensor:
        _, (u_t, _), u_xx = taylor(u, x, weights=[0.0, 1.0])
        return u_t - u_xx

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "initial": Term(domain.initial, dirichlet(1.0), 300),
        "insulated": Term(domain.box.face(1, 0), neumann(domain), 200),
        "end": Term(domain.box.face(1, 1), robin(domain, loss, 1.0), 200),
    }
    return Problem("heat with a Robin end", domain, terms, solution, ((2, 30, 30, 1),))


@cache
def rates_of(loss: float, count: int = 2000) -> Tensor:
    """The roots of l tan l = h, one in each (n pi, n pi + pi/2), by bisection."""
    low = pi * torch.arange(count, dtype=torch.float64)
    high = low + pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        above = middle * torch.sin(middle) * torch.cos(low) > loss * torch.cos(middle) * torch.cos(
            low
        )
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


@problem
def forced_beam() -> Problem:
    """u_tt + u_xxxx = (1 - 16 pi^2) sin x cos 4 pi t on [0, 1] x [0, pi], u = sin x cos 4 pi t.

    u = u_xx = 0 at the ends. Source of the case: Kapoor et al. (2023), beams.
    """
    domain = TimeSpace(0.0, 1.0, Box((0.0,), (pi,)))

    def solution(x: Tensor) -> Tensor:
        return torch.sin(x[:, 1:2]) * torch.cos(4 * pi * x[:, :1])

    def interior(u: Function, x: Tensor) -> Tensor:
        return partial(u, x, (0, 0)) + partial(u, x, (1,) * 4) - (1 - 16 * pi**2) * solution(x)

    def ends(u: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        value, _, u_xx = taylor(u, x, weights=[0.0, 1.0])
        return value, u_xx

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "initial": Term(domain.initial, dirichlet(solution), 300),
        "at rest": Term(domain.initial, lambda u, x: partial(u, x, (0,)), 300),
        "walls": Term(domain.boundary, ends, 300),
    }
    return Problem("beam, forced", domain, terms, solution, ((2, 30, 30, 1),))
