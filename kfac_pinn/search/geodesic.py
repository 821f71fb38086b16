"""Geodesic acceleration: a step that bends with the residual.

The Gauss-Newton step v follows the tangent of the manifold of residuals. To second order the
parameters should move on (Transtrum & Sethna 2012, arXiv:1201.5885, eq. 14)

    theta + v + 1/2 a,     a = -(J^T J + lambda I)^-1 J^T r_vv,

with r_vv = d^2/dt^2 r(theta + t v), the second directional derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.batches import closures_of
from kfac_pinn.jacobian.closure import terms_at
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.losses import LeastSquares
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.settings import NOT_NEGATIVE, POSITIVE, optional

__all__ = ["Geodesic", "second_derivative"]


@dataclass(frozen=True)
class Geodesic:
    """The acceleration a where 2 |a| <= alpha |v|; where it is larger the expansion is not to be
    trusted, and the step stays straight: zero.
    Eq. (32) of docs/mathematics.md.

    It costs one closure call and one solve more.

    Args:
        alpha: 0.75 is recommended by the source.
        h: of the finite difference for r_vv; eps^(1/3) by default, which balances truncation and
            rounding at about 1e-5 (float64) and 1e-2 (float32) of |r|.

    Source: Transtrum & Sethna (2012), sections 2 and 3.
    """

    alpha: float = 0.75
    h: float | None = None

    def __post_init__(self) -> None:
        settings.check(self, alpha=NOT_NEGATIVE, h=optional(POSITIVE))

    def __call__(
        self,
        objective: Objective,
        linearization: Linearization,
        velocity: Tensor,
        pull_back: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, float]:
        """a, shape (P,), and 2 |a| / |v|.

        Args:
            velocity: v, shape (P,).
            pull_back: u -> (J^T J + lambda I)^-1 J^T u.

        Raises:
            ValueError: for a convex loss, which has no residual to bend.
        """
        acceleration = -pull_back(second_derivative(objective, linearization, velocity, self.h))
        strength = float(2 * acceleration.norm() / velocity.norm())
        # written so that a strength that is not finite leaves the path straight
        trusted = strength <= self.alpha
        return acceleration if trusted else torch.zeros_like(velocity), strength


def second_derivative(
    objective: Objective, linearization: Linearization, v: Tensor, h: float | None = None
) -> Tensor:
    """r_vv ~ 2/h ((r(theta + h v) - r) / h - J v), shape (R,), by one closure call.

    A finite difference, since a closure need not be differentiable twice in the parameters. The
    error is h/3 r_vvv + O(eps |r| / h^2).

    Raises:
        ValueError: for a convex loss, which has no residual to bend.

    Source: Transtrum & Sethna (2012), eq. 21.
    """
    # Truncation is proportional to h, rounding to eps / h^2: equal at h = eps^(1/3)
    h = torch.finfo(v.dtype).eps ** (1 / 3) if h is None else h
    moved = residual_at(objective, linearization, h * v)
    # J v is known exactly: a central difference would cost one evaluation more
    return 2 / h * ((moved - linearization.residual) / h - linearization @ v)


@torch.no_grad()
def residual_at(objective: Objective, linearization: Linearization, displacement: Tensor) -> Tensor:
    """r(theta + displacement), stacked and scaled, shape (R,)."""
    objective.move(displacement)
    objective.evaluations += 1
    with objective.processes.together():
        closures = closures_of(objective.closure)
        terms = [t for each in closures for t in terms_at(each, objective.gradients)]
    objective.restore()
    if other := [t.name for t in terms if not isinstance(t, LeastSquares)]:
        raise ValueError(
            f"geodesic acceleration needs residuals, but {', '.join(other)} has a convex loss; "
            "construct the optimizer with acceleration=None"
        )
    pairs = zip(terms, cycle(linearization.totals), strict=False)  # batch after batch
    return linearization.whole(torch.cat([t.residual / N**0.5 for t, N in pairs]))  # type: ignore[union-attr]
