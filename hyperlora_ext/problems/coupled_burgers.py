"""Coupled Burgers' equations in two dimensions: a front of width 8 nu, known exactly."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.problems.navier_stokes import faces
from hyperlora_ext.task_spaces import Interval
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.settings import FLAG, POSITIVE, RANGE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["burgers2d", "front", "front_points", "in_front", "step_function"]

DOMAIN = TimeSpace(0.0, 1.0, Box.cube(2))


@takes(viscosity=RANGE, weight=POSITIVE, as_printed=FLAG)
def burgers2d(
    viscosity: tuple[float, float] = (1e-4, 1e-3), weight: float = 10.0, as_printed: bool = False
) -> Family:
    """Fields (u, v) of (t, x, y) in [0, 1]^3, a task (nu,), embedded by 1 / nu.

        u_t + u u_x + v u_y = nu (u_xx + u_yy),   v_t + u v_x + v v_y = nu (v_xx + v_yy).

    The equations are multiplied by 32 nu: derivatives across the front are of size 1 / (32 nu).
    Half of the points lie on the front, which uniform ones miss.

    Args:
        viscosity: the trained range.
        weight: of the initial and boundary mean squares against the equations'.
        as_printed: use the solution as the paper prints it, with its signs exchanged. It does not
            solve the equations (residual up to 4.6 at nu = 1e-3); kept to show that.

    Source: HyperLoRA for PDEs, eqs. 10 and 11, the latter corrected.
    """
    root, sign = math.sqrt(weight), 1.0 if as_printed else -1.0

    def solution(x: Tensor, task: Tensor) -> Tensor:
        return front(x, task, sign)

    def interior(w: Function, x: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        value, (w_t, w_x, w_y), laplace = taylor(w, x, weights=x.new_tensor([0.0, 1.0, 1.0]))
        residual = w_t + value[:, :1] * w_x + value[:, 1:] * w_y - task * laplace
        return tuple((32 * task * residual).unbind(1))

    def given(w: Function, x: Tensor, task: Tensor) -> tuple[Tensor, ...]:
        return tuple((root * (w(x) - solution(x, task))).unbind(1))

    conditions = {
        "interior": Condition(front_points, interior, 10_000),
        "initial": Condition(_initial_points, given, 500),
        "boundary": Condition(_boundary_points, given, 400),
    }
    # 1 / nu to either side by a twentieth of its range: a quarter would lead to negative nu.
    space = Interval(*viscosity, torch.reciprocal, torch.reciprocal, margin=0.05)
    return Family("2D Burgers", DOMAIN, space, conditions, solution, _grid(), front=in_front)


def front(x: Tensor, task: Tensor, sign: float = -1.0) -> Tensor:
    """The exact fields (u, v), (N, 2): u = 3/4 - s, v = 3/4 + s, a front along y = x + t / 4.

    s = 1 / (4 (1 + exp(z))), z = (-4 x + 4 y - t) / (32 nu); `task` is nu, (1,) or (N, 1).
    """
    s = torch.sigmoid(-_coordinate(x, task)) / 4
    return torch.stack([0.75 + sign * s, 0.75 - sign * s], dim=1)


def step_function(x: Tensor) -> Tensor:
    """The inviscid limit, no equation solved: the baseline every error should be held against."""
    # A front far thinner than any distance between points, and no division by zero
    return front(x, x.new_tensor([1e-9]))


@takes(width=POSITIVE)
def in_front(x: Tensor, task: Tensor, width: float = 4.0) -> Tensor:
    """Which points have |z| < width, bools (N,): where the error of a front shows."""
    return _coordinate(x, task).abs() < width


def front_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """Points (t, x, y), half uniform, half within |z| < 6 of the front, (T, n, 3)."""
    t, x, y, z = _uniform(4, n, tasks, generator)
    inner = x * (1 - t / 4)  # the front stands in the square above these x
    near = torch.stack([t, inner, inner + t / 4 + _offset(z, tasks)], dim=-1)
    return _alternate(torch.stack([t, x, y], dim=-1), near.clamp(0, 1))


def _initial_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """At t = 0, half uniform, half on the front."""
    x, y, z = _uniform(3, n, tasks, generator)
    zero = torch.zeros_like(x)
    near = torch.stack([zero, x, x + _offset(z, tasks)], dim=-1)
    return _alternate(torch.stack([zero, x, y], dim=-1), near.clamp(0, 1))


def _boundary_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """On the four faces, half uniform, half where the front meets the faces x = 0 and y = 1."""
    t, z = _uniform(2, n, tasks, generator)
    uniform = torch.cat([t[..., None], faces(n, tasks, generator)], dim=-1)
    zero, one, offset = torch.zeros_like(t), torch.ones_like(t), _offset(z, tasks)
    left = torch.stack([t, zero, t / 4 + offset], dim=-1)
    top = torch.stack([t, 1 - t / 4 - offset, one], dim=-1)
    # Four points in turn, so that each of the four faces gets some.
    return _alternate(uniform, _alternate(left, top).clamp(0, 1), turns=4)


def _offset(unit: Tensor, tasks: Tensor) -> Tensor:
    """The distance in y from the front to the points with z uniform in [-6, 6]."""
    return 8 * tasks * (12 * unit - 6)


def _alternate(one: Tensor, other: Tensor, turns: int = 1) -> Tensor:
    """(T, n, 3) from both, in turns of so many points."""
    turn = torch.arange(one.shape[1]) % (2 * turns) < turns
    return torch.where(turn[:, None], one, other)


def _uniform(count: int, n: int, tasks: Tensor, generator: Generator | None) -> tuple[Tensor, ...]:
    """So many independent uniform (T, n)."""
    return torch.rand(count, len(tasks), n, generator=generator, dtype=tasks.dtype).unbind(0)


def _coordinate(x: Tensor, task: Tensor) -> Tensor:
    """z = (-4 x + 4 y - t) / (32 nu), (N,)."""
    return (-4 * x[:, 1] + 4 * x[:, 2] - x[:, 0]) / (32 * task[..., 0])


def _grid() -> Tensor:
    """101 x 101 places at eight times, such that the front passes evenly between the places."""
    times = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    line = torch.linspace(0, 1, 101, dtype=torch.float64)
    return torch.cartesian_prod(times, line, line)
