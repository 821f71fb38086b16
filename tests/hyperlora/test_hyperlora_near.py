"""A growing share of a family's tasks: which they are, and that networks go on with more."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

import hyperlora_ext as hl
from hyperlora_ext.near_tasks import Near
from hyperlora_ext.problems import convection, kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.task_inputs import AtTask, parametric
from kfac_pinn.pinn.networks import MLP, SIREN, PeriodicFeatures

SPACES = [
    hl.Interval(1.0, 30.0),
    hl.Interval(1e-4, 1e-3, torch.reciprocal, torch.reciprocal),
    hl.Intervals((hl.Interval(0.5, 2.0), hl.Interval(-6.0, 6.0))),
    hl.GaussianField(128),
    hl.GaussianField(128, centred=True),
]


@given(st.sampled_from(SPACES), st.floats(0.01, 1.0), st.integers(0, 5))
def test_near_tasks_are_those_of_the_space_moved_towards_one(space, share, seed):
    centre = space.sample(1, Generator().manual_seed(99))[0]
    near = Near(space, centre, share)
    tasks, whole = (s.sample(7, Generator().manual_seed(seed)) for s in (near, space))
    torch.testing.assert_close((tasks - centre) / share, whole - centre)
    assert near.contains(tasks).all() and near.contains(centre[None]).all()
    assert not near.contains(near.outside(6, Generator().manual_seed(seed))).any()
    assert torch.equal(near.embed(tasks), space.embed(tasks)) and near.inputs == space.inputs
    assert torch.equal(near.offset(tasks), space.offset(tasks))
    torch.testing.assert_close(near.middle(), centre + share * (space.middle() - centre))


def test_all_of_them_are_the_space_itself():
    family = kovasznay()
    ours, whole = family.near(40.0, 1.0).splits(), family.splits()
    for part in vars(whole):
        torch.testing.assert_close(getattr(ours, part), getattr(whole, part))
    first = family.near(40.0, 0.5).near(40.0, 0.5).space
    second = family.near(40.0, 0.25).space
    torch.testing.assert_close(*(s.sample(5, Generator().manual_seed(0)) for s in (first, second)))


def test_a_task_that_is_not_among_them_is_warned_about():
    near = kovasznay().near(40.0, 0.1).space
    with pytest.warns(UserWarning, match=r"1 of 2 tasks lie outside .*0\.1 of the way from 40"):
        near.warn(near.check(torch.tensor([[41.0], [60.0]])))


def test_a_centre_of_any_precision_leaves_tasks_in_double():
    for centre in (40, 40.0, torch.tensor([40.0]), torch.tensor([40.0], dtype=torch.float16)):
        near = kovasznay().near(centre, 0.5).space
        assert near.sample(3).dtype == torch.float64
        assert near.centre.tolist() == [40.0] and near.centre.device.type == "cpu"


def test_what_is_no_task_or_no_share_is_named():
    family = kovasznay()
    with pytest.raises(ValueError, match=r"Near: the centre 140.0 is none of the tasks, as 60 is"):
        family.near(140.0, 0.5)
    for share in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="share"):
            family.near(40.0, share)
    with pytest.raises(ValueError, match="a task of this family has 1 number"):
        family.near(torch.ones(2), 0.5)


def test_a_network_of_all_tasks_goes_on_from_the_easy_ones():
    family = convection((1.0, 8.0))
    torch.manual_seed(1)
    features = PeriodicFeatures((None, 2 * math.pi, None))
    u = torch.nn.Sequential(features, SIREN((4, 12, 12, 1), 4.0)).double()
    sizes = {"interior": 200, "initial": 40}
    for share, steps in ((0.2, 10), (0.5, 10), (1.0, 20)):
        part = family.near(1.0, share)
        LevenbergSchedule(sizes, sizes)(u, parametric(part), steps=steps)
        tasks = part.splits().test
        errors = family.errors(lambda task: AtTask(u, family.space, task[None]), tasks).relative
        assert errors.median() < 0.1


def test_a_hypernetwork_of_the_whole_family_is_trained_on_a_part():
    family = kovasznay()
    torch.manual_seed(0)
    base = hl.pretrain(MLP((2, 12, 12, 3)).double(), family, 40.0, steps=30)
    h = hl.HyperLoRA(base, family.space, rank=2, hidden=(16,))
    part = family.near(40.0, 0.2)
    sizes = {"interior": 16, "boundary": 8}
    before = family.errors(h.pinn, part.splits().test).mse.mean()
    LevenbergSchedule(every=10)(h, hl.TaskProblem(part, 6, sizes=sizes), steps=10)
    assert family.errors(h.pinn, part.splits().test).mse.mean() < 0.1 * before
