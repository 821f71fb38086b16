"""Steps whose damping is chosen by what they achieve: the decomposed model and its ratio control.

The model of the loss at theta + p is m(p) = 1/2 ||J p + r||^2 + e.p (e: the excess gradient of
convex losses, zero for least squares). One singular value decomposition J = U diag(S) V^T answers
every question about its damped minimisers

    p(lambda) = -(J^T J + lambda I)^-1 (J^T r + e).

J^T J and J J^T cost half of the digits, and serve as long as lambda is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn.linalg import sum_of_squares

__all__ = [
    "Decomposition",
    "GramianDecomposition",
    "KernelDecomposition",
    "RatioControl",
    "TargetSchedule",
    "Trial",
]


class Decomposition:
    """The quadratic model of one step, diagonal in the singular basis of J.

    With b = S U^T r + V^T e and e' = e - V V^T e:  p(lambda) = -V b / (S^2 + lambda) - e' / lambda.

    Args:
        J: shape (R, P); a wide one is first reduced by a QR decomposition of J^T.
        r: shape (R,).
        excess: e, shape (P,), or None.

    Attributes:
        S: singular values, descending, shape (min(R, P),).
        b: the gradient in the right singular basis, same shape.
        outside: e', the part of the gradient in the null space of J, shape (P,).
    """

    rounding = torch.finfo(torch.float64).eps ** 2  # the least lambda / S_1^2 with a meaning

    def __init__(self, J: Tensor, r: Tensor, excess: Tensor | None = None) -> None:
        wide = J.shape[0] < J.shape[1]
        Q, core = torch.linalg.qr(J.mT) if wide else (None, J.mT)
        W, self.S, Ut = torch.linalg.svd(core, full_matrices=False)
        self._factors = [W] if Q is None else [Q, W]  # V = Q W: their product is never needed
        self._embedding: Callable[[Tensor], Tensor] | None = None
        self.b = self.S * (Ut @ r)
        self.outside = J.new_zeros(J.shape[1])
        if excess is not None:
            inside = self._lower(excess)
            self.b = self.b + inside
            if wide:  # else V spans everything, and the difference would be rounding / lambda
                self.outside = excess - self._lift(inside)

    def step(self, damping: float) -> Tensor:
        """p(lambda), shape (P,)."""
        p = -self._lift(self.b / (self.S.square() + damping)) - self.outside / damping
        return p if self._embedding is None else self._embedding(p)

    def within(self, embedding: Callable[[Tensor], Tensor]) -> Decomposition:
        """The same model as one of steps in a larger space; the map must keep lengths."""
        self._embedding = embedding
        return self

    def norm(self, damping: Tensor) -> Tensor:
        """||p(lambda)|| for dampings of any shape; falls as lambda rises."""
        inside = self.b / (self.S.square() + damping[..., None])
        return (inside.square().sum(-1) + self.outside.square().sum() / damping.square()).sqrt()

    def decrease(self, damping: float) -> float:
        """m(0) - m(p(lambda)) = sum b^2 (S^2/2 + lambda) / (S^2 + lambda)^2 + ||e'||^2 / lambda."""
        curvature = self.S.square()
        inside = (self.b / (curvature + damping)).square() * (curvature / 2 + damping)
        return float(inside.sum() + self.outside.square().sum() / damping)

    def effective_parameters(self, damping: float) -> float:
        """sum S^2 / (S^2 + lambda), the trace of J (J^T J + lambda I)^-1 J^T.

        How many of the R residuals the step fits freely: near R the points are interpolated,
        whatever the equation. Source: Golub, Heath & Wahba (1979), generalised cross-validation.
        """
        return float((1 / (1 + damping / self.S.square().clamp_min(1e-300))).sum())

    def damping(self, radius: float, rounds: int = 6) -> float:
        """lambda with ||p(lambda)|| = radius, by dividing an interval of log lambda in 64, again.

        From ||p|| = radius follows lambda <= ||(b, e')|| / radius. Below `rounding` S_1^2 the
        decomposition has no digits, so that a radius beyond the step there returns that damping.
        """
        tiny = torch.finfo(torch.float64).tiny
        slope = float((self.b.square().sum() + self.outside.square().sum()).sqrt())
        low = math.log(self.rounding * float(self.S[0]) ** 2 + tiny)
        high = max(low, math.log(slope + tiny) - math.log(radius + tiny))
        for _ in range(rounds):
            grid = torch.linspace(low, high, 65, dtype=torch.float64)
            longer = int((self.norm(grid.exp().to(self.S)) > radius).sum())  # norms fall
            low, high = float(grid[max(longer - 1, 0)]), float(grid[min(longer, 64)])
        return math.exp(high)

    def _lift(self, y: Tensor) -> Tensor:
        """V y."""
        for factor in reversed(self._factors):
            y = factor @ y
        return y

    def _lower(self, p: Tensor) -> Tensor:
        """V^T p."""
        for factor in self._factors:
            p = factor.mT @ p
        return p


class GramianDecomposition(Decomposition):
    """The same model from J^T J = V diag(S^2) V^T, for dampings far above eps S_1^2.

    Args:
        gramian: J^T J, shape (P, P).
        gradient: J^T r + e, shape (P,).
    """

    rounding = 1e4 * torch.finfo(torch.float64).eps

    def __init__(self, gramian: Tensor, gradient: Tensor) -> None:
        values, vectors = torch.linalg.eigh(gramian)
        self.S, V = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
        self.b, self.outside = V.mT @ gradient, torch.zeros_like(gradient)
        self._factors, self._embedding = [V], None


class KernelDecomposition(Decomposition):
    """The same model of a wide J from J J^T = U diag(S^2) U^T, for dampings far above eps S_1^2.

    V = J^T U / S is never formed: a quarter of the operations of a QR decomposition of J^T.

    Args:
        J: shape (R, P), R <= P.
        r: shape (R,).
        excess: e, shape (P,), or None.
    """

    rounding = GramianDecomposition.rounding

    def __init__(self, J: Tensor, r: Tensor, excess: Tensor | None = None) -> None:
        values, vectors = torch.linalg.eigh(sum_of_squares([J.mT]))
        noise = torch.finfo(J.dtype).eps * values[-1]
        U, self.S = vectors.flip(1), values.flip(0).clamp_min(noise).sqrt()
        self._factors, self._embedding = [J.mT, U / self.S], None
        self.b, self.outside = self.S * (U.mT @ r), J.new_zeros(J.shape[1])
        if excess is not None:
            inside = self._lower(excess)
            self.b, self.outside = self.b + inside, excess - self._lift(inside)


@dataclass(frozen=True)
class Trial:
    """A step that was tried.

    Attributes:
        displacement: of the parameters, shape (P,).
        damping: lambda.
        radius: ||p(lambda)||.
        loss: at the new parameters, inf where it is not finite.
        ratio: (decrease of the loss) / (decrease of the model).
    """

    displacement: Tensor
    damping: float
    radius: float
    loss: float
    ratio: float


Attempt: TypeAlias = Callable[[float], Trial]


@dataclass(frozen=True)
class RatioControl:
    """The longest step whose decrease ratio reaches a target: bracketed, then bisected.

    Hitting the target matters: the next point of a coarse grid of radii may have a ratio five
    times higher, and high ratios are what the low target is to avoid (docs/notes_gauss_newton.md).

    Args:
        factor: between neighbouring radii while the target is being bracketed.
        expansions: of the radius at most, either way, in one step.
        bisections: of the bracket, in log radius.
    """

    factor: float = 1.5
    expansions: int = 3
    bisections: int = 4

    def __call__(self, attempt: Attempt, radius: float, target: float) -> Trial:
        """The longest trial that meets the target; the shortest tried, if none does.

        Args:
            attempt: radius -> Trial.
            radius: where to begin.
            target: of the ratio.
        """
        met, missed = self._bracket(attempt, attempt(radius), target)
        if met is None or missed is None:
            return met or missed  # type: ignore[return-value]
        for _ in range(self.bisections):
            trial = attempt(math.sqrt(met.radius * missed.radius))
            met, missed = (trial, missed) if trial.ratio >= target else (met, trial)
        return met

    def _bracket(
        self, attempt: Attempt, trial: Trial, target: float
    ) -> tuple[Trial | None, Trial | None]:
        """Neighbours that met and missed the target; None for one that is out of reach."""
        grow = trial.ratio >= target
        factor = self.factor if grow else 1 / self.factor
        for _ in range(self.expansions):
            following = attempt(trial.radius * factor)
            if (following.ratio >= target) != grow:
                return (trial, following) if grow else (following, trial)
            trial = following
        return (trial, None) if grow else (None, trial)


@dataclass(frozen=True)
class TargetSchedule:
    """A low target ratio until the damping has passed its minimum, then a high one.

    A low ratio keeps the steps so long that the damping falls, step by step, to where the problem
    is well conditioned; greedy ratios stay where it is not. How low it must be differs (fronts want
    less), so that the low target goes down after each step that did not lower the damping, and up
    again after each that did. Every step at ratio rho leaves about 1 - rho of the loss: hence the
    bound below, and a high target near one.

    The minimum counts as passed when `patience` steps brought no lower lambda / sigma_1^2; or
    `impatience` steps, once that is below `rounding`, the unit of sigma_1^2's last digit.

    Args:
        least, low: bounds of the first target; it begins with the upper one.
        high: the second target.
        change: factor of the first target after a step without a lower damping.
        patience, impatience: numbers of steps.
        rounding: relative to sigma_1^2.

    Source: the two stages are those of DSGNAR (2607.02194); the rest was measured here:
    docs/notes_gauss_newton.md.
    """

    least: float = 0.06
    low: float = 0.15
    high: float = 0.85
    change: float = 0.9
    patience: int = 60
    impatience: int = 12
    rounding: float = torch.finfo(torch.float64).eps

    def following(self, target: float, progressed: bool) -> float:
        """The first stage's next target, after a step that did or did not lower the damping."""
        proposed = target / self.change if progressed else target * self.change
        return min(max(proposed, self.least), self.low)

    def passed(self, lowest: float, waited: int) -> bool:
        """Whether the minimum is passed.

        Args:
            lowest: the lowest lambda / sigma_1^2 so far.
            waited: steps since it was found.
        """
        return waited >= (self.impatience if lowest < self.rounding else self.patience)
