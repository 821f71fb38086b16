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

from torch import Tensor

from kfac_pinn.search.damping import DampingLaw, Towards
from kfac_pinn.search.model import decrease_ratio

__all__ = ["OneEvaluation", "Trial"]


@dataclass(frozen=True)
class Trial:
    """A step that was taken before its loss was known, theta = origin + displacement.

    Attributes:
        origin, displacement: shape (P,).
        loss, slope: L and grad L . displacement at the origin.
        predicted: the decrease of the loss that the model promised for the displacement.
        retreats: how often it was shortened so far.
    """

    origin: Tensor
    displacement: Tensor
    loss: float
    slope: float
    predicted: float
    retreats: int = 0

    def ratio(self, loss: float) -> float:
        """(actual decrease) / (predicted decrease), from the loss after the step."""
        return decrease_ratio(self.loss, loss, self.predicted)

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
class OneEvaluation:
    """Take the step; judge it by the next loss; go back if it rose. Instead of any search.

    Every call of `optimizer.step` evaluates the closure once. The damping (or, where there is none,
    the step length) follows the ratio of actual to predicted decrease towards a target at which few
    steps fail; a search by its losses would pay for every failure with a call.

    Keep the points for several steps: losses at different points say little about a step. After
    `retreats` shortenings the parameters are back where they were, and that loss is found anew.

    Args:
        law: (damping, ratio) -> damping.
        retreats: how often a step is shortened before it is given up.
        shortest, longest: what is left of a step that is shortened, at least and at most.

    Measured: docs/notes_one_evaluation.md.
    """

    law: DampingLaw = Towards()
    retreats: int = 2
    shortest: float = 0.1
    longest: float = 0.5

    def shortened(self, trial: Trial, loss: float) -> Trial | None:
        """What to try next after a trial that raised the loss; None: nothing, be back at its origin.

        The minimum of the parabola with the loss and slope at the origin and the loss after it.
        """
        if trial.retreats >= self.retreats:
            return None
        rise = loss - trial.loss - trial.slope
        s = -trial.slope / (2 * rise) if math.isfinite(rise) and rise > 0 else 0.0
        return trial.scaled(min(max(s, self.shortest), self.longest))
