"""Kovasznay flow: steady Navier-Stokes behind a grid, for Reynolds numbers 20 to 100."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.task_spaces import Interval
from kfac_pinn.pinn.domains import Box
from kfac_pinn.settings import POSITIVE, RANGE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["faces", "kovasznay", "kovasznay_flow"]


@takes(reynolds=RANGE, weight=POSITIVE)
def kovasznay(reynolds: tuple[float, float] = (20.0, 100.0), weight: float = 10.0) -> Family:
    """Fields (u, v, p) of (x, y) in [0, 1]^2, a task (Re,); all three given on the boundary.

        u_x + v_y = 0,
        u u_x + v u_y = -p_x + (u_xx + u_yy) / Re,
        u v_x + v v_y = -p_y + (v_xx + v_yy) / Re.

    Args:
        reynolds: the trained range.
        weight: of the boundary's mean square against the equations'; the paper's sums of squares
            have 1.

    Source: HyperLoRA for PDEs, eqs. 12 and 13 (which fields are imposed is not stated there).
    """
    domain = Box.cube(2)

    def interior(u: Function, x: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        value, (dx, dy), laplace = taylor(u, x, weights=x.new_ones(2))
        along, across = value[:, 0], value[:, 1]
        convection = along[:, None] * dx[:, :2] + across[:, None] * dy[:, :2]
        pressure = torch.stack([dx[:, 2], dy[:, 2]], dim=1)
        momentum = convection + pressure - laplace[:, :2] / task
        return dx[:, 0] + dy[:, 1], momentum[:, 0], momentum[:, 1]

    def boundary(u: Function, x: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        return tuple((math.sqrt(weight) * (u(x) - kovasznay_flow(x, task))).unbind(1))

    conditions = {
        "interior": Condition(domain.interior, interior, 2601),
        "boundary": Condition(faces, boundary, 320),
    }
    space = Interval(*reynolds)
    return Family("Kovasznay flow", domain, space, conditions, kovasznay_flow, _grid())


def kovasznay_flow(x: Tensor, task: Tensor) -> Tensor:
    """The exact fields (u, v, p), (N, 3), with p = 0 at x = 0; `task` is Re, (1,) or (N, 1).

    u = 1 - e^(l x) cos 2 pi y, v = l e^(l x) sin(2 pi y) / 2 pi, p = (1 - e^(2 l x)) / 2,
    l = Re / 2 - sqrt(Re^2 / 4 + 4 pi^2).
    """
    half = task[..., 0] / 2
    rate = half - (half.square() + 4 * math.pi**2).sqrt()
    decay, angle = torch.exp(rate * x[:, 0]), 2 * math.pi * x[:, 1]
    u = 1 - decay * torch.cos(angle)
    v = rate * decay * torch.sin(angle) / (2 * math.pi)
    return torch.stack([u, v, (1 - decay.square()) / 2], dim=1)


def faces(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """n points a task on the edge of the unit square, shared equally among the faces."""
    along = torch.rand(len(tasks), n, generator=generator, dtype=tasks.dtype)
    face = torch.arange(n) % 4
    end = (face % 2).to(along).expand_as(along)
    horizontal = (face < 2).expand_as(along)
    return torch.stack([along.where(horizontal, end), end.where(horizontal, along)], dim=-1)


def _grid() -> Tensor:
    """The 101 x 101 points, ends included, that the paper measures on."""
    line = torch.linspace(0, 1, 101, dtype=torch.float64)
    return torch.cartesian_prod(line, line)
