"""One network for all tasks: its residuals are those of each task's own network, and it trains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

import hyperlora_ext as hl
from hyperlora_ext.near_tasks import Near
from hyperlora_ext.problems import burgers1d, convection, kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.task_inputs import AtTask, parametric
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures
from kfac_pinn.taylor_mode.operators import taylor


def network(family):
    torch.manual_seed(0)
    if family.domain.dim + family.space.inputs == 3:
        return MLP((3, 12, 12, 3)).double()
    features = PeriodicFeatures((None, 1.0) + (None,) * family.space.inputs)
    return torch.nn.Sequential(features, MLP((3 + family.space.inputs, 12, 1))).double()


@pytest.mark.parametrize("family", [kovasznay(), burgers1d()], ids=["number", "field"])
def test_residuals_are_those_of_each_task(family):
    u, problem, dim = network(family), parametric(family), family.domain.dim
    batch = problem.sample(Generator().manual_seed(0), dict.fromkeys(problem.terms, 3))
    for name, pairs in batch.points.items():
        together = columns(problem.terms[name].residual(u, pairs.double()))
        alone = []
        for pair in pairs.double():
            v = AtTask(u, family.space, pair[None, dim:])
            alone.append(
                columns(family.problem(pair[dim:]).terms[name].residual(v, pair[None, :dim]))
            )
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-12)


# --- features of point and task -------------------------------------------------------------------

SPACES = [
    hl.Interval(1.0, 30.0),
    hl.Interval(1.0, 30.0, torch.log, torch.exp),
    hl.Interval(1e-4, 1e-3, torch.reciprocal, torch.reciprocal),
    hl.Intervals((hl.Interval(0.5, 2.0, torch.log, torch.exp), hl.Interval(-6.0, 6.0))),
    hl.GaussianField(16),
    hl.GaussianField(16, centred=True),
    Near(hl.Interval(1.0, 30.0), 2.0, 0.5),
]


@given(st.sampled_from(SPACES), st.integers(0, 5), st.sampled_from([torch.float32, torch.float64]))
def test_embedded_tasks_are_taken_back(space, seed, dtype):
    tasks = space.sample(4, Generator().manual_seed(seed)).to(dtype)
    back = space.unembed(space.embed(tasks))
    assert back.dtype == dtype
    moved = space.moved(tasks, space.offset(tasks)) if space.offset(tasks).shape[1] else tasks
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9  # 1 / value, embedded, cancels
    torch.testing.assert_close(back, moved, rtol=tolerance, atol=tolerance)


def groups(x, speed):
    """cos and sin of x - speed t: what solutions of u_t + speed u_x = 0 depend on."""
    place = x[:, 1:] - speed * x[:, :1]
    return torch.cat([torch.cos(place), torch.sin(place)], dim=1)


@pytest.mark.parametrize("space", [*SPACES[:3], SPACES[-1]])
def test_what_depends_on_the_groups_alone_solves_the_equation(space):
    """Whatever the weights; by jets, and by nested autograd."""
    torch.manual_seed(0)
    u = torch.nn.Sequential(hl.TaskFeatures(space, groups), MLP((2, 8, 1))).double()
    tasks, x = space.sample(20, Generator().manual_seed(0)), torch.rand(20, 2).double()
    each = AtTask(u, space, tasks)
    _, (u_t, u_x) = taylor(each, x, order=1)
    x.requires_grad_()
    (nested,) = torch.autograd.grad(each(x).sum(), x)
    torch.testing.assert_close(torch.cat([u_t, u_x], 1), nested, rtol=1e-12, atol=1e-12)
    assert u_x.abs().min() > 1e-3 and (u_t + tasks * u_x).abs().max() < 1e-12


def test_features_are_fed_the_tasks_themselves():
    space = hl.Interval(1.0, 30.0, torch.log, torch.exp)
    seen = hl.TaskFeatures(space, lambda x, task: torch.cat([x, task], dim=1))
    x, tasks = torch.rand(6, 2).double(), space.sample(6)
    torch.testing.assert_close(AtTask(seen, space, tasks)(x), torch.cat([x, tasks], 1))


def test_a_network_of_groups_learns_all_speeds_at_once():
    """Waves that run round the ring up to five times; with t and speed as inputs it has 0.5."""
    family = convection((1.0, 30.0))
    torch.manual_seed(0)
    u = torch.nn.Sequential(hl.TaskFeatures(family.space, groups), MLP((2, 8, 1))).double()
    sizes = {"interior": 50, "initial": 50}
    LevenbergSchedule(sizes, sizes)(u, parametric(family), steps=15)
    tasks = family.splits().test
    errors = family.errors(lambda task: AtTask(u, family.space, task), tasks)
    assert errors.relative.max() < 1e-3


def test_points_without_tasks_are_named():
    family = kovasznay()
    u = torch.nn.Sequential(
        hl.TaskFeatures(family.space, lambda x, task: task * x), MLP((2, 4, 3))
    ).double()
    with pytest.raises(ValueError, match=r"TaskFeatures: inputs have the shape \(N, d \+ 1\)"):
        u(torch.rand(5, 1).double())
    with pytest.raises(TypeError, match="TaskFeatures: space must"):
        hl.TaskFeatures(family, torch.mul)


def columns(residual):
    """(N, equations)."""
    parts = residual if isinstance(residual, tuple) else (residual,)
    return torch.stack([r.reshape(-1) for r in parts], dim=1)


def test_one_network_learns_a_family():
    family = kovasznay()
    u = network(family)
    train = LevenbergSchedule(
        {"interior": 200, "boundary": 100}, {"interior": 300, "boundary": 100}
    )
    tasks = family.splits().test[:5]

    def error():
        return float(family.errors(lambda t: AtTask(u, family.space, t[None]), tasks).mse.mean())

    before = error()
    train(u, parametric(family), steps=25)
    assert error() < 1e-2 * before


def test_what_is_no_task_is_named():
    family = kovasznay()
    u = network(family)
    for tasks in (torch.ones(2), torch.ones(3, 2), torch.ones(1, 1, 1), torch.tensor(40.0)):
        with pytest.raises(ValueError, match=r"AtTask: tasks of 1 number\(s\) have the shape"):
            AtTask(u, family.space, tasks)
    x = family.domain.interior(5, dtype=torch.float64)
    one, same = (AtTask(u, family.space, torch.full(s, 40.0))(x) for s in ((1,), (1, 1)))
    assert torch.equal(one, same)
    with pytest.raises(TypeError, match="parametric: family must be"):
        parametric(family.space)
