"""Burgers' equation with a front, and its exact solution by Cole and Hopf."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet
from kfac_pinn.pinn.domains import Box, TimeSpace, together
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import POSITIVE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["burgers", "burgers_2d", "cole_hopf"]


@problem
@takes(viscosity=POSITIVE)
def burgers(viscosity: float = 0.01 / pi) -> Problem:
    """u_t + u u_x = nu u_xx on [0, 1] x [-1, 1], u(0, x) = -sin(pi x), u(t, -1) = u(t, 1) = 0.

    Points are (t, x). The viscosity nu = 0.01/pi is the usual benchmark (Raissi et al., 2019); some
    published results have nu = 0.01, which is easier.
    """
    domain = TimeSpace(0.0, 1.0, Box((-1.0,), (1.0,)))

    def interior(u: Function, x: Tensor) -> Tensor:
        value, (u_t, u_x), u_xx = taylor(u, x, weights=x.new_tensor([0.0, 1.0]))
        return u_t + value * u_x - viscosity * u_xx

    def conditions(u: Function, x: Tensor) -> Tensor:
        return u(x) + torch.sin(pi * x[:, 1:2])  # the initial values vanish at the ends too

    return Problem(
        f"Burgers, viscosity {viscosity:.4g}",
        domain,
        {
            "interior": Term(domain.interior, interior, 9000),
            "conditions": Term(together(domain.boundary, domain.initial), conditions, 1000),
        },
        lambda x: cole_hopf(x, viscosity),
        networks=((2, 20, 20, 20, 1),),
    )


@problem
@takes(viscosity=POSITIVE)
def burgers_2d(viscosity: float = 0.004) -> Problem:
    """u_t + u u_x + u u_y = nu Laplace u for t <= 1 on [0, 1]^2, u = 1 / (1 + e^((x+y-t) / 2 nu)).

    Start and walls are given. A front of width nu that moves along the diagonal.
    """
    domain = TimeSpace(0.0, 1.0, Box.cube(2))

    def solution(x: Tensor) -> Tensor:
        return torch.sigmoid((x[:, :1] - x[:, 1:2] - x[:, 2:3]) / (2 * viscosity))

    def interior(u: Function, x: Tensor) -> Tensor:
        value, (u_t, u_x, u_y), laplace = taylor(u, x, weights=[0.0, 1.0, 1.0])
        return u_t + value * (u_x + u_y) - viscosity * laplace

    terms = {
        "interior": Term(domain.interior, interior, 8000),
        "initial": Term(domain.initial, dirichlet(solution), 500),
        "walls": Term(domain.boundary, dirichlet(solution), 1000),
    }
    name = f"2+1d Burgers, viscosity {viscosity:g}"
    return Problem(name, domain, terms, solution, ((3, 30, 30, 30, 1),))


@takes(viscosity=POSITIVE)
def cole_hopf(x: Tensor, viscosity: float) -> Tensor:
    """The exact solution at points x = (t, x), (N, 2) -> (N, 1), to 1e-14 in float64.

    nu is the viscosity. With phi(y) = exp(-cos(pi y) / (2 pi nu)) and y(z) = x - z sqrt(4 nu t),

        u = -int sin(pi y) phi(y) exp(-z^2) dz / int phi(y) exp(-z^2) dz.

    Both integrals by the trapezoidal rule on the same nodes, which for such integrands converges
    geometrically (Trefethen & Weideman, 2014). Source: Cole (1951), Hopf (1950).
    """
    # phi varies by exp(1 / (pi nu)): beyond this |z| the integrand is below exp(-36) of its peak.
    end = (1 / (pi * viscosity) + 36) ** 0.5
    z = torch.linspace(-end, end, int(2 * end / 0.12), dtype=x.dtype, device=x.device)
    y = x[:, 1:2] - z * torch.sqrt(4 * viscosity * x[:, 0:1])
    weight = torch.softmax(-torch.cos(pi * y) / (2 * pi * viscosity) - z * z, dim=1)
    return -(weight * torch.sin(pi * y)).sum(1, keepdim=True)
