"""One evaluation a step: judged by the next loss, taken back where it rose."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import flat, network, points, small_case
from torch import Tensor

import kfac_pinn
from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    SPRING,
    GaussNewton,
    HessianFree,
    OneEvaluation,
    SelfScaledBroyden,
)
from kfac_pinn.jacobian import linearize
from kfac_pinn.jacobian.capture.data import same_data
from kfac_pinn.optimizers.levenberg_marquardt import LevenbergMarquardt
from kfac_pinn.search.damping import Towards
from kfac_pinn.search.one_evaluation import Trial, standard_error
from kfac_pinn.search.step import Step

SEARCHING = [
    *(KFACPINN, GaussNewton, KFAC, ENGD, SPRING, HessianFree, LevenbergMarquardt),
    SelfScaledBroyden,
]
every_search = pytest.mark.parametrize("make", SEARCHING, ids=lambda c: c.__name__)


@every_search
def test_every_step_evaluates_once(make: Any) -> None:
    model, closure = small_case()
    calls = 0

    def counted() -> Any:
        nonlocal calls
        calls += 1
        return closure()

    optimizer = make(model.parameters(), search=OneEvaluation())
    losses = []
    for step in range(1, 31):
        losses.append(float(optimizer.step(counted)))
        assert calls == step
        assert optimizer.stats["evaluations"] == 0
    assert min(losses) < 0.2 * losses[0]


@every_search
def test_the_best_loss_is_where_it_stays(make: Any) -> None:
    """A loss that rose is never stepped on from: the accepted losses fall."""
    model, closure = small_case()
    optimizer = make(model.parameters(), search=OneEvaluation())
    accepted = math.inf
    for _ in range(40):
        loss = float(optimizer.step(closure))
        if "taken back" in str(optimizer.stats["reason"]):
            assert loss > accepted
        else:
            assert loss <= accepted * (1 + 1e-12)
            accepted = loss


class Misled(KFACPINN):
    """Its steps are a thousand times too long while it is misled."""

    misled = False

    def leap(self, linearization: Any, objective: Any) -> Any:
        step = super().leap(linearization, objective)
        return replace(step, displacement=1e3 * step.displacement) if self.misled else step


def test_a_step_that_raised_the_loss_is_taken_back() -> None:
    model, closure = small_case()
    optimizer = Misled(model.parameters(), search=OneEvaluation())
    for _ in range(20):
        optimizer.step(closure)
    optimizer.misled, origin = True, flat(model)
    good = float(optimizer.step(closure))
    assert optimizer.unseen.trial is not None
    optimizer.misled, distances = False, [float((flat(model) - origin).norm())]
    for _ in range(3):
        assert float(optimizer.step(closure)) > good
        assert "taken back" in optimizer.stats["reason"]
        distances.append(float((flat(model) - origin).norm()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] <= 1e-12
    assert optimizer.stats["new_loss"] == good
    assert float(optimizer.step(closure)) == pytest.approx(good, rel=1e-9)
    assert min(float(optimizer.step(closure)) for _ in range(10)) < good


def test_a_step_to_where_the_loss_is_not_finite_is_taken_back() -> None:
    model, x = network(2, 5, 1), points(12)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        residual = model(x) - x[:, :1]
        return residual / 0 if calls == 3 else residual

    optimizer = KFACPINN(model.parameters(), search=OneEvaluation())
    optimizer.step(closure)
    second = float(optimizer.step(closure))
    assert float(optimizer.step(closure)) == math.inf
    assert "taken back" in optimizer.stats["reason"]
    assert torch.isfinite(flat(model)).all()
    losses = [float(optimizer.step(closure)) for _ in range(5)]
    assert losses[-1] < second


def test_a_first_loss_that_is_not_finite_is_an_error() -> None:
    model, closure = small_case()
    optimizer = KFACPINN(model.parameters(), search=OneEvaluation())
    with pytest.raises(FloatingPointError):
        optimizer.step(lambda: tuple(r / 0 for r in closure()))


@every_search
def test_a_saved_run_continues_bit_by_bit(make: Any) -> None:
    model, closure = small_case()
    resumed, same = small_case()
    optimizer = make(model.parameters(), search=OneEvaluation())
    for _ in range(3):
        optimizer.step(closure)
    other = make(resumed.parameters(), search=OneEvaluation())
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        optimizer.step(closure)
        other.step(same)
    assert torch.equal(flat(model), flat(resumed))


@every_search
def test_an_error_of_the_closure_leaves_all_as_it_was(make: Any) -> None:
    model, closure = small_case()
    optimizer = make(model.parameters(), search=OneEvaluation())
    for _ in range(3):
        optimizer.step(closure)
    theta, state = flat(model), str(optimizer.state_dict())

    def failing() -> Any:
        closure()
        raise KeyError("the user's")

    with pytest.raises(KeyError):
        optimizer.step(failing)
    assert torch.equal(flat(model), theta)
    assert str(optimizer.state_dict()) == state


def test_new_points_every_step_do_not_stop_it() -> None:
    """Losses at different points: after two retreats the loss is found anew."""
    model = network(2, 8, 1)
    generator = torch.Generator().manual_seed(0)
    optimizer = KFACPINN(model.parameters(), search=OneEvaluation())
    losses = []
    for _ in range(60):
        x = torch.rand(60, 2, generator=generator, dtype=torch.float64)
        losses.append(float(optimizer.step(lambda x=x: model(x) - x.prod(1, keepdim=True))))
    assert sorted(losses[-10:])[5] < 0.05 * losses[0]


def test_a_group_added_late_ends_the_trial() -> None:
    model, closure = small_case()
    optimizer = KFACPINN(model[0].parameters(), search=OneEvaluation())
    for _ in range(2):
        optimizer.step(closure)
    optimizer.add_param_group({"params": model[2].parameters()})
    losses = [float(optimizer.step(closure)) for _ in range(6)]
    assert losses[-1] < losses[0]


def test_max_iter_steps_evaluate_so_many_times() -> None:
    model, closure = small_case()
    calls = 0

    def counted() -> Any:
        nonlocal calls
        calls += 1
        return closure()

    KFACPINN(model.parameters(), search=OneEvaluation(), max_iter=7).step(counted)
    assert calls == 7


def test_a_held_out_loss_cannot_be_judged_unseen() -> None:
    model, closure = small_case()
    optimizer = LevenbergMarquardt(model.parameters(), held_out=closure, search=OneEvaluation())
    with pytest.raises(ValueError, match="held_out"):
        optimizer.step(closure)


def test_kfac_star_has_no_search_to_replace() -> None:
    model, _ = small_case()
    with pytest.raises(TypeError, match="KFACStar has no search"):
        kfac_pinn.KFACStar(model.parameters(), search=OneEvaluation())


# The parts


@given(st.floats(-3, 3), st.floats(0.1, 10), st.floats(0.01, 1))
def test_the_prediction_of_a_shortened_step_is_that_of_its_parabola(
    b: float, c: float, s: float
) -> None:
    """L(s) = b s + c s^2 / 2 on a line."""
    origin, step = torch.zeros(1), torch.ones(1)
    trial = Trial(origin, step, 0.0, b, -(b + c / 2))
    short = trial.scaled(s)
    assert short.predicted == pytest.approx(-(b * s + c * s * s / 2), abs=1e-9)
    assert short.slope == pytest.approx(b * s)
    assert float(short.displacement) == pytest.approx(s)


@given(st.floats(-5, -0.1), st.floats(0.5, 50))
def test_a_shortened_step_ends_in_the_minimum_of_the_parabola(slope: float, rise: float) -> None:
    trial = Trial(torch.zeros(1), torch.ones(1), 1.0, slope, 0.5)
    rule = OneEvaluation()
    short = rule.shortened(trial, 1.0 + rise)
    assert short is not None
    best = -slope / (2 * (rise - slope))
    assert float(short.displacement) == pytest.approx(min(max(best, 0.1), 0.5), rel=1e-5)


def test_two_shortenings_at_most() -> None:
    short: Trial | None = Trial(torch.zeros(1), torch.ones(1), 1.0, -1.0, 0.5)
    tried = []
    while short is not None:
        tried.append(short.retreats)
        short = OneEvaluation().shortened(short, 2.0)
    assert tried == [0, 1, 2]


def test_without_a_look_at_the_data_the_points_are_the_same() -> None:
    """Then the loss alone decides."""
    model, closure = small_case()
    first = linearize(closure, model.parameters())
    trial = Trial.of(Step(-1e-3 * first.gradient, predicted=1e-6), first, flat(model))
    assert trial is not None and trial.data is None
    assert trial.verdict(first) == (False, 0.0)
    with torch.no_grad():
        model[-1].weight.mul_(100)
    worse = linearize(closure, model.parameters())
    assert trial.verdict(worse) == (True, trial.ratio(worse.loss))


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_from_a_loss_that_is_not_finite_the_way_back_is_longest(loss: float) -> None:
    trial = Trial(torch.zeros(1), torch.ones(1), 1.0, -1.0, 0.5)
    short = OneEvaluation().shortened(trial, loss)
    assert short is not None
    assert float(short.displacement) == pytest.approx(0.1)


def test_the_law_settles_where_the_ratio_is_at_its_target() -> None:
    """With a ratio that falls as damping falls, the damping ends where the ratio is the target."""
    law, damping = Towards(target=0.6), 1e3
    for _ in range(100):
        damping = law(damping, damping / (1 + damping))
    assert damping / (1 + damping) == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("ratio", [-math.inf, math.nan, -1.0, 0.0])
def test_the_law_raises_the_damping_after_a_failure(ratio: float) -> None:
    assert Towards()(1.0, ratio) == 4.0


def test_all_optimizers_that_search_are_tested_here() -> None:
    exported = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
    found = {
        c
        for c in exported
        if inspect.isclass(c)
        and issubclass(c, torch.optim.Optimizer)
        and {"lr", "search"} <= set(inspect.signature(c).parameters)
    }
    assert found <= set(SEARCHING)


# New points


def drawn(seed: int, kept: int) -> Any:
    """A fit whose points are drawn anew every so many calls, and the error on others."""
    model, generator = network(2, 8, 1, seed=seed), torch.Generator().manual_seed(seed)
    calls, known = 0, torch.empty(0)

    def closure() -> Tensor:
        nonlocal calls, known
        if calls % kept == 0:
            known = torch.rand(60, 2, generator=generator, dtype=torch.float64)
        calls += 1
        return model(known) - torch.sin(3 * known[:, :1]) * known[:, 1:]

    def error() -> float:
        x = points(200, seed=5)
        return float(
            (model(x) - torch.sin(3 * x[:, :1]) * x[:, 1:]).detach().square().mean().sqrt()
        )

    return model, closure, error


@pytest.mark.parametrize("kept", [1, 2, 7])
@pytest.mark.parametrize("make", [KFACPINN, GaussNewton, SPRING])
def test_points_drawn_anew_do_not_mislead_it(make: Any, kept: int) -> None:
    model, closure, error = drawn(0, kept)
    optimizer = make(model.parameters(), search=OneEvaluation())
    start = error()
    for _ in range(60):
        optimizer.step(closure)
    assert error() < start / 30


def linearized(model: Any, x: Tensor, y: Tensor, order: Any = slice(None)) -> Any:
    return linearize(lambda: model(x[order]) - y[order], model.parameters(), data=True)


@pytest.mark.parametrize("changed", ["points", "weight", "mask"])
def test_other_data_are_seen_and_the_same_are_the_same(changed: str) -> None:
    """Points, targets, weights, masks of a dropout: whatever else than parameters is different."""
    model, x = network(2, 5, 1), points(20)

    def data(x: Tensor, weight: float = 1.0, seed: int = 0) -> Tensor:
        mask = torch.rand(20, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        residual = weight * mask.to(x) * model(x) - 1
        return linearize(lambda: residual, model.parameters(), data=True).data

    first, again = data(x), data(x)
    other = {
        "points": data(points(20, seed=3)),
        "weight": data(x, weight=1.1),
        "mask": data(x, seed=1),
    }[changed]
    assert same_data(first, again)
    assert not same_data(first, other)


def test_moved_parameters_and_shuffled_points_are_no_other_data() -> None:
    model, x = network(2, 5, 1), points(20)
    y = x[:, :1].clone()
    first = linearized(model, x, y).data
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    assert same_data(first, linearized(model, x, y, torch.randperm(20)).data)


def test_a_rise_beyond_chance_fails_at_other_points_too() -> None:
    model, x = network(2, 5, 1), points(40)
    first = linearized(model, x, x[:, :1])
    step = Step(-1e-3 * first.gradient, predicted=1e-6)
    trial = Trial.of(step, first, flat(model))
    assert trial is not None
    other = points(40, seed=1)
    assert trial.verdict(linearized(model, other, other[:, :1])) == (False, 1.0)
    assert trial.verdict(linearized(model, other, 10 + other[:, :1])).failed is False  # the points
    with torch.no_grad():
        model[-1].weight.mul_(100)  # not the step's doing, but as far
    far = replace(trial, displacement=flat(model) - trial.origin)
    assert far.verdict(linearized(model, other, other[:, :1])).failed


def test_the_standard_error_of_a_loss_is_that_of_its_mean() -> None:
    model, x = network(2, 5, 1), points(30)
    found = linearize(lambda: (model(x) - 1, 2 * model(x[:9])), model.parameters())
    parts = [(model(x) - 1).square() / 2, (2 * model(x[:9])).square() / 2]
    expected = sum(float(p.var(correction=0)) / len(p) for p in parts) ** 0.5
    assert standard_error(found) == pytest.approx(expected)
