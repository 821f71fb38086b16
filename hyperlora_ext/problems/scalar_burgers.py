"""Burgers' equation with periodic random initial conditions: a task is a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor

from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.problems.spectral import solve_burgers
from hyperlora_ext.random_fields import GaussianField
from hyperlora_ext.symmetry import Symmetry
from kfac_pinn.pinn.domains import Box, TimeSpace, sobol
from kfac_pinn.settings import FLAG, FUNCTION, POSITIVE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = [
    "burgers1d",
    "burgers1d_potential",
    "burgers1d_published",
    "heat_flow",
    "primitive",
    "reflection",
    "slope",
]

DOMAIN = TimeSpace(0.0, 1.0, Box((0.0,), (1.0,), sobol))


@takes(viscosity=POSITIVE, weight=POSITIVE)
def burgers1d(viscosity: float = 0.01, weight: float = 100.0) -> Family:
    """u_t + (u^2 / 2)_x = nu u_xx for (t, x) in [0, 1]^2, periodic, u(0, x) = u0(x).

    A task is u0 at 128 points, drawn from N(0, 625 (-Laplace + 25)^-2) without its mean: rough, and
    so is the solution for a short time. Therefore

    - networks represent w = u - v only, v = S(t) u0 being the heat flow, which is `known`:
      w_t + u u_x = nu w_xx, w(0, x) = 0, with u = v + w;
    - half of the points lie in t < 1/4 (t is the square of an even variable), and residuals count
      sqrt(t) times: few points there let its noise move the mean of u and its fronts, which nothing
      later moves back;
    - points are a Sobol sequence: chance leaves gaps in the front.

    The network itself is expected to be periodic (`PeriodicFeatures((None, 1.0))`), and sees each
    task in a frame of its own (`GaussianField.centred`): the equation is the same everywhere.

    Args:
        viscosity: nu.
        weight: of the initial mean square against the equation's.

    Source: HyperLoRA for PDEs, eq. 9, which prints u_x^2 / 2 for the flux (u^2 / 2)_x; the end
    time 1 is not stated there, but is that of the same data set elsewhere.
    """
    root = math.sqrt(weight)

    def interior(w: Function, x: Tensor, task: Tensor) -> Tensor:
        value, (w_t, w_x), w_xx = taylor(w, x, weights=x.new_tensor([0.0, 1.0]))
        v, v_x = heat_flow(task, x, viscosity)
        residual = w_t + (v + value) * (v_x + w_x) - viscosity * w_xx
        return x[:, :1].sqrt() * residual

    def initial(w: Function, x: Tensor, task: Tensor) -> Tensor:
        return root * w(x)

    conditions = {
        "interior": Condition(_early_points, interior, 10_000),
        "initial": Condition(_initial_points, initial, 128),
    }

    def known(x: Tensor, task: Tensor) -> Tensor:
        return heat_flow(task.expand(len(x), -1), x, viscosity)[0]

    return _family(viscosity, GaussianField(centred=True), conditions, known)


@takes(viscosity=POSITIVE, weight=POSITIVE)
def burgers1d_published(viscosity: float = 0.01, weight: float = 10.0) -> Family:
    """The same tasks as the paper must have posed them: any network represents all of u, points are
    spread evenly, and u and u_x are equal at both ends by residuals of the initial one's weight.

    Args:
        viscosity, weight: as of `burgers1d`.
    """
    root = math.sqrt(weight)

    def interior(u: Function, x: Tensor, task: Tensor) -> Tensor:
        value, (u_t, u_x), u_xx = taylor(u, x, weights=x.new_tensor([0.0, 1.0]))
        return u_t + value * u_x - viscosity * u_xx

    def initial(u: Function, x: Tensor, task: Tensor) -> Tensor:
        return root * (u(x) - heat_flow(task, x, viscosity)[0])

    def periodic(u: Function, x: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        direction = x.new_tensor([[0.0, 1.0]])
        left, left_x = taylor(u, x, order=1, directions=direction)
        right, right_x = taylor(u, x + direction, order=1, directions=direction)
        return root * (left - right), root * (left_x - right_x)[0]

    conditions = {
        "interior": Condition(DOMAIN.interior, interior, 10_000),
        "initial": Condition(_initial_points, initial, 128),
        "periodic": Condition(_left_end, periodic, 128),
    }
    return _family(viscosity, GaussianField(), conditions)


@takes(viscosity=POSITIVE, weight=POSITIVE)
def burgers1d_potential(viscosity: float = 0.01, weight: float = 10.0) -> Family:
    """The same tasks for networks that represent a potential of u: u = psi_x.

        psi_t + psi_x^2 / 2 = nu psi_xx,   psi(0, x) = the primitive of u0 without a mean

    Integrated once, an error of the equation is one of psi of its own size, wherever it is made.
    Residuals of u itself add up on the way into a front and move it, and move the mean of u, and
    nothing later brings these back. Here u has its mean exactly, and psi is smoother than u by one
    derivative.

    Both residuals count 2 pi times, as the derivative of the lowest mode does; u0 itself is asked
    for beside its primitive, with a hundredth of the weight.

    Args:
        viscosity, weight: as of `burgers1d`.

    Source: the Hamilton-Jacobi equation of which Burgers' is the derivative; e.g. Evans, Partial
    Differential Equations, 3.4.
    """
    scale, root = 2 * math.pi, math.sqrt(weight)

    def interior(psi: Function, x: Tensor, task: Tensor) -> Tensor:
        _, (psi_t, psi_x), psi_xx = taylor(psi, x, weights=x.new_tensor([0.0, 1.0]))
        return scale * (psi_t + psi_x.square() / 2 - viscosity * psi_xx)

    def initial(psi: Function, x: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        value, (psi_x,) = taylor(psi, x, order=1, directions=x.new_tensor([[0.0, 1.0]]))
        psi0, u0 = heat_flow(primitive(task), x, viscosity)
        return root * scale * (value - psi0), root / 10 * (psi_x - u0)

    conditions = {
        "interior": Condition(DOMAIN.interior, interior, 10_000),
        "initial": Condition(_initial_points, initial, 128),
    }
    posed = _family(viscosity, GaussianField(centred=True), conditions)
    return replace(posed, observed=slope)


@takes(potential=FUNCTION)
def slope(potential: Function) -> Slope:
    """u = psi_x of a network of psi(t, x)."""
    return Slope(potential)


class Slope:
    """u = psi_x of a potential psi(t, x): a function of points (N, 2) -> (N, 1)."""

    def __init__(self, potential: Function) -> None:
        self.potential = potential

    def parameters(self) -> Iterator[Tensor]:
        """Those of the potential, if it is a network."""
        own = getattr(self.potential, "parameters", None)
        return own() if callable(own) else iter(())

    def __call__(self, x: Tensor) -> Tensor:
        """psi_x at the points x."""
        found: Tensor
        _, (found,) = taylor(self.potential, x, order=1, directions=x.new_tensor([[0.0, 1.0]]))
        return found


@takes(potential=FLAG)
def reflection(potential: bool = False) -> Symmetry:
    """u(t, x) -> -u(t, 1 - x), which solves the equation from -u0(-x): for `averaged`.

    Args:
        potential: of networks whose slope u is: they are even where u is odd.
    """

    def task(u0: Tensor) -> Tensor:
        # Values at j / p go to -j / p, which is (p - j) / p: the first stays
        return -u0.flip(-1).roll(1, -1)

    def points(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], 1 - x[:, 1:]], dim=1)

    sign = 1 if potential else -1
    return Symmetry(task, points, lambda fields: sign * fields)


def _family(
    viscosity: float,
    space: GaussianField,
    conditions: Mapping[str, Condition],
    known: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Family:
    """Grid, reference and numbers of tasks."""

    def solution(x: Tensor, task: Tensor) -> Tensor:
        return solve_burgers(task[None], viscosity).at(x)[:, None]

    def solver(tasks: Tensor) -> Tensor:
        parts = [solve_burgers(some, viscosity).on_grid(128, 101) for some in tasks.split(100)]
        return torch.cat(parts).reshape(len(tasks), len(grid), 1)

    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    grid = torch.cartesian_prod(times, torch.arange(128, dtype=torch.float64) / 128)
    return Family(
        "1D Burgers",
        DOMAIN,
        space,
        conditions,
        solution,
        grid,
        counts=(100, 20, 20),
        known=known,
        solver=solver,
    )


def heat_flow(initial: Tensor, x: Tensor, viscosity: float) -> tuple[Tensor, Tensor]:
    """v with v_t = nu v_xx and v(0, .) = u0, and v_x, both (N, 1): at t = 0 the band-limited u0.

        v(t, x) = Re sum_k 2 c_k exp(2 pi i k x - nu (2 pi k)^2 t),   u0 having coefficients c_k

    Args:
        initial: u0 of period 1, its values at j / p, one each: (N, p).
        x: points (t, x), (N, 2).
    """
    p = initial.shape[1]
    modes = torch.fft.rfft(_distinct(initial))[:, : p // 2] / p
    k = 2 * math.pi * torch.arange(p // 2, dtype=x.dtype, device=x.device)
    waves = torch.exp(torch.complex(-viscosity * k.square() * x[:, :1], k * x[:, 1:])) * modes
    waves = waves * (2 - (k == 0).to(x))  # the others come in conjugate pairs
    return waves.real.sum(1, keepdim=True), -(k * waves.imag).sum(1, keepdim=True)


def primitive(values: Tensor) -> Tensor:
    """The function without a mean whose derivative is u, on the same grid of period 1.

    Args:
        values: u without a mean at j / p, one each, (N, p); its highest mode is left out.
    """
    p = values.shape[1]
    modes = torch.fft.rfft(_distinct(values))[:, 1 : p // 2]
    k = torch.arange(1, p // 2, dtype=values.dtype, device=values.device)
    zero = modes.new_zeros(len(modes), 1)
    found = torch.fft.irfft(torch.cat([zero, modes / (2j * math.pi * k), zero], dim=1), n=p)
    return found.expand(len(values), -1)


def _distinct(values: Tensor) -> Tensor:
    """The one task that all points have, (1, p), or each its own, (N, p)."""
    return values[:1] if values.stride(0) == 0 else values


def _early_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """(t^2, x) of even (t, x)."""
    x = DOMAIN.interior(len(tasks) * n, generator, tasks.dtype).unflatten(0, (-1, n))
    return torch.stack([x[..., 0].square(), x[..., 1]], dim=-1)


def _initial_points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """(0, (j + shift) / n): an even grid, randomly shifted for each task."""
    shift = torch.rand(len(tasks), 1, generator=generator, dtype=tasks.dtype)
    x = (torch.arange(n, dtype=tasks.dtype) + shift) / n
    return torch.stack([torch.zeros_like(x), x], dim=-1)


def _left_end(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
    """(t, 0) at random times."""
    t = torch.rand(len(tasks), n, generator=generator, dtype=tasks.dtype)
    return torch.stack([t, torch.zeros_like(t)], dim=-1)
