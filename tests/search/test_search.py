"""Searches along a direction, and the quadratic model, on problems with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kfac_pinn.jacobian.closure import Linearization, linearize
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.line import (
    Armijo,
    ExhaustiveGrid,
    FixedStep,
    GridSearch,
    NormConstraint,
    Search,
)
from kfac_pinn.search.model import QuadraticModel
from kfac_pinn.search.step import Outcome, Step

Residual = Callable[[Tensor], Tensor]


class Problem:
    """r(theta) for one vector of parameters, its linearisation and objective."""

    def __init__(self, residual: Residual, start: Tensor) -> None:
        self.theta = nn.Parameter(start.clone())
        closure = lambda: residual(self.theta)  # noqa: E731
        self.linearization: Linearization = linearize(closure, [self.theta])
        self.objective = Objective(closure, [self.theta])

    def __call__(self, search: Search, direction: Tensor) -> Step:
        return search(self.objective, self.linearization, direction)


def linear(rows: int, columns: int) -> tuple[Residual, Tensor, Tensor]:
    A = torch.randn(rows, columns, dtype=torch.float64)
    b = torch.randn(rows, dtype=torch.float64)
    return (lambda theta: (A * theta).sum(1) - b), A / rows**0.5, b / rows**0.5


def test_a_fixed_step_is_the_direction() -> None:
    residual, *_ = linear(4, 3)
    direction = torch.ones(3, dtype=torch.float64)
    problem = Problem(residual, torch.zeros(3, dtype=torch.float64))
    step = problem(FixedStep(), direction)
    assert step.displacement is direction
    assert step.length == 1
    assert math.isnan(step.loss)
    assert problem.objective.evaluations == 0


@given(st.integers(0, 2**16), st.floats(0.1, 50))
def test_the_grid_is_searched_for_its_best(seed: int, length: float) -> None:
    torch.manual_seed(seed)
    residual, A, b = linear(5, 3)
    start = torch.randn(3, dtype=torch.float64)
    problem = Problem(residual, start)
    direction = -length * problem.linearization.gradient
    search = ExhaustiveGrid()
    step = problem(search, direction)
    losses = [float(0.5 * (A @ (start + t * direction) - b).square().sum()) for t in search.lengths]
    assert problem.objective.evaluations == len(search.lengths)
    assert step.displacement is not None
    assert step.loss == pytest.approx(min(losses), rel=1e-12)
    assert step.loss < problem.linearization.loss
    expected = search.lengths[losses.index(min(losses))] * direction
    torch.testing.assert_close(step.displacement, expected)


@given(st.integers(0, 2**16), st.floats(0.1, 1e6))
def test_from_above_the_minimum_of_a_parabola_is_that_of_the_grid(seed: int, length: float) -> None:
    torch.manual_seed(seed)
    residual, *_ = linear(5, 3)
    problem = Problem(residual, torch.randn(3, dtype=torch.float64))
    direction = -length * problem.linearization.gradient
    full = problem(ExhaustiveGrid(), direction)
    problem.objective.evaluations = 0
    step = problem(GridSearch(), direction)
    assert step.displacement is not None and full.displacement is not None
    assert torch.equal(step.displacement, full.displacement)
    assert (step.loss, step.length) == (full.loss, full.length)
    longer = int(-math.log2(step.length))
    assert problem.objective.evaluations == min(longer + 4, 31)


class Valleys:
    """A loss along one direction with two minima, the lower one at short lengths."""

    def __call__(self, displacement: Tensor) -> float:
        t = -math.log2(float(displacement[0]))  # 0, 1, 2, ... along the grid
        return 1.0 - 0.1 * (t == 1) - 0.5 * (t == 3 + self.hidden)

    def __init__(self, hidden: int) -> None:
        self.hidden = hidden


def test_patience_is_what_separates_the_two_grids() -> None:
    linearization = Problem(lambda theta: theta, torch.full((1,), 2.0).double()).linearization
    linearization.loss = 1.0

    def lengths(hidden: int) -> list[float]:
        searches = [GridSearch(), GridSearch(patience=5), ExhaustiveGrid()]
        return [s(Valleys(hidden), linearization, torch.ones(1)).length for s in searches]  # type: ignore[arg-type]

    assert lengths(0) == [2**-3] * 3
    assert lengths(2) == [2**-1, 2**-5, 2**-5]
    assert lengths(20) == [2**-1, 2**-1, 2**-23]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", [GridSearch(), ExhaustiveGrid(), Armijo()])
def test_lengths_whose_loss_is_not_finite_are_passed_over(search: Search, bad: float) -> None:
    """Six lengths lead nowhere; the seventh is the longest that can be taken."""

    def residual(theta: Tensor) -> Tensor:
        far = bool((theta.detach() - 4).abs().max() > 0.03)
        return theta * (bad if far else 1.0)

    problem = Problem(residual, torch.full((2,), 4.0, dtype=torch.float64))
    step = problem(search, torch.full((2,), -1.0, dtype=torch.float64))
    assert step.displacement is not None and step.length == 2.0**-6
    torch.testing.assert_close(step.displacement, torch.full((2,), -(2.0**-6)).double())
    assert step.loss == pytest.approx(0.5 * (4 - 2.0**-6) ** 2, rel=1e-14)
    tried = {"GridSearch": 10, "ExhaustiveGrid": 31, "Armijo": 7}[type(search).__name__]
    assert problem.objective.evaluations == tried
    assert step.shortened == (6 if isinstance(search, Armijo) else 0)


@pytest.mark.parametrize("search", [GridSearch(), ExhaustiveGrid(), Armijo()])
def test_uphill_directions_are_rejected(search: Search) -> None:
    residual, *_ = linear(5, 3)
    problem = Problem(residual, torch.zeros(3, dtype=torch.float64))
    step = problem(search, 10 * problem.linearization.gradient)
    assert step.displacement is None
    assert step.outcome in (Outcome.NO_DECREASE, Outcome.ASCENT)


@given(st.integers(0, 2**16), st.floats(0.01, 1e4), st.sampled_from([1e-4, 0.1, 0.4]))
def test_armijo_finds_the_longest_step_of_sufficient_decrease(
    seed: int, length: float, c: float
) -> None:
    torch.manual_seed(seed)
    residual, A, b = linear(5, 3)
    start = torch.randn(3, dtype=torch.float64)
    problem = Problem(residual, start)
    gradient = problem.linearization.gradient
    step = problem(Armijo(c=c), -length * gradient)

    def sufficient(t: float) -> bool:
        loss = 0.5 * (A @ (start - t * length * gradient) - b).square().sum()
        slope = -length * gradient.square().sum()
        return bool(loss <= problem.linearization.loss + c * t * slope)

    t = step.length
    assert sufficient(t)
    assert t == 1 or not sufficient(2 * t)
    assert step.outcome is Outcome.MOVED
    assert step.shortened == -math.log2(t) == problem.objective.evaluations - 1


def test_armijo_gives_up() -> None:
    problem = Problem(lambda theta: theta.abs().sqrt() + 1, torch.full((2,), 4.0).double())
    problem.objective.closure = lambda: problem.theta * math.nan
    step = problem(Armijo(trials=4), -problem.linearization.gradient)
    assert step.displacement is None
    assert problem.objective.evaluations == 4
    assert step.outcome is Outcome.NO_DECREASE


@given(st.integers(1, 6), st.floats(1e-6, 1e3), st.floats(1e-6, 10))
def test_the_norm_constraint(size: int, length: float, bound: float) -> None:
    residual, *_ = linear(4, size)
    direction = torch.full((size,), length / size**0.5, dtype=torch.float64)
    problem = Problem(residual, torch.zeros(size, dtype=torch.float64))
    step = problem(NormConstraint(bound), direction)
    assert step.displacement is not None
    expected = min(length, bound**0.5)
    assert float(step.displacement.norm()) == pytest.approx(expected, rel=1e-12)
    assert bool(step.shortened) == (step.length != 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_constraint_at_a_minimum(dtype: torch.dtype) -> None:
    residual, *_ = linear(4, 2)
    zero = torch.zeros(2, dtype=dtype)
    step = Problem(residual, zero.double())(NormConstraint(), zero)
    assert step.displacement is not None
    assert torch.equal(step.displacement, zero)


def test_the_objective_moves_and_restores_bit_by_bit() -> None:
    theta = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(()))]
    before = [p.detach().clone() for p in theta]
    objective = Objective(lambda: (theta[0] * theta[1]).flatten(), theta)
    displacement = torch.randn(7)
    loss = objective(displacement)
    moved = [before[0] + displacement[:6].view(3, 2), before[1] + displacement[6]]
    assert all(torch.equal(p, q) for p, q in zip(theta, moved, strict=True))
    assert loss == pytest.approx(0.5 * float((moved[0] * moved[1]).square().mean()))
    objective.restore()
    assert all(torch.equal(p, q) for p, q in zip(theta, before, strict=True))
    assert objective(displacement.clone()) == loss, "asked again, it answers"
    assert all(torch.equal(p, q) for p, q in zip(theta, moved, strict=True))
    assert objective.evaluations == 1, "without another evaluation"
    assert objective(0 * displacement) != loss
    assert objective.evaluations == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_trial_that_is_not_finite_is_infinite(value: float) -> None:
    theta = nn.Parameter(torch.ones(2))
    objective = Objective(lambda: theta * value, [theta])
    assert objective(torch.zeros(2)) == math.inf


def test_trials_follow_no_gradients() -> None:
    theta = nn.Parameter(torch.ones(2))
    seen = []

    def closure() -> Tensor:
        seen.append(torch.is_grad_enabled())
        return theta

    Objective(closure, [theta])(torch.zeros(2))
    assert seen == [False]


@given(st.integers(0, 2**16), st.integers(1, 3), st.sampled_from([0.0, 1e-3, 1.0]))
def test_the_quadratic_model_is_minimised(seed: int, count: int, damping: float) -> None:
    torch.manual_seed(seed)
    residual, A, b = linear(6, 4)
    problem = Problem(residual, torch.randn(4, dtype=torch.float64))
    lin = problem.linearization
    directions = torch.randn(count, 4, dtype=torch.float64)
    model = QuadraticModel(lin, directions, damping)
    c = model.minimiser()
    H = A.T @ A + damping * torch.eye(4, dtype=torch.float64)
    slope = directions @ (H @ (c @ directions) + lin.gradient)
    assert float(slope.abs().max()) < 1e-9 * max(1.0, float(directions.square().sum()))
    new_loss = float(0.5 * (A @ (problem.theta.detach() + c @ directions) - b).square().sum())
    assert model.decrease(c) == pytest.approx(lin.loss - new_loss, rel=1e-9, abs=1e-12)


def test_the_quadratic_model_of_dependent_directions() -> None:
    residual, *_ = linear(6, 4)
    lin = Problem(residual, torch.randn(4, dtype=torch.float64)).linearization
    direction = torch.randn(4, dtype=torch.float64)
    alone = QuadraticModel(lin, direction[None], 0.0)
    twice = QuadraticModel(lin, torch.stack([direction, 2 * direction]), 0.0)
    with_zero = QuadraticModel(lin, torch.stack([direction, 0 * direction]), 0.0)
    expected = alone.decrease(alone.minimiser())
    for model in (twice, with_zero):
        assert torch.isfinite(model.minimiser()).all()
        assert model.decrease(model.minimiser()) == pytest.approx(expected, rel=1e-9)


def test_damping_a_parameter_at_a_time() -> None:
    residual, A, _ = linear(6, 3)
    lin = Problem(residual, torch.randn(3, dtype=torch.float64)).linearization
    damping = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    c = QuadraticModel(lin, torch.eye(3, dtype=torch.float64), damping).minimiser()
    expected = torch.linalg.solve(A.T @ A + damping.diag(), -lin.gradient)
    torch.testing.assert_close(c, expected, rtol=1e-10, atol=1e-12)
