"""Networks whose fields are observed of them: Burgers' equation in potential form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperlora_ext as hl
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.problems import burgers1d_potential, reflection, slope
from hyperlora_ext.problems.scalar_burgers import heat_flow, primitive
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.symmetry import averaged
from hyperlora_ext.task_problem import TaskProblem, known_fields
from kfac_pinn import MLP, PeriodicFeatures

F64 = torch.float64
FAMILY, NU, A = burgers1d_potential(), 0.01, 0.5
X = torch.arange(128, dtype=F64) / 128


def potential(x: Any) -> Any:
    """By Cole and Hopf: psi = -2 nu log phi with phi_t = nu phi_xx, and a mean of 0 at t = 0."""
    decay = A * (-4 * math.pi**2 * NU * x[:, :1]).exp()
    phi = 1 + decay * (2 * math.pi * x[:, 1:]).cos()
    start = -2 * NU * torch.log(1 + A * torch.cos(2 * math.pi * X)).mean()
    return -2 * NU * phi.log() - start


def initial() -> Tensor:
    """u0 = psi_x of it."""
    phi = 1 + A * torch.cos(2 * math.pi * X)
    return 4 * math.pi * NU * A * torch.sin(2 * math.pi * X) / phi


def drawn(n: int = 1, seed: int = 0) -> Tensor:
    return FAMILY.space.sample(n, torch.Generator().manual_seed(seed))


def ring(*hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, *hidden, 1))).double()


def test_residuals_vanish_at_the_potential_of_a_solution() -> None:
    task = initial()[None]
    points = FAMILY.sample(task, torch.Generator().manual_seed(0), {"interior": 200, "initial": 50})
    found = FAMILY.residuals(potential, task, points)
    assert len(found) == 3  # the equation, psi0 and u0
    assert max(float(r.abs().max()) for r in found.values()) < 1e-10


def test_the_slope_of_that_potential_is_the_solution() -> None:
    errors = FAMILY.errors(lambda task: potential, initial()[None])
    assert errors.relative.max() < 1e-7  # of the spectral solver, in time
    problem = TaskProblem(FAMILY, initial()[None], known_fields(FAMILY), {"field": 300})
    residuals = problem.sample(torch.Generator().manual_seed(0), dtype=F64).points["field"]
    (r,) = problem.terms["field"].residual(potential, residuals[0], initial()[None])  # type: ignore[call-arg]
    assert r.abs().max() < 1e-7


def test_weights_are_those_of_the_docstring() -> None:
    """By nested autograd, at any psi."""
    psi, task = ring(6), drawn()
    points = FAMILY.sample(task, torch.Generator().manual_seed(1), {"interior": 30, "initial": 12})
    x = points["interior"][0].requires_grad_()
    first = torch.autograd.grad(psi(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 1].sum(), x)[0][:, 1]
    equation = first[:, 0] + first[:, 1].square() / 2 - NU * second
    found = list(FAMILY.residuals(psi, task, points).values())
    torch.testing.assert_close(found[0], 2 * math.pi * equation)
    x = points["initial"][0].requires_grad_()
    value = psi(x)
    slope = torch.autograd.grad(value.sum(), x)[0][:, 1]
    psi0, u0 = heat_flow(primitive(task).expand(12, -1), x.detach(), NU)
    torch.testing.assert_close(
        found[1], math.sqrt(10) * 2 * math.pi * (value.detach() - psi0)[:, 0]
    )
    torch.testing.assert_close(found[2], math.sqrt(0.1) * (slope - u0[:, 0]))


def test_the_primitive_has_no_mean_and_the_slope_of_the_task() -> None:
    u0 = drawn(3)
    found = primitive(u0)
    assert found.mean(1).abs().max() < 1e-15
    start = torch.stack([torch.zeros_like(X), X], dim=1)
    for psi0, own in zip(found, u0, strict=True):
        value, slope = heat_flow(psi0.expand(128, -1), start, NU)
        assert (value[:, 0] - psi0).abs().max() < 1e-13
        assert (slope[:, 0] - own).abs().max() < 1e-12
    assert torch.equal(primitive(u0[:1].expand(5, -1)), found[:1].expand(5, -1))


def test_a_predictions_mean_is_exact_and_its_mirror_is_mirrored() -> None:
    h, mirror = HyperLoRA(ring(8, 8), FAMILY.space, 2, hidden=(16,)), reflection(potential=True)
    with torch.no_grad():
        h.network.layers[-1].get_parameter("weight").mul_(5)
    u0 = drawn()[0]
    predict = averaged(h.pinn, mirror)
    u = FAMILY.field(predict(u0), u0)
    row = torch.stack([torch.full_like(X, 0.3), X], dim=1)
    found = u(row).detach()
    assert found.abs().max() > 1e-3 and abs(float(found.mean())) < 1e-10  # by an even grid
    mirrored = FAMILY.field(predict(mirror.task(u0)), u0)(mirror.points(row))
    assert (u(row) + mirrored).abs().max() < 1e-12


def test_training_by_data_and_by_physics_and_polishing() -> None:
    torch.manual_seed(0)
    h = HyperLoRA(ring(8, 8), FAMILY.space, 2, hidden=(12,))
    tasks = drawn(3)
    train = LevenbergSchedule(every=10)
    before = FAMILY.errors(h.pinn, tasks).mse.mean()
    train(h, TaskProblem(FAMILY, tasks, known_fields(FAMILY), {"field": 40}), steps=20)
    assert FAMILY.errors(h.pinn, tasks).mse.mean() < 0.5 * before
    train(h, TaskProblem(FAMILY, tasks, sizes={"interior": 30, "initial": 8}), steps=10)
    sizes = {"interior": 300, "initial": 40}
    solved = hl.solve(h, FAMILY, tasks[0], steps=8, sizes=sizes)
    assert solved.loss < 0.7 * solved.predicted
    errors = [
        FAMILY.errors(lambda _, w=w: w, tasks[:1]).mse for w in (h.pinn(tasks[0]), solved.model)
    ]
    assert errors[1] < errors[0]


def test_a_problem_has_no_solution_for_outputs_that_are_not_fields() -> None:
    assert FAMILY.problem(drawn()[0]).solution is None
    assert replace(FAMILY, observed=lambda network: network).problem(drawn()[0]).solution is None


def test_what_observes_nothing_is_named() -> None:
    with pytest.raises(TypeError, match="Family: observed"):
        replace(FAMILY, observed=3)  # type: ignore[arg-type]
    assert list(slope(lambda x: x).parameters()) == []
