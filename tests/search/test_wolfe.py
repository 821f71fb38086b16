"""The strong Wolfe conditions hold where the search ends, on any smooth function of one length."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kfac_pinn import StrongWolfe
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.jacobian.slopes import slope
from kfac_pinn.search.step import Outcome, Step

Loss = Callable[[Tensor], Tensor]


def searched(
    loss: Loss, direction: float, search: StrongWolfe, start: float = 0.0
) -> tuple[Step, Objective]:
    """From a start of one parameter."""
    p = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    closure = lambda: loss(p).sum()  # noqa: E731
    objective = Objective(closure, [p])
    with torch.no_grad():
        step = search(
            objective, slope(closure, [p]), torch.tensor([direction], dtype=torch.float64)
        )
    return step, objective


def derivative(loss: Loss, at: float) -> float:
    x = torch.tensor([at], dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(loss(x).sum(), x)[0])


LOSSES: dict[str, Loss] = {
    "a parabola": lambda x: (x - 1.3) ** 2,
    "a well with steep walls": lambda x: (x - 1.3) ** 4 - (x - 1.3) ** 2,
    "waves": lambda x: torch.sin(5 * x) - 0.3 * x + 0.1 * x**2,
    "a far minimum": lambda x: (1 + (x - 300) ** 2).sqrt(),
    "a plain, then a wall": lambda x: torch.exp(3 * x) - 100 * x,
    "a logarithm": lambda x: x - torch.log(x),  # nan below zero
}


@pytest.mark.parametrize("name", LOSSES)
@given(
    size=st.floats(-4, 3),
    start=st.floats(0.01, 2),
    flatness=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_the_conditions_hold(name: str, size: float, start: float, flatness: float) -> None:
    loss, search = LOSSES[name], StrongWolfe(flatness=flatness, trials=60)
    before = derivative(loss, start)
    if abs(before) < 1e-3:
        return
    direction = -math.copysign(10**size, before)
    step, _ = searched(loss, direction, search, start)
    assert step.displacement is not None, step.outcome
    t, end = step.length, start + float(step.displacement)
    at = lambda x: float(loss(torch.tensor([x], dtype=torch.float64)))  # noqa: E731
    assert float(step.displacement) == pytest.approx(t * direction)
    assert step.loss == at(end)
    rounding = 1e-12 * (abs(at(start)) + abs(at(end)))
    assert at(end) <= at(start) + search.c * t * before * direction + rounding
    assert abs(derivative(loss, end)) <= flatness * abs(before) * (1 + 1e-9)


def test_where_it_ends_the_gradient_is_known_already() -> None:
    step, objective = searched(LOSSES["a parabola"], 40.0, StrongWolfe())
    count = objective.evaluations
    objective.slope(step.displacement)
    assert objective.evaluations == count


def test_a_full_step_that_does_costs_one_evaluation_and_one_gradient() -> None:
    step, objective = searched(LOSSES["a parabola"], 1.2, StrongWolfe())
    assert step.length == 1 and step.shortened == 0 and objective.evaluations == 2


@pytest.mark.parametrize(
    ("loss", "outcome"),
    [
        (lambda x: x.abs() + 0 * x + x, Outcome.ASCENT),  # uphill
        (lambda x: torch.where(x > 0, math.nan, -x), Outcome.NO_DECREASE),
        (lambda x: torch.where(x > 0, math.inf, -x), Outcome.NO_DECREASE),
    ],
)
def test_no_step(loss: Loss, outcome: Outcome) -> None:
    step, _ = searched(loss, 1.0, StrongWolfe(), -0.0)
    assert step.displacement is None and step.outcome is outcome


def test_a_loss_without_a_minimum_is_followed_as_far_as_trials_reach() -> None:
    step, _ = searched(lambda x: -x, 1.0, StrongWolfe(trials=5))
    assert step.length == 1e4 and step.loss == -1e4


def test_a_wall_at_once_is_approached() -> None:
    step, _ = searched(lambda x: torch.where(x > 1e-5, math.nan, -x), 1.0, StrongWolfe())
    assert 1e-6 < step.length <= 1e-5
