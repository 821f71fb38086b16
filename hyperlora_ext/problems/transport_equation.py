"""Convection, diffusion and reaction on a ring: six families with exact or converged solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.problems.splitting import solve_transport
from hyperlora_ext.task_spaces import Interval, Intervals, TaskSpace
from kfac_pinn.pinn.domains import Box, TimeSpace, sobol
from kfac_pinn.settings import POSITIVE, RANGE, optional, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["LENGTH", "convection", "gaussian", "transport"]

LENGTH = 2 * math.pi
DOMAIN = TimeSpace(0.0, 1.0, Box((0.0,), (LENGTH,), sobol))
WAVES = 64  # of the corner where there is diffusion: e^(-64^2 t) is below 1e-8 for t > 0.005
WIDTH = math.pi / 2
# Jumps of the Gaussian's first and third derivatives at x = 0, over those of y^2 and y^4 - ...
SLOPE = -2 * math.exp(-2) / math.pi**2
THIRD = -2 * math.exp(-2) / (3 * math.pi**4)


@takes(
    convection=optional(RANGE), diffusion=optional(RANGE), reaction=optional(RANGE), weight=POSITIVE
)
def transport(
    convection: tuple[float, float] | None = None,
    diffusion: tuple[float, float] | None = None,
    reaction: tuple[float, float] | None = None,
    weight: float = 10.0,
) -> Family:
    """u_t + beta u_x - nu u_xx - rho u (1 - u) = 0 for t in [0, 1], x in [0, 2 pi], periodic.

    u(0, x) is the Gaussian of mean pi and deviation pi / 2. A task is the coefficients that a range
    is given for, in this order; the others are zero. The interior's residual is divided by their
    sum, so that all tasks weigh the same.

    The Gaussian's ends meet in a corner. Where x is transported, networks represent the rest
    w = u - v only, v being the linear flow of the corner, which is `known`, and have to be periodic
    (`PeriodicFeatures((None, 2 * math.pi))`). Reaction alone leaves the corner at the ends: there
    networks represent all of u and need not be periodic.

    Args:
        convection, diffusion, reaction: the trained ranges of beta, nu, rho; None: no such term.
        weight: of the initial mean square against the equation's.

    Raises:
        ValueError: without any term, or for a range that is not positive.

    Source: Cho et al., Parameterized physics-informed neural networks (2024); the end time and
    initial condition are those of its published data.
    """
    terms = Terms(*(bounds is not None for bounds in (convection, diffusion, reaction)))
    ranges = [bounds for bounds in (convection, diffusion, reaction) if bounds is not None]
    if not ranges:
        raise ValueError("transport of no range at all: give at least one term, convection=(1, 5)")
    # By their logarithm: a solution changes most where a coefficient is small
    parts = tuple(Interval(*bounds, torch.log, torch.exp) for bounds in ranges)
    space: TaskSpace = parts[0] if len(parts) == 1 else Intervals(parts)

    def interior(w: Function, x: Tensor, task: Tensor) -> Tensor:
        beta, nu, rho = terms.coefficients(task)
        value, (w_t, w_x), w_xx = taylor(w, x, weights=x.new_tensor([0.0, 1.0]))
        u = value + terms.corner(x, task) if terms.moves else value
        residual = w_t + beta * w_x - nu * w_xx - rho * u * (1 - u)
        return residual / (beta + nu + rho)

    def initial(w: Function, x: Tensor, task: Tensor) -> Tensor:
        rest = gaussian(x[:, 1:])
        rest = rest - corner_at(x[:, 1:]) if terms.moves else rest
        return math.sqrt(weight) * (w(x) - rest)

    def known(x: Tensor, task: Tensor) -> Tensor:
        return terms.corner(x, task.expand(len(x), -1))

    early = terms.diffuses or terms.reacts
    conditions = {
        "interior": Condition(_early_points if early else DOMAIN.interior, interior, 1000),
        "initial": Condition(DOMAIN.initial, initial, 100),
    }
    return Family(
        terms.name,
        DOMAIN,
        space,
        conditions,
        terms.solution,
        GRID,
        known=known if terms.moves else None,
        solver=terms.on_grid,
    )


@takes(beta=RANGE, weight=POSITIVE)
def convection(beta: tuple[float, float] = (1.0, 30.0), weight: float = 10.0) -> Family:
    """u_t + beta u_x = 0, u(0, x) = sin x, periodic in x on [0, 2 pi]: u = sin(x - beta t).

    Args:
        beta: the trained range.
        weight: of the initial mean square against the equation's.

    Source: Krishnapriyan et al., Characterizing possible failure modes of PINNs (2021).
    """

    def interior(u: Function, x: Tensor, task: Tensor) -> Tensor:
        _, (u_t, u_x) = taylor(u, x, order=1)
        return (u_t + task * u_x) / task

    def initial(u: Function, x: Tensor, task: Tensor) -> Tensor:
        return math.sqrt(weight) * (u(x) - torch.sin(x[:, 1:]))

    def solution(x: Tensor, task: Tensor) -> Tensor:
        return torch.sin(x[:, 1:] - task[..., :1] * x[:, :1])

    conditions = {
        "interior": Condition(DOMAIN.interior, interior, 1000),
        "initial": Condition(DOMAIN.initial, initial, 100),
    }
    return Family("convection of a sine", DOMAIN, Interval(*beta), conditions, solution, GRID)


@dataclass(frozen=True)
class Terms:
    """Which terms an equation has, and what is known of its solutions.

    Attributes:
        convects, diffuses, reacts: whether beta, nu, rho are numbers of the task.
    """

    convects: bool
    diffuses: bool
    reacts: bool

    @cached_property
    def name(self) -> str:
        """As in the source."""
        names = ("convection", self.convects), ("diffusion", self.diffuses)
        if self.reacts and not self.convects and self.diffuses:
            return "reaction-diffusion"
        return "-".join(n for n, has in (*names, ("reaction", self.reacts)) if has)

    @property
    def moves(self) -> bool:
        """Whether there is more than reaction, which acts at each x by itself."""
        return self.convects or self.diffuses

    def coefficients(self, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """beta, nu, rho (..., 1) of tasks (..., p)."""
        columns = iter(task.split(1, dim=-1))
        zero = torch.zeros_like(task[..., :1])
        has = (self.convects, self.diffuses, self.reacts)
        beta, nu, rho = (next(columns) if present else zero for present in has)
        return beta, nu, rho

    def corner(self, x: Tensor, task: Tensor) -> Tensor:
        """v (N, 1) of points (t, x): the corner moved by beta t and smoothed by nu t."""
        beta, nu, _ = self.coefficients(task)
        place, time = x[:, 1:] - beta * x[:, :1], x[:, :1]
        if not self.diffuses:
            return corner_at(place)
        k = torch.arange(1, WAVES + 1, dtype=x.dtype, device=x.device)
        amplitudes = 4 * SLOPE / k**2 - 48 * THIRD / k**4
        waves = amplitudes * torch.exp(-nu * k**2 * time) * torch.cos(k * place)
        # At the start itself the series, cut off, would leave a rounded corner
        return torch.where(time > 0, waves.sum(1, keepdim=True), corner_at(place))

    def solution(self, x: Tensor, task: Tensor) -> Tensor:
        """u (N, 1) at points (N, 2): a formula, or the splitting where there is none."""
        beta, nu, rho = self.coefficients(task)
        if not self.moves:
            return logistic(gaussian(x[:, 1:]), rho * x[:, :1])
        if not self.diffuses and not self.reacts:
            return gaussian(x[:, 1:] - beta * x[:, :1])
        if not self.diffuses:
            # Along characteristics, each value reacts by itself
            return logistic(gaussian(x[:, 1:] - beta * x[:, :1]), rho * x[:, :1])
        if not self.reacts:
            return self.corner(x, task.expand(len(x), -1)) + smooth_flow(x, beta, nu)
        solved = solve_transport(gaussian, torch.cat([beta, nu, rho])[None])
        found = solved.at(torch.cat([x[:, :1], x[:, 1:] / LENGTH], dim=1))[:, None]
        # The start is known; its corner has more modes than the splitting
        return torch.where(x[:, :1] > 0, found, gaussian(x[:, 1:]))

    @property
    def on_grid(self) -> Callable[[Tensor], Tensor] | None:
        """The splitting for many tasks at once, where it is needed."""
        if not (self.diffuses and self.reacts):
            return None

        def solver(tasks: Tensor) -> Tensor:
            solved = solve_transport(gaussian, torch.cat(self.coefficients(tasks), dim=1))
            return solved.on_grid(128, 101).reshape(len(tasks), -1, 1)

        return solver


def gaussian(x: Tensor) -> Tensor:
    """The initial values: exp(-(x - pi)^2 / (2 (pi / 2)^2)), continued with period 2 pi."""
    return torch.exp(-_centred(x).square() / (2 * WIDTH**2))


def corner_at(x: Tensor) -> Tensor:
    """A polynomial of mean zero with the Gaussian's jumps at x = 0, up to the third derivative.

    SLOPE (y^2 - mean) + THIRD (y^4 - 2 pi^2 y^2 - mean), y = x - pi within a period:
    sum_k (4 SLOPE / k^2 - 48 THIRD / k^4) cos k x.
    """
    y2 = _centred(x).square()
    fourth = y2.square() - 2 * math.pi**2 * y2 + math.pi**4 * 7 / 15
    return SLOPE * (y2 - math.pi**2 / 3) + THIRD * fourth


def smooth_flow(x: Tensor, beta: Tensor, nu: Tensor, points: int = 512) -> Tensor:
    """The linear flow of the Gaussian without its corner, whose modes fall like k^-6, (N, 1)."""
    nodes = LENGTH * torch.arange(points, dtype=torch.float64, device=x.device) / points
    modes = torch.fft.rfft(gaussian(nodes) - corner_at(nodes))[: points // 2] / points
    k = torch.arange(points // 2, dtype=torch.float64, device=x.device)
    modes = modes * torch.where(k > 0, 2.0, 1.0)

    def values(some: Tensor) -> Tensor:
        angle, decay = k * (some[:, 1:] - beta * some[:, :1]), -nu * k**2 * some[:, :1]
        return (modes * torch.exp(torch.complex(decay, angle))).real.sum(1, keepdim=True)

    return torch.cat([values(some) for some in x.double().split(2048)]).to(x)


def logistic(start: Tensor, time: Tensor) -> Tensor:
    """u' = u (1 - u) from `start`, after so long a time."""
    return start / (start + (1 - start) * torch.exp(-time))


def _centred(x: Tensor) -> Tensor:
    """x - pi within one period, in [-pi, pi)."""
    return torch.remainder(x, LENGTH) - math.pi


def _early_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """(t^2, x) of even (t, x): diffusion and reaction are fastest at the start."""
    x = DOMAIN.interior(len(tasks) * n, generator, tasks.dtype).unflatten(0, (-1, n))
    return torch.stack([x[..., 0].square(), x[..., 1]], dim=-1)


GRID = torch.cartesian_prod(
    torch.linspace(0, 1, 101, dtype=torch.float64),
    LENGTH * torch.arange(128, dtype=torch.float64) / 128,
)
