"""The heat equation u_t = kappa Laplace u on [0, 1] x [0, 1]^d, forward and inverse.

Forward: the two problems of Dangel, Mueller & Zeinhofer (2024). Points are (t, x).
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from kfac_pinn.pinn.domains import Box, TimeSpace, together
from kfac_pinn.pinn.problem import Function, InverseProblem, Problem, Term, Unknown
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import FUNCTION, MODULE, POSITIVE, many, takes, whole
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["WithDiffusivity", "heat", "heat_1d", "heat_4d", "inverse_heat"]

DIFFUSIVITY = 0.25  # of the published heat equations


def heat_residual(u: Function, x: Tensor, diffusivity: float | Tensor) -> Tensor:
    """u_t - kappa Laplace u, shape (N, 1), from one pass with weights 0 for t and 1 for x."""
    weights = x.new_tensor([0.0] + [1.0] * (x.shape[1] - 1))
    _, first, laplacian = taylor(u, x, weights=weights)
    return first[0] - diffusivity * laplacian


@takes(dim=whole(1), solution=FUNCTION, sizes=many(whole(1), 2))
def heat(
    dim: int, solution: Callable[[Any], Any], sizes: tuple[int, int], **published: Any
) -> Problem:
    """u_t = 1/4 Laplace u with initial and boundary values from the solution.

    Args:
        dim: d, the dimension of space.
        solution: u*, (N, 1 + d) -> (N, 1).
        sizes: numbers of interior points and of conditions, half boundary, half initial.
        **published: further fields of `Problem`.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(dim))

    def interior(u: Function, x: Tensor) -> Tensor:
        return heat_residual(u, x, DIFFUSIVITY)

    def conditions(u: Function, x: Tensor) -> Tensor:
        return u(x) - solution(x)

    terms = {
        "interior": Term(domain.interior, interior, sizes[0]),
        "conditions": Term(together(domain.boundary, domain.initial), conditions, sizes[1]),
    }
    return Problem(f"{dim}+1d heat", domain, terms, solution, **published)


@problem
def heat_1d() -> Problem:
    """u* = exp(-pi^2 t / 4) sin(pi x): u(0, x) = sin(pi x), zero at the ends; one fixed batch."""

    def solution(x: Tensor) -> Tensor:
        return torch.exp(-(pi**2) * DIFFUSIVITY * x[:, 0:1]) * torch.sin(pi * x[:, 1:2])

    networks = ((2, 64, 1), (2, 64, 64, 48, 48, 1), (2, 256, 256, 128, 128, 1))
    return heat(1, solution, (900, 120), networks=networks)


@problem
def heat_4d() -> Problem:
    """u* = exp(-t) sum_i sin(2 x_i)."""

    def solution(x: Tensor) -> Tensor:
        return torch.exp(-x[:, 0:1]) * torch.sin(2 * x[:, 1:]).sum(1, keepdim=True)

    networks = ((5, 64, 1), (5, 64, 64, 48, 48, 1), (5, 256, 256, 128, 128, 1))
    return heat(4, solution, (3000, 500), networks=networks, resample_every=100)


class WithDiffusivity(nn.Module):
    """A network together with the coefficient kappa = exp(log_kappa) > 0 to be found.

    Args:
        network: u, (N, 2) -> (N, 1).
        start: the first guess of kappa.

    Raises:
        TypeError, ValueError: for a network that is no module, or a guess that is not positive.
    """

    def __init__(self, network: nn.Module, start: float = 1.0) -> None:
        super().__init__()
        MODULE("WithDiffusivity: network", network)
        POSITIVE("WithDiffusivity: start", start)
        self.network = network
        self.log_kappa = nn.Parameter(torch.tensor(start).log())

    @property
    def diffusivity(self) -> Tensor:
        """kappa, a scalar."""
        return self.log_kappa.exp()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@problem
@takes(sensors=whole(1))
def inverse_heat(sensors: int = 100) -> Problem:
    """Find u and kappa in u_t = kappa u_xx from measurements of u* of `heat_1d`; kappa is 1/4.

    The model needs an attribute `diffusivity` (`WithDiffusivity(network)` has it). Measurements
    of so many sensors are exact and lie anywhere in [0, 1]^2; there are no initial or boundary
    conditions.
    """
    forward = heat_1d()
    domain, solution = forward.domain, forward.solution
    assert solution is not None

    def interior(u: Any, x: Tensor) -> Tensor:
        return heat_residual(u, x, u.diffusivity)

    def measurements(u: Function, x: Tensor) -> Tensor:
        return u(x) - solution(x)

    terms = {
        "interior": Term(domain.interior, interior, 900),
        "measurements": Term(domain.interior, measurements, sensors),
    }
    unknowns = {"diffusivity": Unknown(1.0, DIFFUSIVITY)}
    networks = ((2, 64, 1),)
    return InverseProblem("inverse heat", domain, terms, solution, networks, unknowns=unknowns)
