"""Steps whose damping is chosen by what they achieve: the control of the decrease ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from kfac_pinn import settings
from kfac_pinn.search.damping import Marquardt
from kfac_pinn.search.model import Trial, decrease_ratio
from kfac_pinn.settings import INSIDE, NOT_NEGATIVE, at_least, whole

__all__ = ["Attempt", "RatioControl", "Stage", "TakenStep", "TargetSchedule"]


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

    def __post_init__(self) -> None:
        settings.check(self, factor=at_least(1), expansions=whole(0), bisections=whole(0))

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
class Stage:
    """Where a run stands between its two targets.

    Attributes:
        target: of the first stage; None: the schedule's first.
        lowest: the lowest lambda / sigma_1^2 so far.
        waited: steps since it was found, or since the run came back to the first stage.
        below: steps since it first was below the last digit of sigma_1^2.
        pace: how fast the loss falls, the mean of log(before / after) over the last steps.
        second: whether the high target holds.
        due: the pace of the first stage when it was left; -inf: there is no way back.
        tried: steps of the second stage.
    """

    target: float | None = None
    lowest: float = math.inf
    waited: int = 0
    below: int = 0
    pace: float = 0.0
    second: bool = False
    due: float = 0.0
    tried: int = 0


@dataclass(frozen=True)
class TargetSchedule:
    """A low target ratio until the damping has passed its minimum, then a high one.

    A low ratio keeps the steps so long that the damping falls, step by step, to where the problem
    is well conditioned; greedy ratios stay where it is not. How low it must be differs (fronts want
    less), so that the low target goes down after each step that did not lower the damping, and up
    again after each that did. Every step at ratio rho leaves about 1 - rho of the loss: hence the
    bound below, and a high target near one.

    The minimum counts as passed when `patience` steps brought no lower lambda / sigma_1^2; or
    `impatience` steps, once that is below `rounding`, the unit of sigma_1^2's last digit, and there
    after twice as many in any case. The first is a guess: a damping that waits for a wave to travel
    through the domain falls again later. So the second stage must lower the loss faster than the
    first one did; else the first goes on,

        pace <- pace + (log(L / L') - pace) / horizon,    back where it is below the first stage's.

    Args:
        least, low: bounds of the first target; it begins with the upper one.
        high: the second target.
        change: factor of the first target after a step without a lower damping.
        patience, impatience: numbers of steps.
        rounding: relative to sigma_1^2.
        horizon: steps over which the pace is a mean, and that the second stage has to show itself.

    Source: the two stages are those of DSGNAR (2607.02194); the rest was measured here:
    docs/design_notes.md.
    """

    # Measured (docs/design_notes.md): 0.075 suits fronts, 0.15 five dimensions; lower ends too late
    least: float = 0.06
    low: float = 0.15
    high: float = 0.85  # leaves 0.15 of the loss a step; where the run ends does not depend on it
    change: float = 0.9  # from low to least in nine steps without progress
    # Plateaus and single bad steps are no minimum; below `rounding` little is left to gain, though
    # the damping may go on falling for a hundred steps
    patience: int = 60
    impatience: int = 12
    rounding: float = torch.finfo(torch.float64).eps
    horizon: int = 12

    def __post_init__(self) -> None:
        settings.check(self, least=INSIDE, low=INSIDE, high=INSIDE, change=INSIDE)
        settings.check(self, low=at_least(self.least), rounding=NOT_NEGATIVE)
        settings.check(self, patience=whole(1), impatience=whole(1), horizon=whole(1))

    def target(self, stage: Stage) -> float:
        """The target of the next step."""
        if stage.second:
            return self.high
        return self.low if stage.target is None else stage.target

    def after(self, stage: Stage, relative: float, before: float, after: float) -> Stage:
        """The stage after a step.

        Args:
            relative: its lambda / sigma_1^2.
            before, after: the loss; of a step that failed the same.
        """
        progressed = after < before and relative < stage.lowest / 1.5  # less than 2/3 is none
        gain = math.log(before / after) if before > after > 0 else 0.0
        known = replace(
            stage,
            target=self.following(self.low if stage.target is None else stage.target, progressed),
            lowest=relative if progressed else stage.lowest,
            waited=0 if progressed else stage.waited + 1,
            below=stage.below + (stage.lowest < self.rounding),
            pace=stage.pace + (gain - stage.pace) / self.horizon,
        )
        return self._second(known) if stage.second else self._first(known, after)

    def following(self, target: float, progressed: bool) -> float:
        """The first stage's next target, after a step that did or did not lower the damping."""
        proposed = target / self.change if progressed else target * self.change
        return min(max(proposed, self.least), self.low)

    def passed(self, stage: Stage) -> bool:
        """Whether the damping's minimum is passed."""
        if stage.lowest < self.rounding:
            return stage.waited >= self.impatience or stage.below >= 2 * self.impatience
        return stage.waited >= self.patience

    def _first(self, stage: Stage, loss: float) -> Stage:
        """The first stage, or the second if the minimum is passed."""
        if not self.passed(stage):
            return stage
        # At the last digit the damping cannot fall; a loss below zero has no pace (an energy)
        final = stage.lowest < self.rounding or loss <= 0
        return replace(stage, second=True, due=-math.inf if final else stage.pace, tried=0)

    def _second(self, stage: Stage) -> Stage:
        """The second stage, or the first if that was faster."""
        tried = stage.tried + 1
        if tried < self.horizon or stage.pace >= stage.due:
            return replace(stage, tried=tried)
        return replace(stage, second=False, waited=0)
