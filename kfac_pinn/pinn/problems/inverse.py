"""Unknown numbers and unknown fields: Lorenz, an oscillator, Poisson and heat coefficients.

The coefficient fields of Poisson and heat are PInv and HInv of Hao et al. (2023), "PINNacle",
here with measurements that are exact unless noise is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, InverseProblem, Problem, Term, Unknown
from kfac_pinn.pinn.problems.in_time import InTime, runge_kutta
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import FINITE, NOT_NEGATIVE, many, takes, whole
from kfac_pinn.taylor_mode.operators import taylor

__all__ = [
    "elliptic_inverse",
    "heat_inverse",
    "lorenz_inverse",
    "oscillator_inverse",
    "poisson_inverse",
    "solve_lorenz",
]


@problem
@takes(sensors=whole(1), guess=FINITE)
def lorenz_inverse(sensors: int = 25, guess: float = 1.0) -> Problem:
    """Find sigma, rho, beta in the Lorenz system from its path for t <= 3 and its start.

        x' = sigma (y - x), y' = x (rho - z) - y, z' = x y - beta z, from (-8, 7, 27)

    with 10, 15, 8/3. The model has these names as attributes, and maps (t) to (x, y, z).
    Source of the case: Lu et al. (2021), DeepXDE.
    """
    domain = Box((0.0,), (3.0,))

    def solution(t: Any) -> Any:
        return solve_lorenz()(t)

    def interior(u: Any, t: Tensor) -> tuple[Tensor, ...]:
        value, (slope,) = taylor(u, t, 1)
        x, y, z = value.unbind(1)
        return (
            slope[:, 0] - u.sigma * (y - x),
            slope[:, 1] - x * (u.rho - z) + y,
            slope[:, 2] - x * y + u.beta * z,
        )

    terms = {
        "interior": Term(domain.interior, interior, 400),
        "measurements": Term(domain.interior, dirichlet(solution), sensors),
        "start": Term(domain.face(0, 0), dirichlet(solution), 1),
    }
    unknowns = {
        "sigma": Unknown(guess, 10.0),
        "rho": Unknown(guess, 15.0),
        "beta": Unknown(guess, 8 / 3),
    }
    networks = ((1, 40, 40, 3),)
    return InverseProblem("inverse Lorenz", domain, terms, solution, networks, unknowns=unknowns)


@cache
def solve_lorenz(steps: int = 3000) -> InTime:
    """The path for t <= 3, to 1e-9."""

    def f(y: Tensor) -> Tensor:
        a, b, c = y
        return torch.stack([10 * (b - a), a * (15 - c) - b, a * b - 8 / 3 * c])

    return runge_kutta(f, torch.tensor([-8.0, 7.0, 27.0], dtype=torch.float64), 3.0, steps)


@problem
@takes(sensors=whole(1), guess=many(FINITE, 2))
def oscillator_inverse(sensors: int = 40, guess: Sequence[float] = (1.0, 1.0)) -> Problem:
    """Find mu = 4 and k = 400 in u'' + mu u' + k u = 0, u(0) = 1, u'(0) = 0, from u for t <= 1.

    The model has attributes `friction` and `stiffness`. Source of the case: Moseley (2022).
    """
    domain = Box((0.0,), (1.0,))
    frequency = sqrt(400 - 4)

    def solution(t: Tensor) -> Tensor:
        swing = torch.cos(frequency * t) + 2 / frequency * torch.sin(frequency * t)
        return torch.exp(-2 * t) * swing

    def interior(u: Any, t: Tensor) -> Tensor:
        value, (first,), (second,) = taylor(u, t)
        # In units of u, as the measurements are: else a straight line through them has less loss
        return (second + u.friction * first + u.stiffness * value) / frequency**2

    terms = {
        "interior": Term(domain.interior, interior, 400),
        "measurements": Term(domain.interior, dirichlet(solution), sensors),
    }
    unknowns = {"friction": Unknown(guess[0], 4.0), "stiffness": Unknown(guess[1], 400.0)}
    networks = ((1, 40, 40, 1),)
    return InverseProblem(
        "inverse oscillator", domain, terms, solution, networks, unknowns=unknowns
    )


@problem
@takes(noise=NOT_NEGATIVE)
def poisson_inverse(noise: float = 0.0) -> Problem:
    """Find u and a in -div(a grad u) = f on [0, 1]^2 from u at sensors and a on the boundary.

    u = sin pi x sin pi y, a = 1 / (1 + x^2 + y^2 + (x - 1)^2 + (y - 1)^2). The model returns both,
    (N, 2): `SideBySide(network, other)`, or one network.

    Args:
        noise: the standard deviation of the measurements; 0.1 is PINNacle's.
    """

    def coefficient(x: Tensor) -> Tensor:
        s, r = x[:, :1], x[:, 1:2]
        return 1 / (1 + s * s + r * r + (s - 1) ** 2 + (r - 1) ** 2)

    return _coefficient("inverse Poisson", Box.cube(2), coefficient, noise)


@problem
@takes(noise=NOT_NEGATIVE)
def elliptic_inverse(noise: float = 0.0) -> Problem:
    """As `poisson_inverse`, with a = 1 + cos(2 pi x) sin(2 pi y) / 2, faster than u."""

    def coefficient(x: Tensor) -> Tensor:
        return 1 + torch.cos(2 * pi * x[:, :1]) * torch.sin(2 * pi * x[:, 1:2]) / 2

    return _coefficient("inverse elliptic", Box.cube(2), coefficient, noise)


@problem
@takes(noise=NOT_NEGATIVE)
def heat_inverse(noise: float = 0.0) -> Problem:
    """Find u and a in u_t - div(a grad u) = f on [0, 1] x [-1, 1]^2, as in `poisson_inverse`.

    u = e^(-t) sin pi x sin pi y, a = 2 + sin pi x sin pi y, of (x, y) alone.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(2, -1.0, 1.0))

    def coefficient(x: Tensor) -> Tensor:
        return 2 + torch.sin(pi * x[:, 1:2]) * torch.sin(pi * x[:, 2:3])

    return _coefficient("inverse heat, a field", domain, coefficient, noise)


def _coefficient(name: str, domain: Any, coefficient: Function, noise: float) -> Problem:
    """The terms; f is what the exact fields leave."""
    d = domain.dim

    def solution(x: Tensor) -> Tensor:
        u = torch.sin(pi * x[:, d - 2 : d - 1]) * torch.sin(pi * x[:, d - 1 : d])
        u = u * torch.exp(-x[:, :1]) if d == 3 else u
        return torch.cat([u, coefficient(x)], 1)

    def interior(u: Function, x: Tensor) -> Tensor:
        return diffusion(u, x) - diffusion(solution, x)

    def measurements(u: Function, x: Tensor) -> Tensor:
        return u(x)[:, :1] - solution(x)[:, :1] - (noise * scatter(x) if noise else 0.0)

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "measurements": Term(domain.interior, measurements, 2500),
        "coefficient": Term(domain.boundary, lambda u, x: (u(x) - solution(x))[:, 1], 400),
    }
    return Problem(name, domain, terms, solution, ((d, 30, 30, 2),))


def scatter(x: Tensor) -> Tensor:
    """A standard normal number for each place, the same at every call: (N, d) -> (N, 1)."""
    turned = (
        torch.sin(x.double() @ torch.arange(1.0, 1 + x.shape[1]).to(x.device).double()) * 43758.5453
    )
    part = (turned - turned.floor()).clamp(1e-9, 1 - 1e-9)
    return (sqrt(2) * torch.erfinv(2 * part - 1)).to(x)[:, None]


def diffusion(fields: Function, x: Tensor) -> Tensor:
    """(u_t) - a Laplace u - grad a . grad u of fields (u, a), (N,)."""
    timed = x.shape[1] == 3
    weights = [0.0, 1.0, 1.0] if timed else [1.0, 1.0]
    value, slopes, laplace = taylor(fields, x, weights=weights)
    space = slopes[1:] if timed else slopes
    found = -value[:, 1] * laplace[:, 0] - (space[..., 0] * space[..., 1]).sum(0)
    return found + slopes[0, :, 0] if timed else found
