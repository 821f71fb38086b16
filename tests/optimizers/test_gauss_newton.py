"""GaussNewton: its step against a dense solve, sketches against the whole, and what it reaches."""

from __future__ import annotations

import io
import math

import pytest
import torch
from small_problems import flat, network, points, relative
from torch import Generator, Tensor

from kfac_pinn import GaussNewton, laplacian, linearize
from kfac_pinn.curvature.compression import Exact, Last, Sketch
from kfac_pinn.jacobian.losses import ConvexLoss
from kfac_pinn.optimizers.gauss_newton import damped_model
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import relative_l2
from kfac_pinn.pinn.problems import poisson_2d
from kfac_pinn.search.trust_region import TargetSchedule
from kfac_pinn.taylor_mode.operators import taylor


def setting(sizes=(2, 8, 8, 1), points=(60, 20), dtype=torch.float64, order=None):
    """A network and the residuals of 2d Poisson, points optionally in another order."""
    torch.manual_seed(0)
    model, problem = MLP(sizes).to(dtype), poisson_2d()
    batch = problem.sample(
        Generator().manual_seed(0), dict(zip(problem.terms, points, strict=True)), dtype
    )
    if order is not None:
        batch = type(batch)(batch.terms, {k: x[order(len(x))] for k, x in batch.points.items()})
    return model, batch.residuals(model)


def ritz(model):
    """Deep Ritz: the energy of -Laplace u = 1 and a penalty on the boundary."""
    x = torch.rand(50, 2, generator=Generator().manual_seed(0), dtype=torch.float64)
    edge = x.clone()
    edge[:, 0] = edge[:, 0].round()

    def energy(u, *du):
        return sum(p**2 for p in du) / 2 - u

    def residuals():
        u, du = taylor(model, x, order=1)
        return ConvexLoss((u, *du), energy), 10 * model(edge)

    return residuals


def problems():
    model, residuals = setting()
    yield model, residuals
    model, residuals = setting(sizes=(2, 4, 1))  # more rows than parameters
    yield model, residuals
    model = MLP((2, 6, 1)).double()
    yield model, ritz(model)


@pytest.mark.parametrize("index", range(3), ids=["wide", "tall", "Ritz"])
def test_the_step_is_the_damped_solve_and_keeps_its_word(index):
    model, residuals = list(problems())[index]
    parameters = list(model.parameters())
    optimizer = GaussNewton(parameters)
    for _ in range(3):
        lin, before = linearize(residuals, parameters), flat(model)
        optimizer.step(residuals)
        if optimizer.stats["reason"]:
            continue
        J, damping, p = lin.rows(), optimizer.stats["damping"], flat(model) - before
        damped = J.mT @ J + damping * torch.eye(lin.size).to(J)
        expected = -torch.linalg.solve(damped, lin.gradient)
        assert (p - expected).norm() <= 1e-6 * expected.norm()
        predicted = -(lin.gradient @ p + 0.5 * (J @ p).square().sum())
        actual = lin.loss - float(linearize(residuals, parameters).loss)
        assert optimizer.stats["ratio"] == pytest.approx(float(actual / predicted), rel=1e-6)
        assert optimizer.stats["radius"] == pytest.approx(float(p.norm()), rel=1e-6)


def test_a_search_begins_with_the_length_of_the_last_step():
    model, residuals = setting()
    optimizer = GaussNewton(model.parameters())
    optimizer.step(residuals)
    decomposition = optimizer.decompose(linearize(residuals, list(model.parameters())))
    step = decomposition.step(decomposition.damping(optimizer.memory.radius))
    assert float(step.norm()) == pytest.approx(optimizer.stats["radius"], rel=1e-8)


def test_a_low_target_is_hit():
    model, residuals = setting()
    optimizer = GaussNewton(model.parameters())
    hit = []
    for _ in range(15):
        optimizer.step(residuals)
        hit.append(optimizer.stats["target"] <= optimizer.stats["ratio"] <= 0.4)
    assert sum(hit) >= 12


def test_a_step_that_does_not_lower_the_damping_lowers_the_target():
    model, residuals = setting()
    optimizer = GaussNewton(model.parameters())
    for _ in range(25):
        optimizer.step(residuals)
        stage = optimizer.memory.stage
        expected = optimizer.schedule.following(optimizer.stats["target"], stage.waited == 0)
        assert stage.target == expected


@pytest.mark.parametrize("linear_term", [False, True], ids=["squares", "Ritz"])
def test_a_sketch_of_everything_is_exact(linear_term):
    model, residuals = setting(sizes=(2, 6, 1))
    lin = linearize(ritz(model) if linear_term else residuals, list(model.parameters()))
    exact = Exact()(lin, Generator(), Last())
    whole = Sketch(rows=10**6)(lin, Generator().manual_seed(0), Last())
    for damping in (1e-4, 1.0):
        torch.testing.assert_close(whole.step(damping), exact.step(damping), rtol=1e-9, atol=1e-9)


def test_sketched_rows_approach_the_whole():
    model, residuals = setting(sizes=(2, 4, 1), points=(600, 200))
    lin = linearize(residuals, list(model.parameters()))
    exact = Exact()(lin, Generator(), Last()).step(1e-2)

    def error(rows):
        seeds = range(10)
        steps = [Sketch(rows)(lin, Generator().manual_seed(s), Last()).step(1e-2) for s in seeds]
        return float(sum((p - exact).norm() for p in steps) / len(steps) / exact.norm())

    assert error(40) > 1.5 * error(160) > 2.25 * error(640)
    assert error(800) <= 1e-9


def test_a_sketched_step_is_the_best_of_two_by_the_exact_model():
    model, residuals = setting(sizes=(2, 6, 6, 1), points=(60, 20))
    lin = linearize(residuals, list(model.parameters()))
    J, g = lin.rows(), lin.gradient
    sketch = Sketch(20)(lin, Generator().manual_seed(0), Last())
    damping = 1e-3
    step = damped_model(lin, sketch).step(damping)
    p = step.displacement
    assert step.predicted == pytest.approx(float(-(g @ p) - 0.5 * (J @ p).square().sum()))

    def damped(p):
        return float(g @ p + 0.5 * (J @ p).square().sum() + 0.5 * damping * p.square().sum())

    pair = sketch.step(damping), sketch.solver(g)(damping)
    assert all(damped(p) <= damped(scale * q) for q in pair for scale in (0.1, 0.5, 1.0))
    assert damped(p) <= damped(pair[0] - 0.1 * pair[1])


def test_a_sketched_step_at_a_tiny_damping_is_finite_in_float32():
    """The step with the exact gradient is of length 1e25 there, its square beyond float32."""
    model, residuals = setting(sizes=(2, 6, 6, 1), points=(60, 20), dtype=torch.float32)
    lin = linearize(residuals, list(model.parameters()))
    sketch = Sketch(20)(lin, Generator().manual_seed(0), Last())
    assert float(sketch.solver(lin.gradient.double())(1e-25).norm()) > 1e20
    step = damped_model(lin, sketch).step(1e-25)
    assert step.displacement.isfinite().all() and step.predicted > 0


def test_a_residual_that_no_step_removes_does_not_stall_a_sketch():
    """Noise of size one in the data of a linear model: a sketched gradient is mostly noise."""
    generator = Generator().manual_seed(0)
    X = torch.randn(2000, 12, generator=generator, dtype=torch.float64)
    y = torch.randn(2000, 1, generator=generator, dtype=torch.float64) + X[:, :1]
    model = torch.nn.Linear(12, 1, bias=False, dtype=torch.float64)
    optimizer = GaussNewton(model.parameters(), compression=Sketch(60))
    for _ in range(40):
        optimizer.step(lambda: model(X) - y)
    best = torch.linalg.lstsq(X, y).solution
    assert relative(model.weight.detach().mT, best) < 1e-3


def test_the_order_of_the_points_does_not_matter():
    trajectories = []
    for order in (None, lambda n: torch.arange(n).flip(0)):
        model, residuals = setting(order=order)
        optimizer = GaussNewton(model.parameters())
        for _ in range(3):
            optimizer.step(residuals)
        trajectories.append(flat(model))
    torch.testing.assert_close(*trajectories, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("compression", [Exact(), Sketch(40, hashes=2)], ids=["exact", "sketch"])
def test_a_restored_run_continues_as_if_never_stopped(compression):
    def make(model):
        schedule = TargetSchedule(patience=2)  # the second stage begins within the test
        return GaussNewton(model.parameters(), compression=compression, schedule=schedule)

    model, residuals = setting()
    optimizer = make(model)
    for _ in range(4):
        optimizer.step(residuals)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    for _ in range(6):
        optimizer.step(residuals)

    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again, residuals = setting()
    restored = make(again)
    again.load_state_dict(weights)
    restored.load_state_dict(state)
    for _ in range(6):
        restored.step(residuals)
    assert torch.equal(flat(model), flat(again))
    assert optimizer.memory == restored.memory
    assert optimizer.memory.stage.second


def test_a_failing_closure_changes_nothing():
    model, residuals = setting()
    optimizer = GaussNewton(model.parameters())
    optimizer.step(residuals)
    before, state, calls = flat(model), optimizer.memory, iter(range(10))

    def failing():
        if next(calls) == 2:  # in the middle of the trials
            raise RuntimeError("power cut")
        return residuals()

    with pytest.raises(RuntimeError, match="power cut"):
        optimizer.step(failing)
    assert torch.equal(flat(model), before) and optimizer.memory == state


def test_an_overflowing_trial_is_a_missed_target():
    model, residuals = setting()
    optimizer, origin = GaussNewton(model.parameters()), flat(model)

    def guarded():
        far = (flat(model) - origin).norm() > 0.05
        return {name: r * (math.inf if far else 1) for name, r in residuals().items()}

    optimizer.step(guarded)
    optimizer.step(guarded)
    assert (flat(model) - origin).norm() <= 0.05


def test_at_the_solution_it_stays_and_says_why():
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))
    optimizer = GaussNewton([weight])
    optimizer.step(lambda: weight - torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert weight.tolist() == [2.0, 3.0]
    assert optimizer.stats["reason"] == "the gradient is zero"


def test_lr_scales_the_steps_of_its_group():
    model, residuals = setting()
    *first, last = model.layers
    slow = {"params": last.parameters(), "lr": 1e-12}
    optimizer = GaussNewton([{"params": [p for m in first for p in m.parameters()]}, slow])
    before = last.weight.detach().clone()
    optimizer.step(residuals)
    assert (last.weight - before).norm() < 1e-9


# Five starts of these 105 parameters end between 4e-10 and 5e-6: rounding decides at which minimum
@pytest.mark.parametrize(
    ("dtype", "goal"), [(torch.float64, 1e-5), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_poisson_without_tuning(dtype, goal):
    model, residuals = setting((2, 8, 8, 1), (150, 50), dtype)
    optimizer = GaussNewton(model.parameters())
    held_out = poisson_2d().held_out(Generator().manual_seed(1), 1000, dtype)
    for _ in range(150):
        optimizer.step(residuals)
    assert relative_l2(model, poisson_2d().solution, held_out) <= goal


def test_the_gramian_does_not_change_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the damping is large, steps from J^T J are those from J's singular values."""

    def path(limit: float) -> list[Tensor]:
        monkeypatch.setattr("kfac_pinn.curvature.compression.LARGE_DAMPING", limit)
        model, x, xb = network(2, 5, 1), points(40), points(20, seed=1)
        optimizer = GaussNewton(model.parameters())
        steps = []
        for _ in range(5):
            optimizer.step(lambda: (laplacian(model, x) + 1, model(xb)))
            steps.append(flat(model))
        return steps

    for ours, exact in zip(path(1e-9), path(float("inf")), strict=True):
        assert relative(ours, exact) < 1e-6


def test_the_second_stage_is_left_when_the_loss_falls_slower_than_before() -> None:
    """On a run: whether it is left follows from the losses alone."""
    model, residuals = setting((2, 6, 1), (40, 12))
    schedule = TargetSchedule(patience=3, horizon=4)
    optimizer = GaussNewton(model.parameters(), schedule=schedule)
    pace, due, tried, left = 0.0, 0.0, 0, 0
    for _ in range(60):
        before = optimizer.memory.stage
        optimizer.step(residuals)
        after, stats = optimizer.memory.stage, optimizer.stats
        gain = 0.0 if stats["reason"] else math.log(stats["loss"] / stats["new_loss"])
        pace = 0.75 * pace + 0.25 * gain
        tried = tried + 1 if before.second else 0
        if before.second:
            assert after.second == (tried < 4 or pace >= due * (1 - 1e-9))
            left += not after.second
        elif after.second:
            due = pace
        assert stats["target"] == (0.85 if before.second else before.target or 0.15)
    assert left >= 2


def test_new_points_in_every_step() -> None:
    """As many residuals as parameters: without the bound each step fits its points, error 0.3."""
    torch.manual_seed(0)
    model, problem = MLP((2, 16, 16, 1)).double(), poisson_2d()
    optimizer, generator = GaussNewton(model.parameters()), Generator().manual_seed(0)
    for _ in range(30):
        batch = problem.sample(generator, {"interior": 300, "boundary": 60}, torch.float64)
        optimizer.step(batch.residuals(model))
    x = torch.rand(500, 2, generator=generator, dtype=torch.float64)
    assert relative_l2(model, problem.solution, x) < 3e-2
