"""How far to go along a direction: the second half of every optimizer.

A search is called as search(objective, linearization, direction) and returns a `Step`. The
objective evaluates the loss at theta + displacement by the user's closure, without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from kfac_pinn.jacobian.check import names_of, refuse_changes
from kfac_pinn.jacobian.closure import Linearization, evaluate
from kfac_pinn.jacobian.losses import Residuals
from kfac_pinn.linalg import pinv_solve

__all__ = [
    "Armijo",
    "FixedStep",
    "GridSearch",
    "Marquardt",
    "NormConstraint",
    "Objective",
    "QuadraticModel",
    "Search",
    "Step",
    "promised",
]


@dataclass
class Step:
    """What a search decided.

    Attributes:
        displacement: theta_new - theta, shape (P,); None: stay.
        loss: at the new parameters, nan where it was not evaluated.
        info: entries for `optimizer.stats`; `reason` says why a step was shortened or rejected.
    """

    displacement: Tensor | None
    loss: float = math.nan
    info: dict[str, float | int | str] = field(default_factory=dict)


class Objective:
    """L(theta + displacement) by the user's closure; counts its evaluations.

    Args:
        closure: returns residuals.
        parameters: moved for an evaluation, put back by `restore`.
        names: of the parameters, for errors.

    Raises (when called):
        RuntimeError: for a closure that changes a parameter.
    """

    def __init__(
        self,
        closure: Callable[[], Residuals],
        parameters: Sequence[Tensor],
        names: Sequence[str] | None = None,
    ) -> None:
        self.closure, self.parameters = closure, list(parameters)
        self.names = names_of(self.parameters, names)
        self.origin = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.evaluations = 0
        self.gradients = False  # whether the closure calls autograd itself

    def __call__(self, displacement: Tensor) -> float:
        """The loss there; inf where it is not finite. Leaves the parameters there."""
        self.move(displacement)
        there = [p.detach().clone() for p in self.parameters]
        self.evaluations += 1
        loss = float(evaluate(self.closure, self.gradients))
        refuse_changes(dict(zip(self.parameters, self.names, strict=True)), there)
        return loss if math.isfinite(loss) else math.inf

    def move(self, displacement: Tensor) -> None:
        """theta <- origin + displacement."""
        self._write(self.origin + displacement)

    def restore(self) -> None:
        """theta <- origin, bit by bit."""
        self._write(self.origin)

    @torch.no_grad()
    def _write(self, flat: Tensor) -> None:
        parts = flat.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            # .data: graphs that the linearisation keeps do not mind (`AutogradJacobian`)
            parameter.data.copy_(part.view_as(parameter))


class Search(Protocol):
    """Chooses a step along a direction."""

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """The step to take; `direction` (P,) is already scaled by the groups' lr."""


@dataclass(frozen=True)
class FixedStep:
    """theta <- theta + lr * direction, without looking."""

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """The direction as it is."""
        return Step(direction, info={"step_length": 1.0})


@dataclass(frozen=True)
class GridSearch:
    """The best of the step lengths 2^-30, ..., 2^0 (Mueller & Zeinhofer 2023), if any decreases.

    Args:
        lengths: the grid.
    """

    lengths: Sequence[float] = tuple(2.0**k for k in range(-30, 1))

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Evaluates the whole grid."""
        losses = [objective(length * direction) for length in self.lengths]
        best = min(range(len(losses)), key=losses.__getitem__)
        if not losses[best] < linearization.loss:
            return Step(None, info={"reason": "no step length of the grid decreases the loss"})
        length = self.lengths[best]
        return Step(length * direction, losses[best], {"step_length": length})


@dataclass(frozen=True)
class Armijo:
    """Halve (by `factor`) until L falls by at least c times its linear prediction (Armijo 1966).

    Args:
        c: the fraction of the slope that must be realised, in (0, 1).
        factor: of one shortening, in (0, 1).
        trials: at most.
    """

    c: float = 1e-4
    factor: float = 0.5
    trials: int = 30

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Backtracks from the full direction."""
        slope = float(linearization.gradient @ direction)
        if slope >= 0:
            return Step(None, info={"reason": "the direction does not descend"})
        length = 1.0
        for _ in range(self.trials):
            loss = objective(length * direction)
            if loss <= linearization.loss + self.c * length * slope:
                reason = {"reason": "shortened by backtracking"} if length < 1 else {}
                return Step(length * direction, loss, {"step_length": length, **reason})
            length *= self.factor
        return Step(None, info={"reason": "no backtracked step decreases the loss"})


@dataclass(frozen=True)
class NormConstraint:
    """Shorten the direction so that ||lr * direction||^2 <= bound (Goldshlager et al. 2024).

    Args:
        bound: of the squared length of a step.
    """

    bound: float = 1e-3

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Never evaluates the loss."""
        norm = float(direction.norm())
        length = min(1.0, math.sqrt(self.bound) / norm) if norm else 1.0
        reason = {"reason": "shortened to the norm constraint"} if length < 1 else {}
        return Step(length * direction, info={"step_length": length, **reason})


def promised(linearization: Linearization, p: Tensor) -> float:
    """-(grad L.p + 1/2 ||J p||^2), the decrease of L that Gauss-Newton promises for a step p."""
    return -float(linearization.gradient @ p + 0.5 * (linearization @ p).square().sum())


class QuadraticModel:
    """The damped Gauss-Newton model on the span of a few directions.

        m(c) = L + g.p + 1/2 p.(J^T J + diag(lambda)) p,    p = sum_i c_i d_i,   g = grad L

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
        self.gramian = self.images.T @ self.images
        self.damping = (damping * directions) @ directions.T

    def minimiser(self) -> Tensor:
        """c, shape (m,): (D J^T J D^T + D lambda D^T) c = -D g, of least norm where singular."""
        matrix = self.gramian + self.damping
        scale = matrix.diagonal().clamp_min(torch.finfo(matrix.dtype).tiny).rsqrt()
        scaled = scale[:, None] * matrix * scale
        return scale * pinv_solve(scaled, -scale * self.slope)

    def decrease(self, coefficients: Tensor) -> float:
        """L - m(c) without damping: what Gauss-Newton promises."""
        return -float(self.slope @ coefficients + 0.5 * coefficients @ self.gramian @ coefficients)


@dataclass(frozen=True)
class Marquardt:
    """Levenberg-Marquardt: damping falls while the model is trusted, rises where it fails.

    With rho the actual over the predicted decrease of a step,

        lambda <- lambda / factor if rho > high,  lambda factor if rho < low,  else lambda.

    Args:
        low, high: the ratios between which lambda stays.
        factor: of one change.
        start: the first lambda, relative to the curvature along the gradient.
        least: the smallest lambda.

    Source: Marquardt (1963); Nocedal & Wright, section 10.3.
    """

    low: float = 0.25
    high: float = 0.75
    factor: float = 3.0
    start: float = 1e-4
    least: float = 1e-16

    def first(self, linearization: Linearization) -> float:
        """start ||J g||^2 / ||g||^2 with g = grad L."""
        g = linearization.gradient
        curvature = (linearization @ g).square().sum() / g.square().sum()
        return max(self.start * float(curvature), self.least)

    def __call__(self, damping: float, ratio: float) -> float:
        """The next lambda; a ratio that is not a number counts as failure."""
        if ratio > self.high:
            return max(damping / self.factor, self.least)
        return damping if ratio >= self.low else damping * self.factor
