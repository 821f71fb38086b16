"""What bounds a step: the control against ratios known in closed form, and its schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kfac_pinn.search.model import Trial
from kfac_pinn.search.step import Step
from kfac_pinn.search.trust_region import RatioControl, Stage, TakenStep, TargetSchedule


class Curve:
    """Trials whose ratio is a known function of the radius."""

    def __init__(self, ratio, longest=math.inf):
        self.ratio, self.longest, self.radii = ratio, longest, []

    def __call__(self, radius):
        self.radii.append(radius)
        reached = min(radius, self.longest)
        return Trial(Step(torch.empty(0)), 1.0, self.ratio(reached), reached)


@given(st.floats(0.4, 2.5), st.floats(0.05, 0.9))
def test_control_hits_the_target(scale, target):
    control = RatioControl(bisections=20)
    trial = control(Curve(lambda radius: 1 - (radius / scale) ** 2), scale, target)
    assert trial.radius == pytest.approx(scale * math.sqrt(1 - target), rel=1e-5)
    assert trial.ratio >= target


@given(st.floats(0.02, 50), st.floats(0.05, 0.9))
def test_control_stays_within_reach(scale, target):
    control = RatioControl()
    curve = Curve(lambda radius: 1 - (radius / scale) ** 2)
    trial = control(curve, 1.0, target)
    reach = control.factor**control.expansions
    assert 1 / reach <= trial.radius * (1 + 1e-12) and trial.radius <= reach * (1 + 1e-12)
    assert len(curve.radii) <= 1 + control.expansions + control.bisections
    reachable = 1 - (curve.radii[0] / scale / reach) ** 2 >= target
    assert (trial.ratio >= target) == reachable


def test_control_takes_the_whole_step_where_nothing_limits_it():
    assert RatioControl()(Curve(lambda radius: 1.0, longest=1.2), 1.0, 0.5).radius == 1.2


def test_control_prefers_the_near_side_of_a_ratio_that_recovers():
    """Past its first miss the ratio is no longer trusted."""
    trial = RatioControl()(Curve(lambda radius: 0.0 if 1.2 < radius < 2 else 0.5), 1.0, 0.3)
    assert trial.radius < 1.2


TAKEN = TakenStep(radius=2.0, predicted=1.0, before=1.0, after=0.1)


@pytest.mark.parametrize(
    ("loss", "noise", "longest"),
    [
        (0.1, 0.0, math.inf),  # the points are the same
        (0.12, 0.0, 4.0),  # most of the promise was kept on others
        (0.5, 0.0, 2.0),
        (0.9, 0.0, 1.0),
        (3.0, 0.0, 1.0),  # the loss rose
        (1.4, 0.5, 2.0),  # by less than chance explains
        (math.inf, 0.0, 1.0),
    ],
)
def test_new_points_judge_the_last_step(loss: float, noise: float, longest: float) -> None:
    assert TAKEN.longest(loss, noise, 1e-4) == longest


def test_the_same_loss_is_that_of_the_same_points() -> None:
    """To the last digit, where there is no rounding to allow for; a loss of zero too."""
    for after in (0.1, 0.0):
        taken = TakenStep(radius=2.0, predicted=1.0, before=1.0, after=after)
        assert taken.longest(after, 0.0, 0.0) == math.inf


def test_the_first_target_sinks_without_progress_and_rises_with_it() -> None:
    schedule = TargetSchedule()
    assert schedule.following(0.1, progressed=False) == pytest.approx(0.09)
    assert schedule.following(0.1, progressed=True) == pytest.approx(0.1 / 0.9)
    assert schedule.following(0.06, progressed=False) == 0.06
    assert schedule.following(0.15, progressed=True) == 0.15


@pytest.mark.parametrize(
    ("lowest", "waited", "below", "passed"),
    [
        (1e-12, 12, 0, False),
        (1e-12, 59, 0, False),
        (1e-12, 60, 0, True),
        (1e-17, 11, 23, False),
        (1e-17, 12, 23, True),
        (1e-17, 1, 24, True),
    ],
)
def test_the_minimum_is_passed_sooner_below_the_last_digit(
    lowest: float, waited: int, below: int, passed: bool
) -> None:
    stage = Stage(lowest=lowest, waited=waited, below=below)
    assert TargetSchedule().passed(stage) == passed
