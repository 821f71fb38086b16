"""One network for all tasks: its residuals are those of each task's own network, and it trains."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from hyperlora_ext.problems import burgers1d, kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.task_inputs import AtTask, parametric
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures


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
