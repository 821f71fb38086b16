"""The deep Ritz form of Poisson's equation: an energy to minimise instead of a residual."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from kfac_pinn.jacobian.losses import ConvexLoss
from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import POSITIVE, takes
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["poisson_ritz"]


@problem
@takes(penalty=POSITIVE)
def poisson_ritz(penalty: float = 500.0) -> Problem:
    """-Laplace u = 2 pi^2 sin(pi x) sin(pi y) on [0, 1]^2, u = 0 on the boundary, as a minimum:

        mean over the square of 1/2 |grad u|^2 - f u   +   penalty/2 mean over the boundary of u^2

    A convex loss that is linear in u, and not bounded below on a fixed set of points (nothing
    holds a large u between them): draw new points every step, and more of them than parameters.
    The penalty biases u by O(1/penalty), at 500 by about one percent of u*.

    Args:
        penalty: beta > 0.

    Source: E & Yu (2018), "The deep Ritz method".
    """
    box = Box.cube(2)

    def solution(x: Tensor) -> Tensor:
        return torch.sin(pi * x[:, 0:1]) * torch.sin(pi * x[:, 1:2])

    def energy(u: Function, x: Tensor) -> ConvexLoss:
        value, (u_x, u_y) = taylor(u, x, order=1)
        source = 2 * pi**2 * solution(x)[:, 0]
        return ConvexLoss(
            (value, u_x, u_y), lambda v, p, q: (p * p + q * q) / 2 - source * v, "energy"
        )

    def boundary(u: Function, x: Tensor) -> Tensor:
        return penalty**0.5 * u(x)

    terms = {
        "energy": Term(box.interior, energy, 2000),
        "boundary": Term(box.boundary, boundary, 400),
    }
    return Problem("2d Poisson, deep Ritz", box, terms, solution, ((2, 16, 1),), resample_every=1)
