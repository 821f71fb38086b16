"""Which target holds when: the law of the two stages, on runs whose losses are made up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfac_pinn.search.trust_region import Stage, TargetSchedule

SCHEDULE = TargetSchedule()
dampings = st.floats(1e-30, 1.0)
gains = st.floats(0.0, 3.0)
runs = st.lists(st.tuples(dampings, gains), max_size=200)


def staged(steps, schedule=SCHEDULE, scale=1.0):
    """The stages of a run of (lambda / sigma_1^2, log decrease), the first included."""
    stages, loss = [Stage()], scale
    for relative, gain in steps:
        after = loss * math.exp(-gain)
        stages.append(schedule.after(stages[-1], relative, loss, after))
        loss = after
    return stages


def run(pace, steps, damping=1e-6, schedule=SCHEDULE):
    """Stages where a step lowers log(loss) by pace(stage), at a damping that does not move."""
    stages = [Stage()]
    for _ in range(steps):
        after = math.exp(-pace(stages[-1]))
        stages.append(schedule.after(stages[-1], damping, 1.0, after))
    return stages


@given(st.lists(st.booleans(), max_size=60))
def test_the_low_target_falls_while_the_damping_does_not(progress):
    targets = [SCHEDULE.low]
    for progressed in progress:
        targets.append(SCHEDULE.following(targets[-1], progressed))
        rises = targets[-1] >= targets[-2]
        assert rises if progressed else not rises or targets[-1] == SCHEDULE.least
    assert SCHEDULE.least <= min(targets) <= max(targets) <= SCHEDULE.low


@given(runs, st.floats(0.1, 0.8))
def test_one_ratio_holds_throughout_the_first_stage(steps, ratio):
    schedule = TargetSchedule(low=ratio, least=ratio)
    for stage in staged(steps, schedule):
        assert schedule.target(stage) == (schedule.high if stage.second else ratio)


@given(runs)
def test_the_target_is_low_in_the_first_stage_and_high_in_the_second(steps):
    for stage in staged(steps):
        target = SCHEDULE.target(stage)
        assert target == SCHEDULE.high if stage.second else target <= SCHEDULE.low


@given(runs)
def test_the_pace_is_a_mean_of_what_was_gained(steps):
    most = max((gain for _, gain in steps), default=0.0)
    assert all(-1e-12 <= stage.pace <= most + 1e-9 for stage in staged(steps))


@given(runs, st.floats(-100, 100))
def test_the_unit_of_the_loss_does_not_matter(steps, exponent):
    scaled = staged(steps, scale=10**exponent)
    for here, there in zip(staged(steps), scaled, strict=True):
        if here.second and here.pace == pytest.approx(here.due, rel=1e-6):
            return  # a tie may go either way
        assert (here.second, here.lowest, here.waited) == (there.second, there.lowest, there.waited)
        assert there.pace == pytest.approx(here.pace, rel=1e-6, abs=1e-9)


def test_a_damping_that_keeps_falling_keeps_the_first_stage():
    stages = staged([(0.9**k, 0.01) for k in range(300)])
    assert stages[-1].lowest > SCHEDULE.rounding and not any(stage.second for stage in stages)


@pytest.mark.parametrize(
    ("damping", "patience"),
    [(1e-6, SCHEDULE.patience), (1e-17, SCHEDULE.impatience)],
    ids=["above rounding", "below rounding"],
)
def test_the_second_stage_begins_when_patience_ends(damping, patience):
    stages = run(lambda stage: 0.1, patience + 1, damping)
    assert [stage.second for stage in stages] == [False] * (patience + 1) + [True]


def test_a_faster_second_stage_goes_on():
    stages = run(lambda stage: 0.3 if stage.second else 0.1, 400)
    first = [stage.second for stage in stages].index(True)
    assert all(stage.second for stage in stages[first:])


def test_a_slower_second_stage_is_left_after_a_trial_of_it():
    stages = run(lambda stage: 0.02 if stage.second else 0.1, 400)
    second = [stage.second for stage in stages]
    assert second.count(True) == sum(second[k] and not second[k - 1] for k in range(401)) * 12
    assert second.count(False) > 4 * second.count(True)


def test_a_spurt_at_the_beginning_does_not_keep_the_second_stage():
    """The last few percent that a long step had left over are gained at once, and then no more."""
    stages = run(lambda stage: (0.3 if stage.tried < 5 else 0.01) if stage.second else 0.1, 130)
    second = [stage.second for stage in stages]
    assert 12 <= second.count(True) < 40 and not second[-1]


def test_what_slows_down_later_is_left_later():
    stages = run(lambda stage: (0.5 if stage.tried < 100 else 0.0) if stage.second else 0.1, 300)
    second = [stage.second for stage in stages]
    begun = second.index(True)
    assert all(second[begun : begun + 100]) and not all(second[begun:])


def test_patience_begins_anew_after_a_return():
    stages = run(lambda stage: 0.0 if stage.second else 0.1, 200)
    back = next(k for k in range(1, 201) if stages[k - 1].second and not stages[k].second)
    assert not any(stage.second for stage in stages[back : back + SCHEDULE.patience])
    assert stages[back + SCHEDULE.patience].second


def test_a_damping_below_the_last_digit_does_not_keep_the_first_stage_for_long():
    """It can go on falling for a hundred steps, each of which leaves nearly all of the loss."""
    falling = [(0.1**k, 0.1) for k in range(17 + 2 * SCHEDULE.impatience)]
    seconds = [stage.second for stage in staged(falling)]
    assert seconds == [False] * (16 + 2 * SCHEDULE.impatience + 1) + [True]


@pytest.mark.parametrize("damping", [1e-17, 1e-25])
def test_below_rounding_there_is_no_way_back(damping):
    stages = run(lambda stage: 0.0 if stage.second else 0.1, 300, damping)
    assert stages[-1].second and stages[-1].due == -math.inf


def test_steps_that_fail_bring_the_run_back():
    stages = run(lambda stage: 0.0 if stage.second else 0.05, 100)
    assert not stages[-1].second


def test_a_run_that_stands_still_in_both_stages_goes_on():
    stages = run(lambda stage: 0.0, 300)
    assert stages[-1].pace == 0.0 and stages[-1].second


@pytest.mark.parametrize("losses", [(-1.0, -1.1), (1.0, -1.0), (0.0, 0.0), (1e-300, 0.0)])
def test_an_energy_has_no_pace(losses):
    """Of a loss that is not positive no part can be said to be left."""
    stage = Stage()
    for _ in range(200):
        stage = SCHEDULE.after(stage, 1e-6, *losses)
    assert stage.second and stage.pace == 0.0


@given(runs)
def test_the_lowest_damping_is_remembered(steps):
    lowest = math.inf
    for (relative, gain), stage in zip(steps, staged(steps)[1:], strict=True):
        if math.exp(-gain) < 1 and relative < lowest / 1.5:
            lowest = relative
        if lowest < math.inf:
            assert stage.lowest <= lowest * 1.5


@pytest.mark.parametrize(
    ("share", "after", "progressed"),
    [(0.66, 0.9, True), (0.67, 0.9, False), (1.0, 0.9, False), (0.5, 1.0, False)],
)
def test_progress_is_a_damping_below_two_thirds_of_the_lowest(share, after, progressed):
    """Of a step that was taken."""
    stage = SCHEDULE.after(Stage(lowest=1e-3, waited=5), share * 1e-3, 1.0, after)
    assert (stage.lowest < 1e-3) == progressed
    assert stage.waited == (0 if progressed else 6)
