"""One evaluation a step: take it, and judge it by the loss that the next linearisation finds.

A search evaluates the closure several times a step. A training loop without a closure cannot, and
a framework that logs every evaluation should not have to. Then a step is taken unseen; the next
one begins with the loss there. If it fell, the ratio of actual to predicted decrease says how bold
the next step may be. If it rose, the parameters go back along the step, to where a parabola through
what is known has its minimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.capture.data import same_data
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.damping import DampingLaw, Towards
from kfac_pinn.search.model import decrease_ratio, predicted_decrease
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import BELOW_ONE, at_least, having, whole

__all__ = ["OneEvaluation", "Trial", "Unseen"]

TOWARDS = Towards()  # `Marquardt` would fail every third step, which goes back here
DEVIATIONS = 2.0  # a loss on other points that is higher by more standard errors has risen
TRUSTED = 0.5  # of ||r||: the change up to which the linearisation is good enough backwards


class Verdict(NamedTuple):
    """Whether a step failed, and the ratio of actual to predicted decrease to go by."""

    failed: bool
    ratio: float


@dataclass(frozen=True)
class Trial:
    """A step that was taken before its loss was known, theta = origin + displacement.

    Attributes:
        origin, displacement: shape (P,).
        loss, slope: L and grad L . displacement at the origin.
        predicted: the decrease of the loss that the model promised for the displacement.
        retreats: how often it was shortened so far.
        noise: the standard error of the loss, had its points been drawn at random.
        data: what tells its points from others (`Linearization.data`).
    """

    origin: Tensor
    displacement: Tensor
    loss: float
    slope: float
    predicted: float
    retreats: int = 0
    noise: float = 0.0
    data: Tensor | None = None

    @classmethod
    def of(cls, step: Step, linearization: Linearization, origin: Tensor) -> Trial | None:
        """What is remembered of a step; nothing of one that stays or promises nothing."""
        if step.displacement is None or not step.is_finite or not step.predicted > 0:
            return None
        slope = float(linearization.gradient @ step.displacement)
        return cls(
            origin,
            step.displacement,
            linearization.loss,
            slope,
            step.predicted,
            noise=standard_error(linearization),
            data=linearization.data,
        )

    def ratio(self, loss: float) -> float:
        """(actual decrease) / (predicted decrease), from the loss after the step."""
        return decrease_ratio(self.loss, loss, self.predicted)

    def verdict(self, there: Linearization | None) -> Verdict:
        """On the step, by the linearisation after it; None: the loss there is not finite.

        Losses at other points differ by chance. Where the loss has not risen by more than that,
        the step counts as a success, and the next one is bolder: so the damping comes down until
        steps do fail. The ratio itself is mostly chance, and damping by it never comes down.
        """
        if there is None:
            return Verdict(True, -math.inf)
        if self._at_same_points(there):
            # Not `>`: a loss that is nan has failed
            return Verdict(not there.loss <= self.loss, self.ratio(there.loss))
        rose = there.loss > self.loss + DEVIATIONS * self.noise
        return Verdict(rose and not self._was_as_high(there), 1.0)

    def _at_same_points(self, there: Linearization) -> bool:
        if self.data is None or there.data is None:
            return True
        return same_data(self.data, there.data)

    def _was_as_high(self, there: Linearization) -> bool:
        """Whether the new points are to blame: on them, 1/2 ||r - J p||^2 at the origin is no less.

        Only of a step that changed r little, of which this says something.
        """
        change = there @ self.displacement
        small = bool(change.norm() < TRUSTED * there.residual.norm())
        return small and predicted_decrease(there, -self.displacement) <= 0

    def scaled(self, s: float) -> Trial:
        """The trial of s times its displacement: -predicted = slope s + curvature s^2 / 2."""
        curvature = -2 * (self.predicted + self.slope)
        return replace(
            self,
            displacement=s * self.displacement,
            slope=s * self.slope,
            predicted=-(s * self.slope + s * s * curvature / 2),
            retreats=self.retreats + 1,
        )


@dataclass(frozen=True)
class Unseen:
    """What an optimizer remembers between steps that it judges by the next loss.

    Attributes:
        trial: the last step, until it is judged.
        reach: the longest step length, where lengths follow from the ratio.
    """

    trial: Trial | None = None
    reach: float = 1.0


@dataclass(frozen=True)
class OneEvaluation:
    """Take the step; judge it by the next loss; go back if it rose. Instead of a search.

    Every call of `optimizer.step` evaluates the closure once, and `step` without a closure goes by
    this rule anyway. The damping (where there is none, the step length) follows the ratio of actual
    to predicted decrease towards a target at which few steps fail.

    Points may be new in every step, at a cost: a loss at other points has risen only if it did so
    by more than its standard error explains (`Trial.verdict`). After `retreats` shortenings the
    parameters are back where they were, and the loss there is found anew.

    Args:
        law: (damping, ratio) -> damping.
        retreats: how often a step is shortened before it is given up.
        shortest, longest: what is left of a step that is shortened, at least and at most.

    Measured: docs/design_notes.md.
    """

    evaluates: ClassVar[bool] = False
    law: DampingLaw = TOWARDS
    # Each retreat costs an evaluation; after two the parabola was wrong twice
    retreats: int = 2
    # Bounds of a cubic or quadratic backtracking: Dennis & Schnabel (1983), section 6.3.2
    shortest: float = 0.1
    longest: float = 0.5

    def __post_init__(self) -> None:
        settings.check(self, law=having("__call__", "Marquardt()"), retreats=whole(0))
        settings.check(self, shortest=BELOW_ONE, longest=BELOW_ONE)
        settings.check(self, longest=at_least(self.shortest))

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """The direction as it is, as a `Search`; never evaluates the loss."""
        return Step(direction, length=1.0)

    def shortened(self, trial: Trial, loss: float) -> Trial | None:
        """What to try next after a trial that raised the loss; None: go back to its origin.

        The minimum of the parabola with the loss and slope at the origin and the loss after it.
        """
        if trial.retreats >= self.retreats:
            return None
        # Above its tangent: half the curvature of the parabola, if it is finite
        rise = loss - trial.loss - trial.slope
        s = -trial.slope / (2 * rise) if math.isfinite(rise) and rise > 0 else 0.0
        return trial.scaled(min(max(s, self.shortest), self.longest))

    def back(self, trial: Trial, loss: float, here: Tensor) -> tuple[Trial | None, Step]:
        """The way back from here, after a trial that raised the loss, and the trial it leads to."""
        shorter = self.shortened(trial, loss)
        left = torch.zeros_like(here) if shorter is None else shorter.displacement
        # Back at the origin the loss is known; on the way it is found by the next linearisation
        known = trial.loss if shorter is None else math.nan
        step = Step(trial.origin + left - here, known, outcome=Outcome.WENT_BACK)
        return shorter, step.noting(ratio=trial.ratio(loss))


def standard_error(linearization: Linearization) -> float:
    """Of the loss as a mean over points: sqrt(sum_k var(r_k^2 / 2) / N_k)."""
    parts = linearization.split(linearization.residual.square() / 2)  # r_k^2 / (2 N_k)
    return math.sqrt(sum(len(part) * float(part.var(correction=0)) for part in parts))
