"""Tasks of every kind, and what a user who writes a family of their own relies on."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from regimes import by_physics, pinn
from torch import nn

from hyperlora_ext import schedules
from hyperlora_ext.certified import solve
from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.problems import (
    burgers1d,
    burgers1d_potential,
    burgers1d_published,
    burgers2d,
    kovasznay,
)
from hyperlora_ext.problems.scalar_burgers import heat_flow
from hyperlora_ext.random_fields import GaussianField
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.task_problem import TaskProblem
from hyperlora_ext.task_residuals import TaskResiduals
from hyperlora_ext.task_spaces import Interval, Intervals
from kfac_pinn import linearize
from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures
from kfac_pinn.taylor_mode.operators import taylor

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


@pytest.mark.parametrize("centred", [False, True])
def test_functions_unlike_those_drawn_lie_outside(centred: bool) -> None:
    space = GaussianField(centred=centred)
    draws = space.sample(500, seeded())
    assert space.contains(draws).all() and space.contains(draws.float()).all()
    x = torch.arange(128, dtype=F64) / 128
    sine, saw = torch.sin(2 * math.pi * x), (2 * x - 1) / 2
    inside = [sine, 0.01 * sine]
    outside = [5 * sine, sine + 0.1, saw - saw.mean(), 0.01 * torch.sin(80 * math.pi * x)]
    assert space.contains(torch.stack(inside)).all()
    assert not space.contains(torch.stack(outside)).any()


@given(st.integers(1, 30))
def test_nodes_span_the_range(n: int) -> None:
    space = Interval(1e-4, 1e-3, torch.reciprocal, torch.reciprocal)
    nodes = space.nodes(n)
    assert space.contains(nodes).all()
    expected = torch.cos((2 * torch.arange(n, dtype=F64) + 1) * math.pi / (2 * n))
    assert torch.allclose(space.embed(nodes)[:, 0], expected, atol=1e-12)


def test_a_task_is_a_number_too_but_not_several() -> None:
    family = kovasznay()
    for given_task in (60, 60.0, torch.tensor(60), torch.tensor([60])):
        assert torch.equal(family.space.check(given_task), torch.tensor([[60.0]], dtype=F64))
        assert family.problem(given_task).name == "Kovasznay flow, task 60"
    with pytest.raises(ValueError, match="has 128 number"):
        burgers1d().problem(1.0)
    for takes_one in (family.problem, family.reference):
        with pytest.raises(ValueError, match="one task is expected, found a stack of 3"):
            takes_one(family.space.nodes(3))
    for lower, upper in ((1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="give a longer range"):
            Interval(lower, upper)
    with pytest.raises(ValueError, match="upper must be finite"):
        Interval(0.0, math.nan)
    with pytest.raises(ValueError, match="scale maps 0 and 5 to -inf and"):
        Interval(0.0, 5.0, torch.log, torch.exp)
    with pytest.raises(ValueError, match="scale maps -1 and 1 to 1 and 1, which must be two"):
        Interval(-1.0, 1.0, torch.square, torch.sqrt)
    with pytest.raises(ValueError, match=r"scale\(1\) to 0: give the inverse of scale"):
        Interval(1.0, 20.0, torch.log)
    with pytest.raises(ValueError, match=r"scale\(0\.3\) to 0\.09: give the inverse"):
        Interval(0.0, 1.0, torch.square)
    with pytest.raises(TypeError, match=r"scale must map tensors to tensors, as torch\.log does"):
        Interval(1.0, 20.0, math.log, math.exp)
    with torch.device("meta"):
        assert Interval(1.0, 20.0, torch.log, torch.exp).embed(torch.zeros(3, 1)).is_meta


def test_tasks_of_several_numbers() -> None:
    """One residual with two numbers is that with each of them; a network is trained on both."""
    parts = Interval(1.0, 2.0), Interval(1e-2, 1e-1, torch.log, torch.exp)
    space = Intervals(parts)
    tasks = space.sample(200, seeded())
    assert tasks.shape == (200, 2) and space.inputs == 2 and space.contains(tasks).all()
    for i, part in enumerate(parts):
        column = tasks[:, i : i + 1]
        assert column.min() < part.lower * 1.2 and column.max() > part.upper / 1.2
        assert torch.equal(space.embed(tasks)[:, i : i + 1], part.embed(column))
    outside = space.outside(8, seeded())
    which = torch.stack([~p.contains(outside[:, i : i + 1]) for i, p in enumerate(parts)], dim=1)
    assert which.sum(1).eq(1).all() and which.sum(0).tolist() == [4, 4]
    assert not space.contains(outside).any()
    with pytest.warns(UserWarning, match="1 to 2, 0.01 to 0.1"):
        space.warn(outside)
    with pytest.raises(ValueError, match=r"has 2 number.*found shape \(3,\)"):
        space.check(torch.ones(3))


def test_a_family_of_several_numbers_is_learned() -> None:
    """u'' = -a k^2 sin(k x), a and k being the task."""
    box = Box.cube(1)

    def solution(x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        return task[..., :1] * torch.sin(task[..., 1:] * x)

    def interior(u: Function, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        return taylor(u, x, weights=[1.0])[2] + task[:, 1:] ** 2 * solution(x, task)

    def ends(u: Function, x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        return u(x) - solution(x, task)

    def both(n: int, tasks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return torch.tensor([0.0, 1.0])[:, None].expand(len(tasks), -1, -1)

    conditions = {
        "interior": Condition(box.interior, interior, 20),
        "ends": Condition(both, ends, 2),
    }
    space = Intervals((Interval(0.5, 1.5), Interval(1.0, 4.0)))
    grid = torch.linspace(0, 1, 51, dtype=F64)[:, None]
    family = Family("waves", box, space, conditions, solution, grid)
    middle = family.problem(torch.tensor([1.0, 2.0]))
    base = pinn(MLP((1, 10, 10, 1)).double(), middle, LevenbergSchedule(), steps=15)
    h = HyperLoRA(base, space, 2, hidden=(16, 16))
    test = family.splits().test[:5]
    before = family.errors(h.pinn, test).mse.mean()
    by_physics(
        h, family, lambda g: space.sample(12, g), LevenbergSchedule(), {"interior": 10}, steps=25
    )
    assert family.errors(h.pinn, test).mse.mean() < before / 100


def test_the_example_of_a_family_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It runs; and where a = 1 its residual vanishes at the solution of Liouville and Bratu."""
    fit = schedules.fit
    monkeypatch.setattr(schedules, "fit", lambda *a, **k: fit(*a, **{**k, "steps": 1}))
    example = Path(__file__).parents[2] / "examples" / "hyperlora_own_family.py"
    monkeypatch.syspath_prepend(str(example.parent))
    script = runpy.run_path(str(example))
    family = script["family"]
    script["main"](steps=1, shown=3, out=tmp_path / "family.png")
    assert capsys.readouterr().out.count("predicted") == 3
    tasks = torch.tensor([[1.0, 0.7], [1.0, 1.9]], dtype=F64)
    for task in tasks:
        half = 1 - 4 / float(task[1])
        c = -half - math.sqrt(half**2 - 1)  # b (1 + c)^2 = 8 c

        def exact(x: object, c: float = c) -> torch.Tensor:
            r2 = x[:, :1] * x[:, :1] + x[:, 1:] * x[:, 1:]
            return 2 * math.log(1 + c) - 2 * torch.log(1 + c * r2)

        for r in family.problem(task).sample(dtype=F64).residuals(exact)().values():
            assert r.abs().max() < 1e-12


def test_what_a_familys_author_gets_wrong_is_named() -> None:
    family, tasks = kovasznay(), kovasznay().space.nodes(3)
    shared = Condition(lambda n, tasks, generator: torch.rand(n, 2), lambda u, x, k: u(x), 5)
    with pytest.raises(ValueError, match=r"shape \(5, 2\) for 3 tasks: return \(T, n, d\)"):
        replace(family, conditions={"all": shared}).sample(tasks)
    for wrong, shape in (
        (lambda u, x, k: u(x), r"\(15, 3\)"),
        (lambda u, x, k: u(x).sum(), r"\(\)"),
    ):
        own = Condition(family.conditions["interior"].points, wrong, 5)
        written = replace(family, conditions={"all": own})
        with pytest.raises(ValueError, match=rf"residual 'all' has shape {shape} at 15 points"):
            written.residuals(nn.Linear(2, 3).double(), tasks, written.sample(tasks))


def test_a_family_without_a_solution() -> None:
    """It is trained and certified by its residuals; what needs a solution says so."""
    whole = kovasznay()
    family = Family(whole.name, whole.domain, whole.space, whole.conditions)
    few = {"interior": 30, "boundary": 20}
    base = pinn(MLP((2, 8, 3)).double(), family.problem(40), LevenbergSchedule(few), steps=2)
    h = HyperLoRA(base, family.space, 2, hidden=(6,))
    by_physics(h, family, lambda g: family.space.nodes(2), LevenbergSchedule(), few, steps=2)
    solved = solve(h, family, 60, steps=2, sizes=few)
    assert solved.loss <= solved.predicted
    for asks in (family.reference, lambda t: family.errors(h.pinn, torch.tensor([[t]]))):
        with pytest.raises(ValueError, match="no solution of this family is known"):
            asks(60.0)


def test_a_network_of_other_fields_is_not_compared() -> None:
    with pytest.raises(ValueError, match=r"shape \(10201, 1\) and the solution has \(10201, 3\)"):
        kovasznay().errors(lambda task: MLP((2, 4, 1)).double(), torch.tensor([[40.0]]))


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_points_and_residuals_are_made_on_the_networks_device(family: Family) -> None:
    """Mixing a CPU tensor with one on the device without data is an error."""
    fields = fields_of(family)
    u = nn.Sequential(nn.Linear(family.domain.dim, 5), nn.Tanh(), nn.Linear(5, fields)).to("meta")
    sizes = dict.fromkeys(family.conditions, 8)
    one = family.problem(family.space.sample(1)).sample(seeded(), sizes, torch.float32, "meta")
    h = HyperLoRA(u, family.space, 2, hidden=(7,))
    problem = TaskProblem(family, 3, sizes=sizes)
    many = problem.sample(seeded(), dtype=torch.float32, device="meta")
    for batch, network in ((one, u), (many, h)):
        for x in (*batch.points.values(), *batch.residuals(network)().values()):
            assert x.device.type == "meta" and x.dtype == torch.float32


def fields_of(family: Family) -> int:
    return {"Kovasznay flow": 3, "2D Burgers": 2}.get(family.name, 1)


def test_a_centred_field_is_seen_in_its_own_frame() -> None:
    space = GaussianField(centred=True)
    tasks = space.sample(5, torch.Generator().manual_seed(0))
    offset = space.offset(tasks)
    first = torch.fft.rfft(space.embed(tasks))[:, 1]
    assert offset.shape == (5, 1) and (first.imag.abs() < 1e-12 * first.real).all()
    moved = space.moved(tasks, offset)
    x = torch.rand(5, 2, dtype=torch.float64)
    there = x + torch.nn.functional.pad(offset, (1, 0))
    difference = heat_flow(moved, x, 0.01)[0] - heat_flow(tasks, there, 0.01)[0]
    assert difference.abs().max() < 1e-12
    again = space.moved(tasks, torch.full((5, 1), 0.3, dtype=torch.float64))
    assert (space.embed(again) - space.embed(tasks)).abs().max() < 1e-10
    assert GaussianField().offset(tasks).shape == (5, 0)


def test_moving_a_task_moves_its_prediction() -> None:
    space = burgers1d().space
    base = nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, 6, 1))).double()
    h = HyperLoRA(base, space, 2, hidden=(9,))
    task = space.sample(1, torch.Generator().manual_seed(0))
    there = space.moved(task, torch.tensor([[0.3]], dtype=torch.float64))
    x = torch.rand(20, 2, dtype=torch.float64)
    ahead = x + torch.tensor([0.0, 0.3], dtype=torch.float64)
    assert (h(there, x) - h(task, ahead)).abs().max() < 1e-10
    v = h.pinn(task[0])
    assert (v(x) - h(task, x)[0]).abs().max() < 1e-12
    assert (h.numbers(v) - h.factors(task)[0]).abs().max() == 0
    points = burgers1d().sample(task, None, {"interior": 7, "initial": 5})
    closure = TaskResiduals(h, task, lambda u: burgers1d().residuals(u, task, points))
    linearize(closure, h.network.parameters(), check=True)
