"""Helmholtz's equation with sources of every wave number, on the square."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.task_spaces import Interval
from kfac_pinn.pinn.domains import Box
from kfac_pinn.settings import POSITIVE, RANGE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["helmholtz"]


@takes(waves=RANGE, weight=POSITIVE)
def helmholtz(waves: tuple[float, float] = (1.0, 3.0), weight: float = 10.0) -> Family:
    """u_xx + u_yy + u = q on [-1, 1]^2, u given on the boundary; u = sin(a pi x) sin(a pi y).

    A task is a; the interior's residual is divided by the largest q, 2 a^2 pi^2.

    Args:
        waves: the trained range of a.
        weight: of the boundary's mean square against the equation's.

    Source: Cho et al., Parameterized physics-informed neural networks (2024); Wang et al. (2021).
    """
    domain = Box((-1.0, -1.0), (1.0, 1.0))

    def solution(x: Tensor, task: Tensor) -> Tensor:
        angles = math.pi * task[..., :1] * x
        return torch.sin(angles[:, :1]) * torch.sin(angles[:, 1:])

    def interior(u: Function, x: Tensor, task: Tensor) -> Tensor:
        value, _, laplace = taylor(u, x, weights=x.new_ones(2))
        size = 2 * (math.pi * task).square()
        return (laplace + value - (1 - size) * solution(x, task)) / size

    def boundary(u: Function, x: Tensor, task: Tensor) -> Tensor:
        return math.sqrt(weight) * (u(x) - solution(x, task))

    line = torch.linspace(-1, 1, 101, dtype=torch.float64)
    conditions = {
        "interior": Condition(domain.interior, interior, 1000),
        "boundary": Condition(domain.boundary, boundary, 200),
    }
    grid = torch.cartesian_prod(line, line)
    return Family("Helmholtz", domain, Interval(*waves), conditions, solution, grid)
