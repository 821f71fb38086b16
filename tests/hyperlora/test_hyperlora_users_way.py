"""The way of somebody with a family of their own: base, samplers, tasks, saving, estimates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import hyperlora_ext as hl
from hyperlora_ext import schedules
from hyperlora_ext.base_check import SOLVED, unsolved
from hyperlora_ext.condition import Condition, Function
from hyperlora_ext.family import Family
from hyperlora_ext.problems import burgers1d, helmholtz, kovasznay
from hyperlora_ext.schedules import GaussNewtonSchedule, KFACPINNSchedule, LevenbergSchedule, suited
from hyperlora_ext.task_problem import TaskProblem
from kfac_pinn import MLP, Box, taylor
from kfac_pinn.pinn.domains import grid, sobol, together

F64 = torch.float64


def decay(space: hl.Interval, box: Box, points: object = None, size: int = 20) -> Family:
    """u' + k u = 0 on [0, 1], u(0) = 1: the tasks are k."""

    def interior(u: Function, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        value, (slope,) = taylor(u, x, order=1)
        return slope + k * value

    def start(u: Function, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return u(x) - 1

    def left(n: int, tasks: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return torch.zeros(len(tasks), n, 1)

    inside = Condition(box.interior if points is None else points, interior, size)  # type: ignore[arg-type]
    return Family(
        "decay",
        box,
        space,
        {"interior": inside, "start": Condition(left, start, 1)},
        lambda x, k: torch.exp(-k * x),
        torch.linspace(0, 1, 51, dtype=F64)[:, None],
    )


FAMILY = decay(hl.Interval(1.0, 3.0), Box.cube(1))


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    return hl.pretrain(MLP((1, 8, 8, 1)).double(), FAMILY, steps=20)


@pytest.fixture(scope="module")
def hyper(base: nn.Module) -> hl.HyperLoRA:
    torch.manual_seed(1)
    h = hl.HyperLoRA(base, FAMILY.space, 2, hidden=(12, 12), solves=FAMILY.problem(2.0))
    LevenbergSchedule()(h, TaskProblem(FAMILY, 8), steps=25)
    return h


# --- the base ------------------------------------------------------------------------------------


def test_a_base_is_trained_on_the_middle_task(base: nn.Module) -> None:
    assert FAMILY.errors(lambda task: base, torch.tensor([[2.0]])).relative < 1e-3
    loss, part = unsolved(base, FAMILY.problem(2.0))
    assert loss < part * 1.0 < SOLVED  # u = 0 has the loss 1/2 of its start


def test_a_base_of_many_points_and_weights_is_not_solved_by_dense_matrices() -> None:
    wide, few = MLP((1, 64, 64, 1)), FAMILY.problem(2.0)
    many = replace(few, terms={n: replace(t, size=3000) for n, t in few.terms.items()})
    assert isinstance(suited(wide, few), LevenbergSchedule)
    assert isinstance(suited(MLP((1, 8, 8, 1)), many), LevenbergSchedule)
    assert suited(wide, many) == KFACPINNSchedule()


def test_the_schedule_of_many_points_trains_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "DENSE", 1)
    torch.manual_seed(0)
    base = hl.pretrain(MLP((1, 8, 8, 1)).double(), FAMILY, steps=20)
    assert FAMILY.errors(lambda task: base, torch.tensor([[2.0]])).relative < 1e-3


def test_adapters_of_many_numbers_may_be_trained_at_one_ratio(base: nn.Module) -> None:
    """Within a few steps: a new network's low ratio would take a hundred of them."""
    torch.manual_seed(0)
    errors = {}
    for ratio in (0.1, 0.85):
        v = hl.adapt(base, 2, aimed=FAMILY.problem(2.6))
        GaussNewtonSchedule(every=20, ratio=ratio)(v, FAMILY.problem(2.6), steps=8)
        errors[ratio] = float(FAMILY.errors(lambda task, v=v: v, torch.tensor([[2.6]])).relative)
    assert errors[0.85] < 1e-3 and 10 * errors[0.85] < errors[0.1]


def test_a_base_that_is_not_solved_is_warned_about_with_its_number(base: nn.Module) -> None:
    new, problem = MLP((1, 8, 8, 1)).double(), FAMILY.problem(2.0)
    loss, _ = unsolved(new, problem)
    for asks in (
        lambda: hl.adapt(new, 2, solves=problem),
        lambda: hl.HyperLoRA(new, FAMILY.space, 2, hidden=(4,), solves=problem),
        lambda: hl.pretrain(new, FAMILY, steps=0),
    ):
        with pytest.warns(UserWarning, match=f"decay, task 2: its held-out loss is {loss:.2g}"):
            asks()
    broken = MLP((1, 8, 8, 1)).double()
    nn.init.constant_(broken.layers[-1].get_parameter("bias"), math.nan)
    with pytest.warns(UserWarning, match="does not solve"):
        hl.adapt(broken, 2, solves=problem)
    hl.adapt(base, 2, solves=problem)  # warnings are errors here: there is none


@pytest.mark.parametrize("family", [kovasznay(), burgers1d(), helmholtz()], ids=lambda f: f.name)
def test_the_middle_of_a_space_is_one_of_its_tasks(family: Family) -> None:
    middle = family.space.middle()
    assert middle.shape == (family.space.inputs,) and family.space.contains(middle[None]).all()
    both = hl.Intervals((hl.Interval(1, 3), hl.Interval(0.1, 10, torch.log, torch.exp)))
    assert both.middle().tolist() == pytest.approx([2.0, 1.0])


# --- samplers ------------------------------------------------------------------------------------


def own(n, generator=None, dtype=None, device=None):  # type: ignore[no-untyped-def]
    """As a Term takes it."""
    return torch.rand(n, 1, generator=generator, dtype=dtype, device=device) / 2


def strict(n, generator, dtype, device):  # type: ignore[no-untyped-def]
    return torch.full((n, 1), 0.25, dtype=dtype, device=device)


class Sampling:
    """An object that is called."""

    def __call__(self, n, generator=None, dtype=None, device=None):  # type: ignore[no-untyped-def]
        return own(n, generator, dtype, device)


BOX = Box.cube(1)
SAMPLERS = {
    "interior": BOX.interior,
    "sobol": Box((0.0,), (1.0,), sobol).interior,
    "grid": Box((0.0,), (1.0,), grid).interior,
    "boundary": BOX.boundary,
    "where": BOX.interior.where(lambda x: x[:, 0] < 0.5),
    "together": together(BOX.interior, BOX.boundary),
    "union": (BOX | Box((0.5,), (2.0,))).interior,
    "a function": own,
    "a function of four": strict,
    "an object": Sampling(),
    "a lambda": lambda n, *given: own(n, *given),
    "of tasks": lambda n, tasks, generator: torch.rand(len(tasks), n, 1, generator=generator),
    "of tasks, with a default": lambda n, tasks, generator=None: torch.rand(len(tasks), n, 1),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_of_the_core_draws_points_of_a_family(name: str) -> None:
    """To each task its own n points; the problem of one task takes them as well."""
    family = decay(FAMILY.space, BOX, SAMPLERS[name], 7)
    tasks = family.space.nodes(3)
    points = family.sample(tasks, torch.Generator().manual_seed(0))["interior"]
    assert points.shape == (3, 7, 1) and points.dtype == F64
    again = family.sample(tasks, torch.Generator().manual_seed(0))["interior"]
    if "default" not in name:
        assert torch.equal(points, again)
    if name == "together":  # each task has points of both
        assert (points[:, :4] % 1 != 0).all() and (points[:, 4:] % 1 == 0).all()
    batch = family.problem(2.0).sample(torch.Generator().manual_seed(0), dtype=F64)
    assert batch.points["interior"].shape == (7, 1)
    residuals = (
        TaskProblem(family, 2)
        .sample(dtype=F64)
        .residuals(hl.HyperLoRA(MLP((1, 4, 1)).double(), family.space, 1, hidden=(3,)))
    )
    assert all(r.isfinite().all() for r in residuals().values())


# --- numbers of tasks ----------------------------------------------------------------------------


def test_a_number_of_tasks_may_be_of_any_integer_type() -> None:
    numpy = pytest.importorskip("numpy")
    for count in (3, numpy.int64(3), numpy.int32(3)):
        assert len(TaskProblem(FAMILY, count).sample().tasks) == 3
    fixed = [[1.0], [2.0]]
    for tasks in (fixed, torch.tensor(fixed), numpy.array(fixed)):
        assert TaskProblem(FAMILY, tasks).sample().tasks.tolist() == fixed
    for wrong, match in ((0, "at least 1"), (True, "at least 1")):
        with pytest.raises(ValueError, match=match):
            TaskProblem(FAMILY, wrong)


# --- an estimated error --------------------------------------------------------------------------


def test_the_estimated_error_is_of_the_size_of_the_true_one(hyper: hl.HyperLoRA) -> None:
    known = hl.calibrate(hyper, FAMILY, steps=2)
    assert known.pairs == 16 and known.spread >= 1
    assert known.error(4e-6) == pytest.approx(2e-3 * known.ratio)
    for k in (1.2, 2.6):
        for steps in (0, 2):
            solved = hl.solve(hyper, FAMILY, k, steps=steps, calibration=known)
            true = float(FAMILY.errors(lambda _, s=solved: s.model, torch.tensor([[k]])).relative)
            assert solved.error is not None and 0.02 < true / solved.error < 50
    assert hl.solve(hyper, FAMILY, 1.2, steps=0).error is None


def test_without_a_solution_two_resolutions_tell_the_error(hyper: hl.HyperLoRA) -> None:
    """The same ratio, found without the solution, for errors larger than the finer network's."""
    blind = Family(FAMILY.name, FAMILY.domain, FAMILY.space, FAMILY.conditions)
    tasks = FAMILY.space.nodes(3)
    seen, found = (hl.calibrate(hyper, f, tasks, steps=1) for f in (FAMILY, blind))
    assert 0.1 < found.ratio / seen.ratio < 10


# --- what is given by mistake --------------------------------------------------------------------

WIDE = hl.HyperLoRA(MLP((2, 4, 1)).double(), FAMILY.space, 1, hidden=(4,))
FROZEN = MLP((1, 4, 1)).double().requires_grad_(False)
NO_GRID = replace(FAMILY, grid=torch.empty(0, 0))
NO_SIZE = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 1))
TWO = torch.tensor([[2.0]])

MISTAKES: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "a base of other points": (
        ValueError,
        r"does not take the points of the problem 'decay'.* \(N, 1\)",
        lambda: LevenbergSchedule()(WIDE, TaskProblem(FAMILY, 2), steps=1),
    ),
    "a network of other points": (
        ValueError,
        r"does not take the points of the problem 'decay, task 2'",
        lambda: LevenbergSchedule()(MLP((2, 4, 1)).double(), FAMILY.problem(2.0), steps=1),
    ),
    "a family for a problem": (
        TypeError,
        "LevenbergSchedule: problem must be a Problem",
        lambda: LevenbergSchedule()(FROZEN, FAMILY, steps=1),  # type: ignore[arg-type]
    ),
    "nothing to train": (
        ValueError,
        "a MLP, has no parameter to train",
        lambda: LevenbergSchedule()(FROZEN, FAMILY.problem(2.0), steps=1),
    ),
    "nothing to train, many points": (
        ValueError,
        "a MLP, has no parameter to train",
        lambda: KFACPINNSchedule()(FROZEN, FAMILY.problem(2.0), steps=1),
    ),
    "a network for its function": (
        TypeError,
        "predict must be .* `lambda task: network` .* found a MLP",
        lambda: FAMILY.errors(FROZEN, TWO),  # type: ignore[arg-type]
    ),
    "a hypernetwork for its function": (
        TypeError,
        "`hyper.pinn` .* found a HyperLoRA",
        lambda: FAMILY.errors(WIDE, TWO),  # type: ignore[arg-type]
    ),
    "values for a network": (
        TypeError,
        "predict must return a network, .* found a Tensor for the task 2",
        lambda: FAMILY.errors(lambda task: FROZEN(FAMILY.grid), TWO),
    ),
    "no grid": (
        ValueError,
        r"decay has a solution and no points .* grid=points \(M, d\)",
        lambda: NO_GRID.errors(lambda task: FROZEN, TWO),
    ),
    "a network for a hypernetwork": (
        TypeError,
        r"trains a HyperLoRA, found a MLP: .* parametric\(family\)",
        lambda: LevenbergSchedule()(MLP((1, 4, 1)), TaskProblem(FAMILY, 2), steps=1),
    ),
    "a hypernetwork for a network": (
        TypeError,
        r"train it on TaskProblem\(family\)",
        lambda: LevenbergSchedule()(WIDE, FAMILY.problem(2.0), steps=1),
    ),
    "a hypernetwork for a network of points and tasks": (
        TypeError,
        r"train it on TaskProblem\(family\)",
        lambda: LevenbergSchedule()(WIDE, hl.parametric(FAMILY), steps=1),
    ),
    "a hypernetwork for a base": (
        ValueError,
        r"are emitted for each task: .* hyper.pinn\(task\)",
        lambda: hl.adapt(WIDE, 1),
    ),
    "layers without a size": (
        ValueError,
        "layer '0' has no size yet: call Sequential at",
        lambda: hl.adapt(NO_SIZE, 1),
    ),
    "a flag for a task": (TypeError, "is 1 number.*, found True", lambda: FAMILY.problem(True)),
    "a negative number of steps": (
        ValueError,
        "solve: steps must be a whole number, at least 0, found -1",
        lambda: hl.solve(WIDE, FAMILY, 2.0, steps=-1),
    ),
    "a tolerance that is none": (
        ValueError,
        "solve: tolerance .* found nan",
        lambda: hl.solve(WIDE, FAMILY, 2.0, tolerance=math.nan),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name: str) -> None:
    error, says, call = MISTAKES[name]
    with pytest.raises(error, match=f"(?s){says}"):
        call()


def test_a_base_is_warned_about_at_the_line_that_asks() -> None:
    with pytest.warns(UserWarning, match="does not solve") as said:
        hl.pretrain(MLP((1, 4, 1)).double(), FAMILY, steps=0)
    assert [each.filename for each in said] == [__file__]


# --- saving --------------------------------------------------------------------------------------


def test_a_hypernetwork_is_saved_and_loaded_in_one_call(
    hyper: hl.HyperLoRA, tmp_path: Path
) -> None:
    file, tasks = tmp_path / "decay.hyper", FAMILY.space.nodes(3)
    hl.save(hyper, file)
    alike = hl.HyperLoRA(MLP((1, 8, 8, 1)).double(), FAMILY.space, 2, hidden=(12, 12))
    before = alike(tasks, FAMILY.grid)
    again = hl.load(alike, file)
    assert torch.equal(again(tasks, FAMILY.grid), hyper(tasks, FAMILY.grid))
    assert torch.equal(alike(tasks, FAMILY.grid), before)  # the one given stays as it was
    wider = hl.HyperLoRA(MLP((1, 8, 8, 1)).double(), FAMILY.space, 2, hidden=(13, 12))
    with pytest.raises(ValueError, match=r"another hypernetwork: network\.layers"):
        hl.load(wider, file)
    elsewhere = hl.HyperLoRA(MLP((1, 8, 8, 1)).double(), hl.Interval(5, 9), 2, hidden=(12, 12))
    with pytest.raises(ValueError, match=r"trained on tasks Interval\(lower=1"):
        hl.load(elsewhere, file)
    hl.save(hl.adapt(MLP((1, 8, 8, 1)).double(), 2), tmp_path / "factors")
    with pytest.raises(ValueError, match="no hypernetwork"):
        hl.load(alike, tmp_path / "factors")
    with torch.no_grad():
        wider.start[0] = math.nan
    with pytest.raises(ValueError, match="start is not finite"):
        hl.save(wider, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
