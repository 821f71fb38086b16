"""Families: residuals vanish at the solutions, references converge, draws have their spectrum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperlora_ext.certified import solve
from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.problems import (
    burgers1d,
    burgers1d_potential,
    burgers1d_published,
    burgers2d,
    in_front,
    kovasznay,
    solve_burgers,
    step_function,
)
from hyperlora_ext.problems.coupled_burgers import front
from hyperlora_ext.problems.navier_stokes import kovasznay_flow
from hyperlora_ext.problems.scalar_burgers import heat_flow
from hyperlora_ext.random_fields import GaussianField
from hyperlora_ext.task_problem import TaskProblem
from kfac_pinn.pinn.networks import MLP

F64 = torch.float64
FAMILIES = [
    kovasznay(),
    burgers2d(),
    burgers1d(),
    burgers1d_published(),
    burgers1d_potential(),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(family: Family) -> str:
    return f"{family.name} {len(family.conditions)}"


# --- exact solutions, by the independent route of nested autograd --------------------------------


def derivatives(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """d u_c / d x_i by autograd, (N, c, d)."""
    columns = [torch.autograd.grad(c.sum(), x, create_graph=True)[0] for c in u.unbind(1)]
    return torch.stack(columns, dim=1)


@given(st.floats(5.0, 150.0))
def test_kovasznay_flow_solves_navier_stokes(reynolds: float) -> None:
    x = torch.rand(20, 2, dtype=F64).requires_grad_()
    w = kovasznay_flow(x, torch.tensor([reynolds], dtype=F64))
    d = derivatives(w, x)
    dd = torch.stack([derivatives(d[:, c], x) for c in range(2)], dim=1)
    convection = w[:, 0, None] * d[:, :2, 0] + w[:, 1, None] * d[:, :2, 1]
    momentum = convection + d[:, 2] - (dd[..., 0, 0] + dd[..., 1, 1]) / reynolds
    assert momentum.abs().max() < 1e-12
    assert (d[:, 0, 0] + d[:, 1, 1]).abs().max() < 1e-12


@pytest.mark.parametrize("family", [kovasznay(), burgers2d()], ids=ids)
def test_residuals_vanish_at_the_solution(family: Family) -> None:
    tasks = family.space.sample(3, seeded())
    points = family.sample(tasks, seeded(), dict.fromkeys(family.conditions, 40))
    for t in range(3):
        one = {name: x[t : t + 1] for name, x in points.items()}
        task = tasks[t : t + 1]
        for name, r in family.residuals(lambda x, k=task: sol(family, x, k), task, one).items():
            assert r.abs().max() < 1e-11, name


def sol(family: Family, x: object, task: torch.Tensor) -> torch.Tensor:
    """The exact fields, written again with functions that act on jets."""
    if family.name == "Kovasznay flow":
        rate = task.item() / 2 - math.sqrt(task.item() ** 2 / 4 + 4 * math.pi**2)
        decay, angle = torch.exp(rate * x[:, :1]), 2 * math.pi * x[:, 1:]
        v = rate * decay * torch.sin(angle) * (1 / (2 * math.pi))
        return torch.cat([1 - decay * torch.cos(angle), v, 0.5 - 0.5 * decay * decay], 1)
    z = (4 * x[:, 2:] - 4 * x[:, 1:2] - x[:, :1]) * (1 / (32 * task.item()))
    s = 0.25 * torch.sigmoid(-z)
    return torch.cat([0.75 - s, 0.75 + s], 1)


def test_the_printed_signs_of_burgers2d_do_not_solve_it() -> None:
    nu = torch.tensor([1e-3], dtype=F64)
    x = torch.rand(4000, 3, dtype=F64)
    x[:, 2] = x[:, 1] + x[:, 0] / 4 + 0.02 * (x[:, 2] - 0.5)
    x = x.requires_grad_()
    for sign, low, high in [(-1.0, 0.0, 1e-10), (1.0, 4.6, 4.64)]:
        w = front(x, nu, sign)
        d = derivatives(w, x)
        dd = torch.stack([derivatives(d[:, c], x) for c in range(2)], dim=1)
        laplace = dd[..., 1, 1] + dd[..., 2, 2]
        r = d[..., 0] + w[:, :1] * d[..., 1] + w[:, 1:] * d[..., 2] - nu * laplace
        assert low <= r.abs().max() < high


def test_step_function_is_as_good_as_the_published_errors() -> None:
    family = burgers2d()
    for nu, expected in [(1e-3, 1.7e-4), (1e-4, 1.6e-5)]:
        error = family.errors(lambda task: step_function, torch.tensor([[nu]], dtype=F64))
        assert 0.8 * expected < float(error.mse) < 1.25 * expected


def test_points_resolve_the_front() -> None:
    family, tasks = burgers2d(), torch.tensor([[1e-4], [1e-3]], dtype=F64)
    points = family.sample(tasks, seeded())
    for name, x in points.items():
        assert ((x >= 0) & (x <= 1)).all(), name
        for t in range(2):
            assert in_front(x[t], tasks[t]).double().mean() > 0.25, name
    edge = points["boundary"][0]
    for coordinate in (1, 2):
        for end in (0.0, 1.0):
            assert (edge[:, coordinate] == end).sum() >= 40


# --- 1D Burgers: sampler and reference -----------------------------------------------------------


def test_random_field_has_the_stated_spectrum() -> None:
    space = GaussianField()
    expected = torch.tensor([0.388, 0.137, 0.066], dtype=F64)
    assert torch.allclose(space.spectrum[:3], expected, atol=6e-4)
    assert abs(space.deviation**2 - 0.351) < 2e-3
    u0 = space.sample(4000, seeded())
    assert u0.mean(1).abs().max() < 1e-14
    assert abs(float(u0.var()) / space.deviation**2 - 1) < 0.05
    modes = torch.fft.rfft(u0) / 128
    found = modes.abs().square().mean(0).sqrt()[1:4]
    assert torch.allclose(found, space.spectrum[:3], rtol=0.05)


def test_reference_converges_at_fourth_order() -> None:
    u0 = GaussianField().sample(6, seeded(1))
    finest = solve_burgers(u0, 0.01, 512, 1600).on_grid(128, 101)
    errors = [
        float((solve_burgers(u0, 0.01, 256, steps).on_grid(128, 101) - finest).abs().max())
        for steps in (100, 200, 400)
    ]
    assert errors[2] < 1e-5
    assert errors[0] / errors[1] > 10 and errors[1] / errors[2] > 10


def test_reference_is_as_exact_on_the_test_tasks_as_it_says() -> None:
    tasks = burgers1d().splits().test
    finest = solve_burgers(tasks, 0.01, 512, 1600).on_grid(128, 101)
    for modes, steps, largest, square in ((256, 400, 2.5e-4, 1e-10), (512, 800, 8e-6, 5e-14)):
        error = solve_burgers(tasks, 0.01, modes, steps).on_grid(128, 101) - finest
        assert error.abs().max() < largest
        assert error.square().mean((1, 2)).max() < square
        assert error.square().mean((1, 2)).median() < 1e-15


def test_reference_agrees_with_cole_and_hopf() -> None:
    # u = -2 nu phi_x / phi with phi_t = nu phi_xx, phi = 1 + a e^(-4 pi^2 nu t) cos(2 pi x).
    nu, a = 0.01, 0.5
    x = torch.arange(128, dtype=F64) / 128

    def exact(t: float) -> torch.Tensor:
        decay = a * math.exp(-4 * math.pi**2 * nu * t)
        phi = 1 + decay * torch.cos(2 * math.pi * x)
        return 4 * math.pi * nu * decay * torch.sin(2 * math.pi * x) / phi

    found = solve_burgers(exact(0.0)[None], nu).on_grid(128, 11)[0]
    assert (found[10] - exact(1.0)).abs().max() < 1e-9


def test_reference_is_the_same_on_the_grid_and_at_points() -> None:
    family = burgers1d_published()
    task = family.space.sample(1, seeded(3))
    trajectory = solve_burgers(task, 0.01)
    grid = trajectory.on_grid(128, 101)[0].flatten()
    assert (family.rest(family.grid, task[0])[:, 0] - grid).abs().max() < 1e-12
    fine = solve_burgers(task, 0.01, steps=800)
    x = torch.rand(500, 2, dtype=F64)
    x[:, 0] = 0.0125 + 0.9875 * x[:, 0]
    assert (trajectory.at(x) - fine.at(x)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_references_of_many_tasks_are_those_of_each(family: Family) -> None:
    tasks = family.space.sample(3, seeded(4))
    one_by_one = torch.stack([family.rest(family.grid, task.to(family.grid)) for task in tasks])
    assert (family.references(tasks[[0, 1, 0, 2]]) - one_by_one[[0, 1, 0, 2]]).abs().max() < 1e-12
    assert (family.reference(tasks[2]) - one_by_one[2]).abs().max() < 1e-12


def test_references_are_computed_once() -> None:
    asked: list[int] = []

    def solver(tasks: torch.Tensor) -> torch.Tensor:
        asked.append(len(tasks))
        return torch.zeros(len(tasks), len(family.grid), 3, dtype=F64)

    family = replace(kovasznay(), solver=solver)
    tasks = family.space.nodes(4)
    for some in (tasks[:2], tasks[[1, 2, 1, 2]], tasks):
        family.references(some)
    assert asked == [2, 1, 1]


def test_reference_refuses_what_it_cannot_give() -> None:
    u0 = torch.zeros(1, 128, dtype=F64)
    with pytest.raises(ValueError, match="cannot hold"):
        solve_burgers(u0, 0.01, modes=64)
    with pytest.raises(ValueError, match="do not divide"):
        solve_burgers(u0, 0.01, steps=10).on_grid(128, 4)


def test_heat_flow_starts_at_the_values_and_solves_its_equation() -> None:
    u0 = GaussianField().sample(1, seeded())
    start = torch.stack([torch.zeros(128, dtype=F64), torch.arange(128, dtype=F64) / 128], dim=1)
    v, _ = heat_flow(u0.expand(128, -1), start, 0.01)
    assert (v[:, 0] - u0[0]).abs().max() < 1e-13
    x = torch.rand(20, 2, dtype=F64).requires_grad_()
    v, v_x = heat_flow(u0.repeat(20, 1), x, 0.01)
    d = derivatives(v, x)[:, 0]
    v_xx = derivatives(d[:, 1:], x)[:, 0, 1]
    assert (d[:, 1] - v_x[:, 0]).abs().max() < 1e-11
    assert (d[:, 0] - 0.01 * v_xx).abs().max() < 1e-10


def test_the_residual_is_that_of_the_whole_solution() -> None:
    """w + v in Burgers' equation, by nested autograd, at any w."""
    family, nu = burgers1d(), 0.01
    task = family.space.sample(1, seeded())[0]
    w = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()
    points = family.sample(task, seeded(1), {"interior": 30, "initial": 10})
    x = points["interior"][0].clone().requires_grad_()
    u = family.field(w, task)(x)
    d = derivatives(u, x)[:, 0]
    u_xx = derivatives(d[:, 1:], x)[:, 0, 1]
    expected = x[:, 0].sqrt() * (d[:, 0] + u[:, 0] * d[:, 1] - nu * u_xx)
    found = family.residuals(w, task[None], points)
    assert (found["interior"] - expected).abs().max() < 1e-10
    start = points["initial"][0]
    missing = family.field(w, task)(start) - heat_flow(task.expand(10, -1), start, nu)[0]
    assert (found["initial"] - 10 * missing[:, 0]).abs().max() < 1e-12


def test_errors_are_relative_to_all_of_u() -> None:
    family = burgers1d()
    tasks = family.space.sample(2, seeded())
    errors = family.errors(lambda task: lambda x: torch.zeros(len(x), 1, dtype=F64), tasks)
    for t, task in enumerate(tasks):
        whole = family.solution(family.grid, task)
        rest = family.rest(family.grid, task)
        assert torch.isclose(errors.relative[t], rest.norm() / whole.norm())
        assert torch.isclose(errors.mse[t], rest.square().mean())
        exact = family.field(lambda x, k=task: family.rest(x, k), task)
        assert (exact(family.grid) - whole).abs().max() < 1e-14


# --- tasks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_splits_are_reproducible_and_of_the_papers_sizes(family: Family) -> None:
    one, same, other = family.splits(5), family.splits(5), family.splits(6)
    for name in ("train", "valid", "test", "extrapolation"):
        assert torch.equal(getattr(one, name), getattr(same, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))
    assert (len(one.train), len(one.valid), len(one.test)) == family.counts
    assert family.space.contains(one.test).all()
    assert not family.space.contains(one.extrapolation).any()
    assert not torch.equal(one.train[:20], one.test)


@pytest.mark.parametrize("family", [kovasznay(), burgers2d()], ids=ids)
def test_extrapolation_keeps_to_numbers_that_make_sense(family: Family) -> None:
    """Viscosities and Reynolds numbers are positive; in 1 / nu a quarter further is beyond zero."""
    tasks = torch.cat([family.splits(seed).extrapolation for seed in range(20)])
    assert (tasks > 0).all()
    assert (tasks > family.space.upper).any() and (tasks < family.space.lower).any()
    assert tasks.max() < 2 * family.space.upper


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_the_batched_residuals_are_those_of_each_problem(family: Family) -> None:
    sizes = dict.fromkeys(family.conditions, 7)
    tasks = family.space.sample(3, seeded())
    points = family.sample(tasks, seeded(1), sizes)
    width = family.reference(tasks[0]).shape[1]
    model = torch.nn.Sequential(torch.nn.Linear(family.domain.dim, width)).double()
    stacked = family.residuals(model, tasks, points)
    for t in range(3):
        batch = family.problem(tasks[t]).sample(dtype=F64, sizes=sizes)
        batch.points.update({name: x[t] for name, x in points.items()})
        for name, r in batch.residuals(model)().items():
            assert torch.allclose(r.reshape(-1), stacked[name].view(3, -1)[t], atol=1e-13)


def test_problem_is_one_that_fit_takes() -> None:
    problem = kovasznay().problem(torch.tensor([40.0], dtype=F64))
    batch = problem.sample(seeded(), {"interior": 10, "boundary": 8}, F64)
    assert batch.points["interior"].shape == (10, 2)
    assert problem.solution is not None
    assert problem.solution(batch.points["interior"]).shape == (10, 3)


def test_errors_are_those_of_the_tables() -> None:
    family, tasks = kovasznay(), torch.tensor([[30.0], [60.0]], dtype=F64)
    base = torch.tensor([40.0], dtype=F64)
    errors = family.errors(lambda task: lambda x: kovasznay_flow(x, base), tasks)
    for t, task in enumerate(tasks):
        difference = kovasznay_flow(family.grid, base) - kovasznay_flow(family.grid, task)
        assert torch.isclose(errors.mse[t], difference.square().mean())
    assert errors.summary()["worst_mse"] >= errors.summary()["mse"]


def test_bad_tasks_are_named() -> None:
    family = kovasznay()
    with pytest.raises(ValueError, match=r"has 1 number.*found shape \(3, 2\)"):
        family.sample(torch.ones(3, 2, dtype=F64))
    with pytest.raises(ValueError, match="has 128 number"):
        burgers1d().problem(torch.ones(64, dtype=F64))
    with pytest.raises(KeyError, match="walls"):
        family.sample(torch.ones(1, 1, dtype=F64), sizes={"walls": 3})
    with pytest.warns(UserWarning, match="outside the trained range"):
        family.space.warn(torch.tensor([[300.0]], dtype=F64))
    with pytest.warns(UserWarning, match="outside the trained range"):
        GaussianField().warn(torch.full((1, 128), 5.0, dtype=F64))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_tasks_that_are_not_finite_are_named(bad: float) -> None:
    family, tasks = kovasznay(), torch.tensor([[30.0], [bad]], dtype=F64)
    h = HyperLoRA(MLP((2, 4, 3)).double(), family.space, 1, hidden=(3,))
    for refused in (
        lambda: family.sample(tasks),
        lambda: family.references(tasks),
        lambda: h.factors(tasks),
        lambda: h(tasks, torch.rand(3, 2, dtype=F64)),
        lambda: TaskProblem(family, tasks),
        lambda: TaskProblem(family, lambda g: tasks).sample(),
    ):
        with pytest.raises(ValueError, match=rf"task 1 of 2 is not finite: \[{bad}\]"):
            refused()
    for refused in (
        lambda: family.problem(bad),
        lambda: family.reference(bad),
        lambda: h.pinn(bad),
        lambda: solve(h, family, bad),
        lambda: GaussianField().check(torch.full((128,), bad)),
    ):
        with pytest.raises(ValueError, match="task 0 of 1 is not finite"):
            refused()
