"""The quadratic model of the loss: what a step promises, and how much of it came true.

With g = grad L, C the curvature (J^T J unless an optimizer says otherwise), p a step,

    m(p) = L + g.p + 1/2 p.C p,          predicted decrease  L - m(p) = -(g.p + 1/2 p.C p),
    ratio = (L(theta) - L(theta + p)) / (L - m(p)).

A damped step p(lambda) minimises m(p) + 1/2 p.Lambda p, Lambda = diag(lambda); the damping is no
part of what is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import pinv_solve
from kfac_pinn.linalg.krylov import Operator
from kfac_pinn.search.step import Step

__all__ = [
    "DampedModel",
    "QuadraticModel",
    "Trial",
    "decrease_of_solution",
    "decrease_ratio",
    "predicted_decrease",
    "squared_length",
]


def predicted_decrease(linearization: Linearization, p: Tensor) -> float:
    """-(g.p + 1/2 p.C p) of a step p (P,), C = J^T J and the ridge: one product with J."""
    return -float(linearization.gradient @ p + 0.5 * squared_length(linearization, p))


def squared_length(linearization: Linearization, p: Tensor) -> Tensor:
    """p.C p = ||J p||^2 + sum_i w_i p_i^2, w the ridge."""
    # ||J p||^2, not p.(J^T J p): half the work, and never negative
    square = (linearization @ p).square().sum()
    return square if linearization.ridge is None else square + linearization.ridge @ p.square()


def decrease_of_solution(p: Tensor, damping: float | Tensor, value: float) -> float:
    """The same without a product, where value = g.p + 1/2 p.(C + Lambda) p is known from the solve.

    1/2 p.Lambda p - value. Where (C + Lambda) p = -g holds exactly, value = 1/2 g.p.
    """
    return 0.5 * float(p @ (damping * p)) - value


def decrease_ratio(before: float, after: float, predicted: float) -> float:
    """(before - after) / predicted; -inf, a failure, where one of them has no meaning.

    That is a loss that is not finite, and a prediction that is not a decrease.
    """
    # A prediction that is no decrease would turn the sign: two wrongs would count as a success
    ratio = (before - after) / predicted if predicted > 0 else -math.inf
    return ratio if math.isfinite(ratio) else -math.inf


@dataclass(frozen=True)
class Trial:
    """A damped step that was tried.

    Attributes:
        step: p(lambda) scaled by lr, the decrease it predicts and the loss that it found.
        damping: lambda.
        ratio: (decrease of the loss) / (predicted decrease); -inf for a failure.
        radius: ||p(lambda)||, nan where nobody asks.
    """

    step: Step
    damping: float | Tensor
    ratio: float
    radius: float = math.nan


@dataclass(frozen=True)
class DampedModel:
    """The model of one linearisation and its damped minimisers, p(lambda) ~ -(C + Lambda)^-1 g.

    Args:
        linearization: gives g and J.
        solve: lambda -> p(lambda); a `Step` may carry the decrease it predicts and statistics.
        curvature: v -> C v; None: J^T J.
    """

    linearization: Linearization
    solve: Callable[[Any], Step | Tensor]
    curvature: Operator | None = None

    def step(self, damping: float | Tensor) -> Step:
        """p(lambda), with the decrease that it predicts; lambda a number, or one for each (P,)."""
        found = self.solve(damping)
        step = Step(found) if isinstance(found, Tensor) else found
        # What a solve knows of its own decrease costs no product with J
        if step.displacement is None or not math.isnan(step.predicted):
            return step
        return replace(step, predicted=self.decrease(step.displacement))

    def decrease(self, p: Tensor) -> float:
        """L - m(p) of any p, shape (P,)."""
        if self.curvature is None:
            return predicted_decrease(self.linearization, p)
        return -float(self.linearization.gradient @ p + 0.5 * p @ self.curvature(p))


class QuadraticModel:
    """The damped Gauss-Newton model on the span of a few directions, eq. (20).

        m(c) = L + g.p + 1/2 p.(J^T J + diag(lambda)) p,    p = sum_i c_i d_i

    Args:
        linearization: gives L, g and the exact products J d_i.
        directions: d_i, shape (m, P).
        damping: lambda, a number or a vector (P,).
    """

    def __init__(
        self, linearization: Linearization, directions: Tensor, damping: float | Tensor
    ) -> None:
        self.directions = directions
        self.images = linearization @ directions.T  # (R, m)
        self.slope = directions @ linearization.gradient
        ridge = 0.0 if linearization.ridge is None else linearization.ridge
        self.ridge = (ridge * directions) @ directions.T
        self.damping = (damping * directions) @ directions.T

    def minimiser(self) -> Tensor:
        """c, shape (m,): (D J^T J D^T + D lambda D^T) c = -D g, of least norm where singular.

        Eq. (21) of docs/mathematics.md.
        """
        matrix = self.images.T @ self.images + self.ridge + self.damping
        # Unit diagonal first: directions of very different lengths would leave no digits
        scale = matrix.diagonal().clamp_min(torch.finfo(matrix.dtype).tiny).rsqrt()
        scaled = scale[:, None] * matrix * scale
        return scale * pinv_solve(scaled, -scale * self.slope)

    def decrease(self, coefficients: Tensor) -> float:
        """L - m(c) without damping: the predicted decrease of p."""
        c = coefficients
        square = (self.images @ c).square().sum() + c @ (self.ridge @ c)
        return -float(self.slope @ c + 0.5 * square)
