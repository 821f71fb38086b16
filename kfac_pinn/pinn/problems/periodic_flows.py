"""Periodic in x, from a smooth start to structures: references by Fourier series.

Points are (t, x). Sources: Raissi, Perdikaris & Karniadakis (2019) for Allen-Cahn, Wang et al.
(2023), "An expert's guide to training PINNs", for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import pi

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet, periodic
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.in_time import PeriodicEquation, Trajectory
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import POSITIVE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = [
    "allen_cahn",
    "kdv",
    "kuramoto_sivashinsky",
    "solve_allen_cahn",
    "solve_kdv",
    "solve_kuramoto_sivashinsky",
]

NETWORKS = ((2, 40, 40, 40, 1),)
CHAOTIC = 100 / 16, 100 / 16**2, 100 / 16**4  # a, b, c


@problem
@takes(diffusivity=POSITIVE)
def allen_cahn(diffusivity: float = 1e-4) -> Problem:
    """u_t = D u_xx + 5 u - 5 u^3 on [0, 1] x [-1, 1], u(0, x) = x^2 cos pi x, u, u_x periodic.

    u(0, x) has a kink at the ends, which is smoothed over sqrt(4 D t).
    """

    def interior(u: Function, x: Tensor) -> Tensor:
        value, (u_t, _), u_xx = taylor(u, x, weights=[0.0, 1.0])
        return u_t - diffusivity * u_xx - 5 * value + 5 * value**3

    domain = TimeSpace(0.0, 1.0, Box((-1.0,), (1.0,)))
    terms = _terms(domain, interior, square_cosine, 1)
    name = f"Allen-Cahn, diffusivity {diffusivity:g}"
    return Problem(name, domain, terms, lambda x: solve_allen_cahn(diffusivity)(x), NETWORKS)


@cache
def solve_allen_cahn(diffusivity: float, modes: int = 2048, steps: int = 1000) -> Trajectory:
    """The reference, to 3e-8 (relative L2); to 1e-6 on t <= 0.01, where it begins with a kink."""
    equation = PeriodicEquation(
        linear=lambda k: 5 - diffusivity * k**2,
        outer=lambda k: torch.full_like(k, -5.0),
        g=lambda u: u**3,
        degree=3,
        lower=-1.0,
        period=2.0,
    )
    return equation.solve(square_cosine, 1.0, modes, steps)


@problem
@takes(dispersion=POSITIVE)
def kdv(dispersion: float = 0.022) -> Problem:
    """u_t + u u_x + mu^2 u_xxx = 0 on [0, 1] x [-1, 1], u(0, x) = cos pi x, periodic.

    Source of the case: Zabusky & Kruskal (1965).
    """

    def interior(u: Function, x: Tensor) -> Tensor:
        value, u_x, _, u_xxx = taylor(u, x, 3, x.new_tensor([[0.0, 1.0]]))
        return _slope(u, x) + value * u_x[0] + dispersion**2 * u_xxx[0]

    domain = TimeSpace(0.0, 1.0, Box((-1.0,), (1.0,)))
    terms = _terms(domain, interior, cosine, 2)
    name = f"Korteweg-de Vries, dispersion {dispersion:g}"
    return Problem(name, domain, terms, lambda x: solve_kdv(dispersion)(x), NETWORKS)


@cache
def solve_kdv(dispersion: float, modes: int = 512, steps: int = 4000) -> Trajectory:
    """The reference, to 1e-8: u_t = -mu^2 u_xxx - (u^2/2)_x."""
    equation = PeriodicEquation(
        linear=lambda k: 1j * dispersion**2 * k**3,
        outer=lambda k: -0.5j * k,
        g=torch.square,
        degree=2,
        lower=-1.0,
        period=2.0,
    )
    return equation.solve(cosine, 1.0, modes, steps)


@problem
@takes(end=POSITIVE)
def kuramoto_sivashinsky(end: float = 0.5) -> Problem:
    """u_t + a u u_x + b u_xx + c u_xxxx = 0 on [0, 2 pi], a, b, c = 100/16, 100/16^2, 100/16^4.

    u(0, x) = cos x (1 + sin x), periodic. Chaos sets in beyond t = 1/2.
    """

    def interior(u: Function, x: Tensor) -> Tensor:
        value, u_x, u_xx, _, u_xxxx = taylor(u, x, 4, x.new_tensor([[0.0, 1.0]]))
        a, b, c = CHAOTIC
        return _slope(u, x) + a * value * u_x[0] + b * u_xx[0] + c * u_xxxx[0]

    domain = TimeSpace(0.0, end, Box((0.0,), (2 * pi,)))
    terms = _terms(domain, interior, two_waves, 3)
    name = f"Kuramoto-Sivashinsky, t <= {end:g}"
    return Problem(name, domain, terms, lambda x: solve_kuramoto_sivashinsky(end)(x), NETWORKS)


@cache
def solve_kuramoto_sivashinsky(end: float, modes: int = 512, steps: int = 4000) -> Trajectory:
    """The reference, to 1e-8: u_t = -b u_xx - c u_xxxx - a (u^2/2)_x."""
    a, b, c = CHAOTIC
    equation = PeriodicEquation(
        linear=lambda k: b * k**2 - c * k**4,
        outer=lambda k: -0.5j * a * k,
        g=torch.square,
        degree=2,
        lower=0.0,
        period=2 * pi,
    )
    return equation.solve(two_waves, end, modes, steps)


def square_cosine(x: Tensor) -> Tensor:
    """x^2 cos pi x."""
    return x * x * torch.cos(pi * x)


def cosine(x: Tensor) -> Tensor:
    """Cos pi x."""
    return torch.cos(pi * x)


def two_waves(x: Tensor) -> Tensor:
    """Cos x (1 + sin x)."""
    return torch.cos(x) * (1 + torch.sin(x))


def _slope(u: Function, x: Tensor) -> Tensor:
    """u_t."""
    return taylor(u, x, 1, x.new_tensor([[1.0, 0.0]]))[1][0]


def _terms(
    domain: TimeSpace,
    interior: Callable[[Function, Tensor], Tensor],
    start: Callable[[Tensor], Tensor],
    order: int,
) -> dict[str, Term]:
    """The equation, its start, and u and its derivatives up to an order periodic."""
    lower, upper = domain.box.lower[1], domain.box.upper[1]
    return {
        "interior": Term(domain.interior, interior, 9000),
        "initial": Term(domain.initial, dirichlet(lambda x: start(x[:, 1:2])), 300),
        "periodic": Term(domain.box.face(1, 0), periodic(1, upper - lower, order), 300),
    }
