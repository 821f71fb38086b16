"""Incompressible flows, fields (u, v, p): Kovasznay, Taylor-Green, a cavity, and an inverse one."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.problem import Function, InverseProblem, Problem, Term, Unknown
from kfac_pinn.pinn.problems.cavity import solve_cavity
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import FINITE, POSITIVE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = [
    "kovasznay",
    "lid_driven_cavity",
    "navier_stokes",
    "navier_stokes_inverse",
    "taylor_green",
]


def navier_stokes(
    u: Function, x: Tensor, viscosity: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """u_x + v_y, and (u_t) + u u_x + v u_y + p_x - nu Laplace u, the same for v.

    Points are (x, y), or (t, x, y) where the flow is not steady.
    """
    steady = x.shape[1] == 2
    weights = [1.0, 1.0] if steady else [0.0, 1.0, 1.0]
    w, slopes, laplace = taylor(u, x, weights=weights)
    w_x, w_y = slopes[-2], slopes[-1]
    transport = w[:, :1] * w_x[:, :2] + w[:, 1:2] * w_y[:, :2]
    pressure = torch.stack([w_x[:, 2], w_y[:, 2]], 1)
    momentum = transport + pressure - viscosity * laplace[:, :2]
    momentum = momentum if steady else momentum + slopes[0][:, :2]
    return w_x[:, 0] + w_y[:, 1], momentum[:, 0], momentum[:, 1]


@problem
@takes(reynolds=POSITIVE)
def kovasznay(reynolds: float = 40.0) -> Problem:
    """Steady flow behind a grid on [-1/2, 1] x [-1/2, 3/2], all fields given on the boundary.

    u = 1 - e^(l x) cos 2 pi y, v = l / 2 pi e^(l x) sin 2 pi y, p = (1 - e^(2 l x)) / 2,
    l = Re / 2 - sqrt(Re^2 / 4 + 4 pi^2). Source: Kovasznay (1948).
    """
    box = Box((-0.5, -0.5), (1.0, 1.5))
    rate = reynolds / 2 - sqrt(reynolds**2 / 4 + 4 * pi**2)

    def solution(x: Tensor) -> Tensor:
        decay, angle = torch.exp(rate * x[:, :1]), 2 * pi * x[:, 1:2]
        v = rate / (2 * pi) * decay * torch.sin(angle)
        return torch.cat([1 - decay * torch.cos(angle), v, (1 - decay**2) / 2], 1)

    terms = {
        "interior": Term(box.interior, lambda u, x: navier_stokes(u, x, 1 / reynolds), 2500),
        "boundary": Term(box.boundary, dirichlet(solution), 400),
    }
    return Problem(f"Kovasznay, Re {reynolds:g}", box, terms, solution, ((2, 30, 30, 3),))


@problem
@takes(viscosity=POSITIVE)
def taylor_green(viscosity: float = 0.01) -> Problem:
    """Decaying vortices on [0, 1] x [0, pi]^2, all fields given at the start and at the walls.

    u = -cos x sin y e^(-2 nu t), v = sin x cos y e^(-2 nu t), p = -(cos 2x + cos 2y) e^(-4 nu t)/4.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(2, 0.0, pi))
    solution = _vortices(viscosity)
    terms = {
        "interior": Term(domain.interior, lambda u, x: navier_stokes(u, x, viscosity), 3000),
        "initial": Term(domain.initial, dirichlet(solution), 400),
        "walls": Term(domain.boundary, dirichlet(solution), 400),
    }
    return Problem(
        f"Taylor-Green, viscosity {viscosity:g}", domain, terms, solution, ((3, 30, 30, 3),)
    )


@problem
@takes(viscosity=POSITIVE, guess=FINITE)
def navier_stokes_inverse(viscosity: float = 0.1, guess: float = 1.0) -> Problem:
    """Find the viscosity, and the pressure, from velocities of `taylor_green`'s vortices.

    No start and no walls: velocities at sensors, and the pressure at one place. The model has an
    attribute `viscosity`.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(2, 0.0, pi))
    solution = _vortices(viscosity)

    def interior(u: Any, x: Tensor) -> tuple[Tensor, ...]:
        return navier_stokes(u, x, u.viscosity)

    terms = {
        "interior": Term(domain.interior, interior, 3000),
        "measurements": Term(
            domain.interior, lambda u, x: (u(x) - solution(x))[:, :2].unbind(1), 500
        ),
        "pressure": Term(
            _at_place(domain, (0.0, 0.0)), lambda u, x: (u(x) - solution(x))[:, 2], 20
        ),
    }
    return InverseProblem(
        "inverse Navier-Stokes",
        domain,
        terms,
        solution,
        ((3, 30, 30, 3),),
        unknowns={"viscosity": Unknown(guess, viscosity)},
    )


@problem
@takes(reynolds=POSITIVE)
def lid_driven_cavity(reynolds: float = 100.0) -> Problem:
    """Steady flow in [0, 1]^2 under a lid that moves by 16 x^2 (1 - x)^2, p(0, 0) = 0.

    A lid of this profile leaves no jump in the corners. Source: Shen (1991).
    """
    box = Box.cube(2)

    def solution(x: Tensor) -> Tensor:
        return solve_cavity(reynolds)(x)

    def walls(u: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        s = x[:, 0]
        lid = torch.where(x[:, 1] == 1, 16 * s**2 * (1 - s) ** 2, torch.zeros_like(s))
        found = u(x)
        return found[:, 0] - lid, found[:, 1]

    def origin(n: int, generator: Any = None, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.zeros(n, 2, dtype=dtype, device=device)

    terms = {
        "interior": Term(box.interior, lambda u, x: navier_stokes(u, x, 1 / reynolds), 3000),
        "walls": Term(box.boundary, walls, 400),
        "pressure": Term(origin, lambda u, x: u(x)[:, 2], 1),
    }
    return Problem(f"lid-driven cavity, Re {reynolds:g}", box, terms, solution, ((2, 40, 40, 3),))


def _vortices(viscosity: float) -> Function:
    """The fields of `taylor_green`."""

    def solution(x: Tensor) -> Tensor:
        t, a, b = x[:, :1], x[:, 1:2], x[:, 2:3]
        decay = torch.exp(-2 * viscosity * t)
        u, v = -torch.cos(a) * torch.sin(b) * decay, torch.sin(a) * torch.cos(b) * decay
        return torch.cat([u, v, -(torch.cos(2 * a) + torch.cos(2 * b)) * decay**2 / 4], 1)

    return solution


def _at_place(domain: TimeSpace, place: Sequence[float]) -> Any:
    """A sampler of one place at any time."""

    def points(n: int, *args: Any) -> Tensor:
        x = domain.interior(n, *args)
        return torch.cat([x[:, :1], x.new_tensor(place).expand(n, -1)], 1)

    return points
