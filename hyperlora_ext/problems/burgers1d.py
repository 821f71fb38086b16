"""Burgers' equation with periodic random initial conditions: a task is a function."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from hyperlora_ext.family import Condition, Family, Function, uniform_points
from hyperlora_ext.problems.spectral import solve_burgers
from hyperlora_ext.spaces import GaussianField
from kfac_pinn.domains import Box, TimeSpace, sobol
from kfac_pinn.operators import taylor

__all__ = ["burgers1d", "interpolate"]


def burgers1d(viscosity: float = 0.01, soft: bool = False, weight: float = 10.0) -> Family:
    """u_t + (u^2 / 2)_x = nu u_xx for (t, x) in [0, 1]^2, periodic, u(0, x) = u0(x).

    A task is u0 at 128 points, drawn from N(0, 625 (-Laplace + 25)^-2) without its mean. Points are
    a Sobol sequence: chance leaves gaps in the front.

    Args:
        viscosity: nu.
        soft: impose u and u_x equal at both ends by residuals, as the paper must have; otherwise
            the network itself is expected to be periodic (`PeriodicFeatures((None, 1.0))`), and
            hypernetworks use that the equation is the same everywhere: `GaussianField.centred`.
        weight: of the initial (and periodicity) mean square against the equation's.

    Source: HyperLoRA for PDEs, eq. 9, which prints u_x^2 / 2 for the flux (u^2 / 2)_x; the end
    time 1 is not stated there, but is that of the same data set elsewhere.
    """
    domain, root = TimeSpace(0.0, 1.0, Box((0.0,), (1.0,), sobol)), math.sqrt(weight)

    def interior(u: Function, x: Tensor, task: Tensor) -> Tensor:
        value, (u_t, u_x), u_xx = taylor(u, x, weights=x.new_tensor([0.0, 1.0]))
        return u_t + value * u_x - viscosity * u_xx

    def initial(u: Function, x: Tensor, task: Tensor) -> Tensor:
        return root * (u(x)[:, 0] - interpolate(task, x[:, 1]))

    def periodic(u: Function, x: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        direction = x.new_tensor([[0.0, 1.0]])
        left, left_x = taylor(u, x, order=1, directions=direction)
        right, right_x = taylor(u, x + direction, order=1, directions=direction)
        return root * (left - right), root * (left_x - right_x)[0]

    conditions = {
        "interior": Condition(uniform_points(domain), interior, 10_000),
        "initial": Condition(_initial_points, initial, 128),
    }
    if soft:
        conditions["periodic"] = Condition(_left_end, periodic, 128)

    def solution(x: Tensor, task: Tensor) -> Tensor:
        return solve_burgers(task[None], viscosity).at(x)[:, None]

    grid = torch.cartesian_prod(
        torch.linspace(0, 1, 101, dtype=torch.float64), torch.arange(128, dtype=torch.float64) / 128
    )
    space = GaussianField(centred=not soft)
    return Family("1D Burgers", domain, space, conditions, solution, grid, counts=(100, 20, 20))


def interpolate(values: Tensor, x: Tensor) -> Tensor:
    """The band-limited function of period 1 with values (N, p) at j / p, one each, at x (N,)."""
    p = values.shape[1]
    modes = torch.fft.rfft(values)[:, : p // 2] / p
    k = torch.arange(1, p // 2, dtype=x.dtype, device=x.device)
    phase = 2 * math.pi * k * x[:, None]
    waves = 2 * (modes[:, 1:].real * torch.cos(phase) - modes[:, 1:].imag * torch.sin(phase))
    return modes[:, 0].real + waves.sum(1)


def _initial_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """(0, (j + shift) / n): an even grid, randomly shifted for each task."""
    shift = torch.rand(len(tasks), 1, generator=generator, dtype=tasks.dtype).to(tasks.device)
    x = (torch.arange(n, dtype=tasks.dtype, device=tasks.device) + shift) / n
    return torch.stack([torch.zeros_like(x), x], dim=-1)


def _left_end(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """(t, 0) at random times."""
    t = torch.rand(len(tasks), n, generator=generator, dtype=tasks.dtype).to(tasks.device)
    return torch.stack([t, torch.zeros_like(t)], dim=-1)
