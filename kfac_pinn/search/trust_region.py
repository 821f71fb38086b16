"""Steps whose damping is chosen by what they achieve: the control of the decrease ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from kfac_pinn.search.damping import Marquardt
from kfac_pinn.search.model import Trial, decrease_ratio

__all__ = ["Attempt", "RatioControl", "TakenStep", "TargetSchedule"]


Attempt: TypeAlias = Callable[[float], Trial]

DOUBLING = Marquardt(fall=2.0, rise=2.0)
DEVIATIONS = 2.0  # by so many standard errors a loss on other points may be higher by chance


@dataclass(frozen=True)
class TakenStep:
    """What a step achieved on its points, until other points judge it.

    The ratio on its own points says little of a step that fitted them: the fewer the points, the
    less. On new points it counts what was fitted as no decrease.

    Attributes:
        radius: its length.
        predicted: the decrease that the model promised.
        before, after: the loss.
    """

    radius: float
    predicted: float
    before: float
    after: float

    def longest(self, loss: float, noise: float, rounding: float) -> float:
        """The radius that the next step must not exceed: twice or half the last one, or the same.

        Args:
            loss: that the next step begins with.
            noise: its standard error, had its points been drawn at random.
            rounding: of losses at the same points, relative; where it differs by no more, the
                points are the same and there is no bound.
        """
        if abs(loss - self.after) <= rounding * self.after:
            return math.inf
        # The loss less what chance explains: no step is shortened for its points' sake
        ratio = decrease_ratio(self.before, loss - DEVIATIONS * noise, self.predicted)
        # The law is one of dampings, and 1 / radius behaves as one
        return 1 / DOUBLING(1 / self.radius, ratio)


@dataclass(frozen=True)
class RatioControl:
    """The longest step whose decrease ratio reaches a target: bracketed, then bisected, eq. (29).

    Hitting the target matters: the next point of a coarse grid of radii may have a ratio five
    times higher, and high ratios are what the low target is to avoid (docs/design_notes.md).

    Args:
        factor: between neighbouring radii while the target is being bracketed.
        expansions: of the radius at most, either way, in one step.
        bisections: of the bracket, in log radius.
    """

    factor: float = 1.5
    expansions: int = 3  # 1.5^3: the radius changes by three and a half in a step, at most
    bisections: int = 4  # 1.5^(1/16): the target's radius to three percent

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
            # The geometric mean: radii run over many orders of magnitude
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
    docs/design_notes.md.
    """

    # Measured (docs/design_notes.md): 0.075 suits fronts, 0.15 five dimensions; lower ends too late
    least: float = 0.06
    low: float = 0.15
    high: float = 0.85  # leaves 0.15 of the loss a step; where the run ends does not depend on it
    change: float = 0.9  # from low to least in nine steps without progress
    # Plateaus and single bad steps are no minimum; below `rounding` little is left to gain
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
