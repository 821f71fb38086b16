"""Elliptic problems: Helmholtz, a clamped plate, a corner, a cube with mixed conditions."""

from __future__ import annotations

from functools import partial
from math import pi

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet, neumann
from kfac_pinn.pinn.domains import Box, together
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import PROBLEMS, problem
from kfac_pinn.settings import FINITE, takes, whole
from kfac_pinn.taylor_mode.operators import bilaplacian, laplacian, taylor

__all__ = ["biharmonic_plate", "helmholtz", "l_shape", "mixed_cube"]


@problem
@takes(first=whole(1), second=whole(1), k=FINITE)
def helmholtz(first: int = 1, second: int = 4, k: float = 1.0) -> Problem:
    """u_xx + u_yy + k^2 u = q on [-1, 1]^2, u = sin(a1 pi x) sin(a2 pi y), zero on the boundary."""
    box = Box.cube(2, -1.0, 1.0)

    def solution(x: Tensor) -> Tensor:
        return torch.sin(first * pi * x[:, :1]) * torch.sin(second * pi * x[:, 1:2])

    factor = k**2 - pi**2 * (first**2 + second**2)

    def interior(u: Function, x: Tensor) -> Tensor:
        value, _, laplace = taylor(u, x, weights=[1.0, 1.0])
        return laplace + k**2 * value - factor * solution(x)

    terms = {
        "interior": Term(box.interior, interior, 4000),
        "boundary": Term(box.boundary, dirichlet(), 400),
    }
    name = f"Helmholtz ({first}, {second}), k = {k:g}"
    return Problem(name, box, terms, solution, ((2, 30, 30, 30, 1),))


for _case in ((2, 2, 1.0), (4, 4, 1.0), (6, 6, 1.0), (1, 4, 10.0)):
    PROBLEMS[f"helmholtz_{_case[0]}_{_case[1]}_k{_case[2]:g}"] = partial(helmholtz, *_case)


@problem
def biharmonic_plate() -> Problem:
    """Laplace^2 u = f on [0, 1]^2, u = du/dn = 0 on the boundary: u = sin^2 pi x sin^2 pi y."""
    box = Box.cube(2)

    def solution(x: Tensor) -> Tensor:
        return ((1 - torch.cos(2 * pi * x[:, :1])) * (1 - torch.cos(2 * pi * x[:, 1:2]))) / 4

    def source(x: Tensor) -> Tensor:
        c, e = torch.cos(2 * pi * x[:, :1]), torch.cos(2 * pi * x[:, 1:2])
        return -4 * pi**4 * (c + e - 4 * c * e)

    terms = {
        "interior": Term(box.interior, lambda u, x: bilaplacian(u, x) - source(x), 3000),
        "boundary": Term(box.boundary, dirichlet(), 400),
        "clamped": Term(box.boundary, neumann(box), 400),
    }
    return Problem("biharmonic plate, clamped", box, terms, solution, ((2, 30, 30, 1),))


@problem
def l_shape() -> Problem:
    """Laplace u = 0 on [-1, 1]^2 without [0, 1] x [-1, 0], u = r^(2/3) sin(2 theta / 3).

    The gradient is infinite at the corner, like r^(-1/3).
    """
    domain = Box.cube(2, -1.0, 1.0) - Box((0.0, -1.0), (1.0, 0.0))

    def solution(x: Tensor) -> Tensor:
        # from the middle of the three quadrants: atan2 jumps in the one that is left out
        theta = torch.atan2(-x[:, :1] - x[:, 1:2], x[:, 1:2] - x[:, :1])
        radius = (x * x).sum(1, keepdim=True)
        return radius ** (1 / 3) * torch.sin(2 / 3 * (3 * pi / 4 + theta))

    terms = {
        "interior": Term(domain.interior, laplacian, 3000),
        "boundary": Term(domain.boundary, dirichlet(solution), 400),
    }
    return Problem("L-shape, corner singularity", domain, terms, solution, ((2, 30, 30, 1),))


@problem
def mixed_cube() -> Problem:
    """-Laplace u = f on [0, 1]^3: u given at z = 0 and 1, du/dn on the other faces.

    u = exp(x) sin(y + z).
    """
    box = Box.cube(3)

    def solution(x: Tensor) -> Tensor:
        return torch.exp(x[:, :1]) * torch.sin(x[:, 1:2] + x[:, 2:3])

    def flux(x: Tensor) -> Tensor:
        y = x[:, 1:2] + x[:, 2:3]
        slopes = torch.cat([torch.sin(y), torch.cos(y), torch.cos(y)], 1) * torch.exp(x[:, :1])
        return (slopes * box.normal(x)).sum(1, keepdim=True)

    sides = together(*(box.face(axis, end) for axis in (0, 1) for end in (0, 1)))
    terms = {
        "interior": Term(box.interior, lambda u, x: laplacian(u, x) + solution(x), 3000),
        "ends": Term(together(box.face(2, 0), box.face(2, 1)), dirichlet(solution), 300),
        "sides": Term(sides, neumann(box, flux), 600),
    }
    return Problem("Poisson on a cube, mixed conditions", box, terms, solution, ((3, 30, 30, 1),))
