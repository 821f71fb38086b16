"""A line search that looks at slopes too: what quasi-Newton updates learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import INSIDE, at_least, whole

__all__ = ["StrongWolfe"]

LONGER = 2.0, 10.0  # of one lengthening, at least and at most
WITHIN = 0.1  # of a bracket: how far from its ends a trial stays
TINY = 1e-12  # relative width of a bracket in which losses are the same to rounding


class Trial(NamedTuple):
    """A length along the direction, the loss f there, and its slope f' along the direction."""

    length: float
    loss: float
    slope: float


@dataclass(frozen=True)
class StrongWolfe:
    """A length t at which the loss has fallen enough, and its slope flattened enough.

        f(t) <= f(0) + c t f'(0),     |f'(t)| <= flatness |f'(0)|

    It lengthens until a minimum is bracketed and then goes to that of the cubic through both ends.
    A trial costs an evaluation, and a gradient where the loss has fallen enough. y.s > 0 follows,
    which updates of an inverse Hessian need.

    Args:
        c: the fraction of the slope that must be realised, in (0, 1).
        flatness: the fraction of the slope that may be left, from c to below 1.
        trials: at most; then the best of them, if it is better than none.

    Source: Nocedal & Wright (2006), algorithms 3.5 and 3.6.
    """

    c: float = 1e-4  # Nocedal & Wright, section 3.1, as the next
    flatness: float = 0.9
    trials: int = 25

    def __post_init__(self) -> None:
        settings.check(self, c=INSIDE, flatness=INSIDE, trials=whole(1))
        settings.check(self, flatness=at_least(self.c))

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """From the full direction."""
        start = Trial(0.0, linearization.loss, float(linearization.gradient @ direction))
        if start.slope >= 0:
            return Step.stay(Outcome.ASCENT)
        low, high, length = start, None, 1.0
        for number in range(self.trials):
            there = self._at(length, objective, direction, start, low)
            if there.loss >= low.loss or not math.isfinite(there.slope):
                high = there
            elif abs(there.slope) <= -self.flatness * start.slope:
                return Step(length * direction, there.loss, length, number)
            else:
                # The minimum is on the side to which the loss falls
                beyond = math.inf if high is None else high.length
                high = low if there.slope * (beyond - low.length) > 0 else high
                low = there
            if high is not None and abs(high.length - low.length) <= TINY * low.length:
                break
            length = longer(low, start) if high is None else within(low, high)
        if not low.length:
            return Step.stay(Outcome.NO_DECREASE)
        return Step(low.length * direction, low.loss, low.length, self.trials)

    def _at(
        self, length: float, objective: Objective, direction: Tensor, start: Trial, low: Trial
    ) -> Trial:
        """A trial; where the loss has not fallen enough a gradient is not worth its price."""
        loss = objective(length * direction)
        enough = start.loss + self.c * length * start.slope
        if not loss <= enough or loss >= low.loss:
            return Trial(length, loss, math.nan)
        there = objective.slope(length * direction)
        return Trial(length, there.loss, float(there.gradient @ direction))


def longer(last: Trial, start: Trial) -> float:
    """Where the slope would vanish if it went on changing as it did."""
    gained = (last.slope - start.slope) / last.length
    least, most = (factor * last.length for factor in LONGER)
    return min(max(last.length - last.slope / gained, least), most) if gained > 0 else most


def within(low: Trial, high: Trial) -> float:
    """The minimum of the cubic through both ends with their slopes, away from the ends."""
    width = high.length - low.length
    at = (cubic if math.isfinite(high.slope) else parabola)(low, high)
    return low.length + width * min(max(at, WITHIN), 1 - WITHIN)


def parabola(low: Trial, high: Trial) -> float:
    """The minimum of the parabola with both losses and the slope at low, as a fraction."""
    slope = low.slope * (high.length - low.length)
    rise = high.loss - low.loss - slope
    return -slope / (2 * rise) if 0 < rise < math.inf else 0.5


def cubic(low: Trial, high: Trial) -> float:
    """Of that cubic, as a fraction of the way from low to high: Nocedal & Wright, eq. (3.59)."""
    width = high.length - low.length
    first, last = low.slope * width, high.slope * width
    d = first + last - 3 * (high.loss - low.loss)
    square = d * d - first * last
    if square < 0:
        return 0.5
    root = math.sqrt(square)
    below = last - first + 2 * root
    return 1 - (last + root - d) / below if below else 0.5
