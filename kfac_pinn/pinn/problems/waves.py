"""Nonlinear waves with exact solutions: Klein-Gordon, sine-Gordon, Schroedinger. Points (t, x)."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, InverseProblem, Problem, Term, Unknown
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import FINITE, INSIDE, takes
from kfac_pinn.taylor_mode.operators import partial, taylor

__all__ = ["klein_gordon", "klein_gordon_inverse", "schroedinger", "sine_gordon"]

NETWORKS = ((2, 40, 40, 40, 1),)


@problem
def klein_gordon() -> Problem:
    """u_tt - u_xx + u^3 = f on [0, 1]^2, u = x cos 5 pi t + (x t)^3, its values at the ends.

    Source of the case: Wang, Teng & Perdikaris (2021).
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(1))

    def solution(x: Tensor) -> Tensor:
        t, s = x[:, :1], x[:, 1:2]
        return s * torch.cos(5 * pi * t) + (s * t) ** 3

    def source(x: Tensor) -> Tensor:
        t, s = x[:, :1], x[:, 1:2]
        linear = -25 * pi**2 * s * torch.cos(5 * pi * t) + 6 * s**3 * t - 6 * s * t**3
        return linear + solution(x) ** 3

    def interior(u: Function, x: Tensor) -> Tensor:
        value, _, wave = taylor(u, x, weights=[1.0, -1.0])
        return wave + value**3 - source(x)

    terms = {
        "interior": Term(domain.interior, interior, 4000),
        "initial": Term(domain.initial, dirichlet(solution), 300),
        "at rest": Term(domain.initial, lambda u, x: partial(u, x, (0,)), 300),
        "walls": Term(domain.boundary, dirichlet(solution), 300),
    }
    return Problem("Klein-Gordon", domain, terms, solution, NETWORKS)


@problem
@takes(square=FINITE, guess=FINITE)
def klein_gordon_inverse(square: float = 4.0, guess: float = 1.0) -> Problem:
    """Find u and m^2 in u_tt - u_xx + m^2 u = 0 from u and u_t at t = 0 and u at sensors.

    u = sin(pi x) cos(w t), w^2 = pi^2 + m^2, on [0, 1]^2. The model has an attribute `square`.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(1))

    def solution(x: Tensor) -> Tensor:
        return torch.sin(pi * x[:, 1:2]) * torch.cos(sqrt(pi**2 + square) * x[:, :1])

    def interior(u: Any, x: Tensor) -> Tensor:
        value, _, wave = taylor(u, x, weights=[1.0, -1.0])
        return wave + u.square * value

    terms = {
        "interior": Term(domain.interior, interior, 2000),
        "initial": Term(domain.initial, dirichlet(solution), 100),
        "at rest": Term(domain.initial, lambda u, x: partial(u, x, (0,)), 100),
        "measurements": Term(domain.interior, dirichlet(solution), 100),
    }
    unknowns = {"square": Unknown(guess, square)}
    networks = ((2, 24, 24, 1),)
    return InverseProblem(
        "inverse Klein-Gordon", domain, terms, solution, networks, unknowns=unknowns
    )


@problem
@takes(frequency=INSIDE)
def sine_gordon(frequency: float = 0.6) -> Problem:
    """u_tt - u_xx + sin u = 0 on [0, 10] x [-5, 5], values at the ends: a breather.

    u = 4 arctan(e/w cos(w t) / cosh(e x)), e^2 = 1 - w^2.
    """
    domain = TimeSpace(0.0, 10.0, Box((-5.0,), (5.0,)))
    decay = sqrt(1 - frequency**2)

    def solution(x: Tensor) -> Tensor:
        swing = decay / frequency * torch.cos(frequency * x[:, :1])
        return 4 * torch.atan(swing / torch.cosh(decay * x[:, 1:2]))

    def interior(u: Function, x: Tensor) -> Tensor:
        value, _, wave = taylor(u, x, weights=[1.0, -1.0])
        return wave + torch.sin(value)

    terms = {
        "interior": Term(domain.interior, interior, 4000),
        "initial": Term(domain.initial, dirichlet(solution), 300),
        "at rest": Term(domain.initial, lambda u, x: partial(u, x, (0,)), 300),
        "walls": Term(domain.boundary, dirichlet(solution), 300),
    }
    return Problem("sine-Gordon", domain, terms, solution, NETWORKS)


@problem
def schroedinger() -> Problem:
    """i h_t + h_xx / 2 + |h|^2 h = 0 on [0, pi/2] x [-5, 5], h = p + i q, h(0, x) = 2 / cosh x.

    Two solitons, with their values at the ends (periodic h, the usual case, has no formula):

        h = 4 e^(it/2) (cosh 3x + 3 e^(4it) cosh x) / (cosh 4x + 4 cosh 2x + 3 cos 4t).

    Source: Satsuma & Yajima (1974).
    """
    domain = TimeSpace(0.0, pi / 2, Box((-5.0,), (5.0,)))

    def solution(x: Tensor) -> Tensor:
        t, s = x[:, :1], x[:, 1:2]
        one, three = torch.cosh(3 * s), 3 * torch.cosh(s)
        below = torch.cosh(4 * s) + 4 * torch.cosh(2 * s) + 3 * torch.cos(4 * t)
        real = one * torch.cos(t / 2) + three * torch.cos(4.5 * t)
        imaginary = one * torch.sin(t / 2) + three * torch.sin(4.5 * t)
        return torch.cat([real, imaginary], 1) * (4 / below)

    def interior(u: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        value, (h_t, _), h_xx = taylor(u, x, weights=[0.0, 1.0])
        square = (value * value).sum(1)
        rest = h_xx / 2 + square[:, None] * value
        return rest[:, 0] - h_t[:, 1], rest[:, 1] + h_t[:, 0]

    terms = {
        "interior": Term(domain.interior, interior, 6000),
        "initial": Term(domain.initial, dirichlet(solution), 300),
        "walls": Term(domain.boundary, dirichlet(solution), 300),
    }
    return Problem("nonlinear Schroedinger", domain, terms, solution, ((2, 40, 40, 40, 2),))
