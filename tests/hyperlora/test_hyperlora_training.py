"""Schedules and regimes: what they reach, when new points come, and that runs can be resumed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import regimes
import torch
from published_schedule import PUBLISHED_HYPER, PUBLISHED_PINN, PublishedSchedule
from torch import Generator, nn

from hyperlora_ext import certified
from hyperlora_ext.adaptation import adapt
from hyperlora_ext.certified import held_out_loss, solve
from hyperlora_ext.condition import residuals_of
from hyperlora_ext.directions import direction
from hyperlora_ext.growth import common_ranks, extended, grow
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import adapters, count
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.schedules import (
    LevenbergSchedule,
    StochasticSchedule,
    Train,
)
from hyperlora_ext.task_problem import TaskProblem, known_fields
from kfac_pinn.jacobian.closure import linearize
from kfac_pinn.optimizers.levenberg_marquardt import LevenbergMarquardt, Solver
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Batch, Problem
from kfac_pinn.pinn.training import Callback, Checkpoint, Run

F64 = torch.float64
FAMILY = kovasznay()
SIZES = {"interior": 80, "boundary": 40}
OURS = LevenbergSchedule(SIZES, {"interior": 200, "boundary": 80})
FEW = {"interior": 12, "boundary": 8}
PAPER = PublishedSchedule(30, 10, 5, polish=3, sizes=FEW)
FRESH = StochasticSchedule(lr=0.1, momentum=0.5)


def task(reynolds: float) -> torch.Tensor:
    return torch.tensor([reynolds], dtype=F64)


@pytest.fixture(scope="module")
def base() -> Iterator[nn.Module]:
    """A small PINN of Re 40, trained for a moment."""
    torch.manual_seed(0)
    network = MLP((2, 16, 16, 3)).double()
    yield regimes.pinn(network, FAMILY.problem(task(40)), OURS, steps=60)


def mse(model: nn.Module, reynolds: float) -> float:
    return float(FAMILY.errors(lambda _: model, task(reynolds)).mse)


# --- Levenberg-Marquardt -------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [5, 40])
def test_both_sides_give_the_damped_step(rows: int) -> None:
    model, x = MLP((2, 4, 1)).double(), torch.rand(rows, 2, dtype=F64)
    lin = linearize(lambda: model(x) - 1, list(model.parameters()))
    solver, J = Solver(lin), lin.rows()
    assert solver.tall == (rows == 40)
    step = solver.step(0.1)
    right = -torch.linalg.solve(J.T @ J + 0.1 * torch.eye(lin.size, dtype=F64), lin.gradient)
    assert (step - right).abs().max() < 1e-12
    assert solver.mean_diagonal == pytest.approx(float((J.T @ J).trace()) / lin.size)


def test_held_out_points_have_a_veto() -> None:
    model, x, other = MLP((1, 8, 1)).double(), torch.rand(9, 1).double(), torch.rand(30, 1).double()
    judges = lambda: model(other) - torch.sin(6 * other)  # noqa: E731
    optimizer = LevenbergMarquardt(model.parameters(), held_out=judges)
    losses = [held_out_loss(judges)]
    for _ in range(20):
        optimizer.step(lambda: model(x) - torch.sin(6 * x))
        losses.append(held_out_loss(judges))
    assert all(b <= 1.1 * a for a, b in pairwise(losses))
    assert losses[-1] < 0.3 * losses[0]


def test_a_point_set_that_teaches_nothing_is_left_alone() -> None:
    model, x = nn.Linear(1, 1).double(), torch.rand(5, 1, dtype=F64)
    with torch.no_grad():
        judged = model(x).clone()
    optimizer = LevenbergMarquardt(model.parameters(), held_out=lambda: model(x) - judged)
    before = [p.clone() for p in model.parameters()]
    optimizer.step(lambda: model(x) - 5)
    assert "held-out" in optimizer.stats["reason"] and optimizer.vetoed
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.memory.damping > 0


# --- the regimes ---------------------------------------------------------------------------------


def test_one_task_three_ways(base: nn.Module) -> None:
    problem, before = FAMILY.problem(task(50)), copy.deepcopy(base.state_dict())
    untouched = mse(base, 50)
    fine = regimes.f_pinn(base, problem, OURS, steps=10)
    lora = regimes.l_pinn(base, problem, OURS, rank=2, steps=20)
    assert mse(fine, 50) < untouched / 20 and mse(lora, 50) < untouched / 5
    assert count(fine) == count(base) > count(lora)
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())


@pytest.mark.parametrize("rank", [2, None])
def test_a_hypernetwork_four_ways(base: nn.Module, rank: int | None) -> None:
    train, tasks = LevenbergSchedule(every=2), FAMILY.space.nodes(8)
    start = HyperLoRA(base, FAMILY.space, rank, hidden=(12, 12))
    test = FAMILY.space.sample(2)
    untouched = float(FAMILY.errors(lambda _: base, test).mse.mean())

    def error(h: HyperLoRA) -> float:
        return float(FAMILY.errors(h.pinn, test).mse.mean())

    physics, data, pinns, weights = (copy.deepcopy(start) for _ in range(4))
    small = {"interior": 16, "boundary": 8}
    regimes.by_physics(physics, FAMILY, lambda g: tasks, train, small, steps=8)
    regimes.by_data(data, FAMILY, lambda g: tasks, train, 30, steps=8)
    networks = regimes.teachers(weights, FAMILY, tasks, OURS, steps=5)
    regimes.by_pinns(pinns, FAMILY, (tasks, networks), train, 30, steps=8)
    adam, known = copy.deepcopy(weights), (tasks, networks)
    with torch.no_grad():
        theta = torch.stack([adam.numbers(v) for v in networks])
        distance = float((theta - adam.factors(tasks)).square().mean().sqrt())
    schedule = PublishedSchedule(60, 40, 10, patience=60)
    assert regimes.by_weights(weights, FAMILY, known) < distance
    assert regimes.by_weights(adam, FAMILY, known, schedule) < distance
    assert error(physics) < untouched / 3 and error(data) < untouched / 3
    assert error(pinns) < untouched / 3 and error(weights) < untouched


@pytest.mark.parametrize("damping", [1e-3, 1.0, 100.0])
def test_what_is_left_of_a_task_that_the_others_predict(damping: float) -> None:
    """By solving anew without each of them."""
    phi = torch.randn(7, 4, generator=Generator().manual_seed(0), dtype=F64)
    kernel, known = phi @ phi.T + 1, torch.randn(7, 5, dtype=F64)
    squares = []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        inside = kernel[others][:, others] + damping * torch.eye(6, dtype=F64)
        predicted = kernel[i, others] @ torch.linalg.solve(inside, known[others])
        squares.append((known[i] - predicted).square())
    expected = float(torch.stack(squares).mean())
    assert regimes.left_out(kernel, known, damping) == pytest.approx(expected, rel=1e-9)


def test_fresh_tasks_are_new_with_every_batch() -> None:
    problem = TaskProblem(FAMILY, 3, sizes=FEW)
    generator = Generator().manual_seed(0)
    first, second = problem.sample(generator, dtype=F64), problem.sample(generator, dtype=F64)
    assert first.tasks.shape == (3, 1) and not torch.equal(first.tasks, second.tasks)
    assert first.points["interior"].shape == (3, 12, 2)


class Interruption(Callback):
    """Once, within a period of the points."""

    over = False

    def on_step(self, run: Run) -> None:
        if run.step == 7 and not self.over:
            self.over = True
            run.stop("interrupted")


def test_a_resumed_run_is_the_uninterrupted_one(base: nn.Module, tmp_path: Path) -> None:
    fresh = TaskProblem(FAMILY, 3, sizes=FEW)
    cases: list[tuple[Train, Problem]] = [(OURS, FAMILY.problem(task(60)))]
    cases += [(LevenbergSchedule(every=3), fresh), (PAPER, fresh), (FRESH, fresh)]

    def start(index: int) -> nn.Module:
        torch.manual_seed(5)
        return HyperLoRA(base, FAMILY.space, 2, hidden=(8, 8)) if index else adapt(base, 2)

    for index, (train, problem) in enumerate(cases):
        whole, part, rest = (start(index) for _ in range(3))
        train(whole, problem, steps=14)
        saved, pause = Checkpoint(tmp_path / f"{index}.pt", every=4), Interruption()
        train(part, problem, steps=14, callbacks=[saved, pause])
        train(rest, problem, steps=14, callbacks=[saved, pause])
        pairs = zip(whole.parameters(), rest.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), index


def test_a_part_of_no_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start=0\.5 is a part of the points: give their `sizes`"):
        LevenbergSchedule(start=0.5)


def test_a_stochastic_schedule_learns_and_comes_to_rest(base: nn.Module) -> None:
    torch.manual_seed(0)
    h = HyperLoRA(base, FAMILY.space, 2, hidden=(12, 12))
    fresh, test = lambda g: FAMILY.space.sample(6, g), FAMILY.space.nodes(4)
    before = float(FAMILY.errors(h.pinn, test).mse.mean())
    rates: list[float] = []

    class Watch(Callback):
        def on_step(self, run: Run) -> None:
            rates.append(run.optimizer.param_groups[0]["lr"])

    train = StochasticSchedule()
    history = regimes.by_physics(h, FAMILY, fresh, train, FEW, steps=20, callbacks=[Watch()])
    assert float(FAMILY.errors(h.pinn, test).mse.mean()) < before / 10
    assert rates == pytest.approx([0.3 * (1 - k / 20) for k in range(1, 21)])
    assert history.last["step"] == 20


@pytest.mark.usefixtures("a_step_is_a_second")
def test_a_stochastic_schedule_comes_to_rest_at_the_end_of_its_seconds(base: nn.Module) -> None:
    h, rates = HyperLoRA(base, FAMILY.space, 2, hidden=(12, 12)), []
    problem = TaskProblem(FAMILY, 2, sizes=FEW)

    class Watch(Callback):
        def on_step(self, run: Run) -> None:
            rates.append(run.optimizer.param_groups[0]["lr"])

    StochasticSchedule()(h, problem, seconds=4.0, callbacks=[Watch()])
    assert rates == pytest.approx([0.3 * (1 - k / 4) for k in range(1, 5)])


def test_a_stochastic_schedule_damps_in_units_of_the_rows(base: nn.Module) -> None:
    """A thousandth of the mean of ||dr_n / dphi||^2, each row by autograd; residuals / sqrt(N)."""
    h = HyperLoRA(base, FAMILY.space, 2, hidden=(6,))
    problem = TaskProblem(FAMILY, 2, sizes=FEW)
    batch = problem.sample(Generator().manual_seed(4), dtype=F64)
    residuals, squares = batch.residuals(h)().values(), []
    parameters = [p for p in h.parameters() if p.requires_grad]
    for residual in residuals:
        for r in residual.flatten():
            row = torch.autograd.grad(r, parameters, retain_graph=True)
            squares.append(sum(float(g.square().sum()) for g in row) / residual.numel())
    optimizer = StochasticSchedule(damping=1e-3).optimizer(h, problem, seed=4)
    expected = 1e-3 * sum(squares) / len(squares)
    assert optimizer.param_groups[0]["damping"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", [OURS, PAPER], ids=["ours", "paper"])
def test_a_seed_makes_a_run_again(base: nn.Module, schedule: Train) -> None:
    """The seed of torch makes the start of a hypernetwork, the schedule's its points."""

    def ends(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        h = HyperLoRA(base, FAMILY.space, 2, hidden=(6,))
        fresh = lambda g: FAMILY.space.sample(2, g)  # noqa: E731
        own = schedule if schedule is PAPER else LevenbergSchedule(every=2)
        regimes.by_physics(h, FAMILY, fresh, own, FEW, steps=3, seed=seed)
        v = regimes.l_pinn(base, FAMILY.problem(60), schedule, 2, steps=3, seed=seed)
        return [p for m in (h, v) for p in m.parameters() if p.requires_grad]

    first, again, other = ends(0), ends(0), ends(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("rank", [2, None])
def test_regression_on_weights_needs_a_schedule_of_torch(base: nn.Module, rank: int | None) -> None:
    h = HyperLoRA(base, FAMILY.space, rank, hidden=(6,))
    known = FAMILY.space.nodes(2), [h.pinn(t) for t in FAMILY.space.nodes(2)]
    with pytest.raises(RuntimeError, match="takes one of torch's optimizers"):
        regimes.by_weights(h, FAMILY, known, LevenbergSchedule(), steps=1)


def test_every_regime_takes_the_papers_schedule(base: nn.Module) -> None:
    """Ours is `test_one_task_three_ways` and `test_a_hypernetwork_four_ways`."""
    problem, nodes = FAMILY.problem(50), FAMILY.space.nodes(3)
    for trained in (
        regimes.pinn(copy.deepcopy(base), problem, PAPER, steps=3),
        regimes.f_pinn(base, problem, PAPER, steps=3),
        regimes.l_pinn(base, problem, PAPER, 2, steps=3),
    ):
        assert mse(trained, 50) < mse(base, 50)
    for rank in (2, None):
        start = HyperLoRA(base, FAMILY.space, rank, hidden=(6, 6))
        known = nodes, regimes.teachers(start, FAMILY, nodes, PAPER, steps=2)
        before = float(FAMILY.errors(start.pinn, nodes).mse.mean())
        for way, what in (("physics", FEW), ("data", 20), ("pinns", 20), ("weights", None)):
            h = copy.deepcopy(start)
            train = getattr(regimes, f"by_{way}")
            given = known if way in ("pinns", "weights") else lambda g: nodes
            extra = () if what is None else (what,)
            train(h, FAMILY, given, PublishedSchedule(30, 20, 5, polish=5), *extra)
            assert float(FAMILY.errors(h.pinn, nodes).mse.mean()) < before, (rank, way)


def test_data_vanish_at_the_solution() -> None:
    tasks, sizes = FAMILY.space.nodes(2), {"field": 7}
    problem = TaskProblem(FAMILY, tasks, known_fields(FAMILY), sizes)
    batch = problem.sample(Generator().manual_seed(0), dtype=F64)
    x = batch.points["field"][..., :2]
    truth = torch.cat([FAMILY.solution(*pair) for pair in zip(x, tasks, strict=True)])
    found = residuals_of(problem.terms, lambda x: truth, tasks, {"field": batch.points["field"]})
    assert list(found) == ["field 0", "field 1", "field 2"]
    assert all(r.shape == (14,) and r.abs().max() < 1e-14 for r in found.values())


def test_tasks_are_a_number_a_set_or_a_function() -> None:
    space, seeded = FAMILY.space, lambda: Generator().manual_seed(3)
    for tasks, expected in (
        (5, space.sample(5, seeded())),
        (lambda g: space.sample(5, g), space.sample(5, seeded())),
        (space.nodes(3), space.nodes(3)),
        (40.0, torch.tensor([[40.0]])),
    ):
        batch = TaskProblem(FAMILY, tasks, sizes=FEW).sample(seeded(), dtype=F64)
        assert torch.equal(batch.tasks, expected.double())
    assert len(TaskProblem(FAMILY).sample(seeded()).tasks) == 20
    with pytest.raises(ValueError, match="0 tasks in a batch: give at least 1"):
        TaskProblem(FAMILY, 0)
    with pytest.raises(ValueError, match=r"has 1 number\(s\); found shape \(3, 2\)"):
        TaskProblem(FAMILY, torch.ones(3, 2))
    with pytest.raises(ValueError, match="has 1 number"):
        TaskProblem(FAMILY, lambda g: torch.ones(3, 2)).sample()


def test_points_are_shared_among_conditions_unless_told() -> None:
    """A thousand rows are a step's; the conditions' own sizes are those of one task."""
    found = TaskProblem(FAMILY, 20).sample(Generator().manual_seed(0)).points
    assert found["interior"].shape == (20, 44, 2) and found["boundary"].shape == (20, 5, 2)
    with pytest.raises(KeyError, match="walls"):
        TaskProblem(FAMILY, 2, sizes={"walls": 3}).sample()


def test_published_schedule() -> None:
    rates = [PUBLISHED_PINN.rate(e) for e in (0, 9_999, 10_000, 15_000, 29_999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 1e-4])
    hyper = [PUBLISHED_HYPER.rate(e) for e in (4_999, 5_000, 8_000, 11_000, 14_000)]
    assert hyper == pytest.approx([1, 0.1, 0.01, 1e-3, 1e-4])


def test_published_schedule_trains_and_stops_early(base: nn.Module) -> None:
    problem = FAMILY.problem(task(45))
    v = adapt(base, 2)
    history = PAPER(v, problem)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"] and "L-BFGS" in history.reason
    stuck = PublishedSchedule(500, 100, 100, patience=1, sizes=FEW)
    assert "no progress" in stuck(adapt(base, 2), problem, steps=300).reason
    h = HyperLoRA(base, FAMILY.space, 2, hidden=(16, 16))
    problem = TaskProblem(FAMILY, FAMILY.space.nodes(4), sizes=FEW)
    history = PublishedSchedule(20, 10, 5, sizes=FEW)(h, problem)
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]


# --- predict, certify, polish --------------------------------------------------------------------


def test_predict_certify_polish(base: nn.Module) -> None:
    h = HyperLoRA(base, FAMILY.space, 2, hidden=(16, 16))
    good = solve(h, FAMILY, task(42), tolerance=1e9, sizes=SIZES)
    assert good.steps == 0 and good.loss == good.predicted
    polished = solve(h, FAMILY, task(60), steps=6, sizes=SIZES)
    assert polished.steps == 6 and polished.loss < polished.predicted / 10
    assert mse(polished.model, 60) < mse(h.pinn(task(60)), 60)
    with pytest.warns(UserWarning, match="outside the trained range"):
        solve(h, FAMILY, task(120), steps=1, sizes=SIZES)


def test_polishing_ends_at_its_best_and_draws_anew_after_a_step_in_vain(
    base: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    h = HyperLoRA(base, FAMILY.space, 2, hidden=(8,))
    seen: list[float] = []
    batches: list[Batch] = []

    class Watched(certified.Best):
        def on_step(self, run: Run) -> None:
            super().on_step(run)
            seen.append(held_out_loss(self.judges))
            batches.append(run.batch)

        def on_end(self, run: Run) -> None:
            super().on_end(run)
            seen.append(held_out_loss(self.judges))

    monkeypatch.setattr(certified, "Best", Watched)
    few = {"interior": 3, "boundary": 2}
    solved = solve(h, FAMILY, 60, steps=12, sizes=few)
    assert solved.steps == 12 and batches[0] is not batches[-1]  # five points are soon exhausted
    assert solved.loss == min(solved.predicted, *seen) == seen[-1]  # the model is left there
    first = next(loss for loss in seen if loss < solved.predicted)
    early = solve(h, FAMILY, 60, tolerance=1.0001 * first, steps=12, sizes=few)
    assert early.steps == 1 + seen.index(first) and early.loss == first


def test_a_task_is_solved_with_the_familys_own_points() -> None:
    few = {
        name: replace(c, size=n)
        for (name, c), n in zip(FAMILY.conditions.items(), (30, 20), strict=True)
    }
    family = replace(FAMILY, conditions=few)
    h = HyperLoRA(MLP((2, 6, 3)).double(), family.space, 2, hidden=(6,))
    all_of_them = solve(h, family, 60, steps=3, sizes={"interior": 30, "boundary": 20})
    default = solve(h, family, 60, steps=3)
    assert default.loss == all_of_them.loss <= default.predicted == all_of_them.predicted


# --- rank ----------------------------------------------------------------------------------------


def test_direction_is_the_svd_of_the_full_step(base: nn.Module) -> None:
    problem = FAMILY.problem(task(60))
    batch = problem.sample(Generator().manual_seed(0), SIZES, F64)
    found = direction(base, batch, batch)
    assert list(found.rows) == ["layers.0", "layers.1", "layers.2"]
    assert sum(found.share.values()) == pytest.approx(1)
    for name, layer in base.named_modules():
        if isinstance(layer, nn.Linear):
            rows = found.rows[name]
            assert rows.shape == (min(layer.weight.shape), layer.in_features)
            assert (rows @ rows.T - torch.eye(len(rows), dtype=F64)).abs().max() < 1e-12
            assert (found.spectrum[name].diff() <= 0).all()
    assert all(p.requires_grad for p in base.parameters())


def test_extending_keeps_the_function(base: nn.Module) -> None:
    v = adapt(base, 1, bias=True)
    for adapter in adapters(v).values():
        adapter.B.data.normal_()
        adapter.shift.data.normal_()
    batch = FAMILY.problem(task(60)).sample(Generator().manual_seed(0), SIZES, F64)
    found = direction(v, batch, batch)
    found.share.update(dict.fromkeys(found.share, 1.0))
    w, x = extended(v, found), torch.rand(5, 2, dtype=F64)
    assert (w(x) - v(x)).abs().max() < 1e-13
    assert [a.rank for a in adapters(w).values()] == [2, 2, 2]
    assert [a.rank for a in adapters(extended(w, found)).values()] == [2, 3, 3]


def test_rank_grows_until_it_no_longer_pays(base: nn.Module) -> None:
    problem = FAMILY.problem(task(60))
    grown = grow(base, problem, OURS, steps=12, most=3)
    assert grown.losses[1] < grown.losses[0] / 10
    assert 1 <= max(grown.ranks.values()) <= 3
    assert mse(grown.model, 60) < mse(base, 60) / 10
    easy = grow(base, problem, OURS, target=1e9, steps=1)
    assert set(easy.ranks.values()) == {1} and len(easy.losses) == 2


def test_ranks_of_a_family_are_the_largest_of_its_tasks(base: nn.Module) -> None:
    tasks = torch.tensor([[30.0], [70.0]], dtype=F64)
    options = {"steps": 5, "most": 2, "gain": 1.01}
    single = [grow(base, FAMILY.problem(t), OURS, **options).ranks for t in tasks]
    found = common_ranks(base, FAMILY, tasks, OURS, **options)
    assert found == {name: max(ranks[name] for ranks in single) for name in single[0]}
    h = HyperLoRA(base, FAMILY.space, found, hidden=(8,))
    assert [a.rank for a in adapters(h.pinn(tasks[0])).values()] == list(found.values())


def test_an_aimed_adapter_starts_as_the_base_along_the_full_step(base: nn.Module) -> None:
    problem, x = FAMILY.problem(task(60)), torch.rand(9, 2, dtype=F64)
    v = adapt(base, 2, aimed=problem)
    assert torch.equal(v(x), base(x))
    for adapter in adapters(v).values():  # singular vectors
        assert (adapter.A @ adapter.A.T - torch.eye(adapter.rank)).abs().max() < 1e-12
    OURS(v, problem, steps=5)
    assert mse(v, 60) < mse(base, 60) / 100


def test_hypernetworks_are_trained_by_levenberg_marquardt_directly(base: nn.Module) -> None:
    h = HyperLoRA(base, FAMILY.space, 2, hidden=(16, 16))
    problem = TaskProblem(FAMILY, FAMILY.space.nodes(4), sizes=FEW)
    optimizer = LevenbergMarquardt(h.parameters())
    closure = problem.sample(Generator().manual_seed(0), dtype=F64).residuals(h)
    losses = [float(optimizer.step(closure)) for _ in range(8)]
    assert losses[-1] < losses[0] / 10
