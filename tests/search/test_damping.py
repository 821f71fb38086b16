"""Damping laws, decrease ratios and predictions: one of each, and what counts as failure."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import Closure, cases, small_case
from torch import nn

from kfac_pinn import linearize
from kfac_pinn.search.damping import (
    MARQUARDT,
    MARTENS,
    NIELSEN,
    DampingLaw,
    KeepDamping,
    Marquardt,
    scale_of,
)
from kfac_pinn.search.model import (
    DampedModel,
    QuadraticModel,
    decrease_of_solution,
    decrease_ratio,
    predicted_decrease,
)
from kfac_pinn.search.step import Outcome, Step

LAWS = [MARQUARDT, MARTENS, NIELSEN]
FAILURES = [math.nan, -math.inf, -1.0, 0.0]
positive = st.floats(1e-12, 1e6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("ratio", FAILURES)
def test_a_failure_raises_the_damping(law: DampingLaw, ratio: float) -> None:
    assert law(0.5, ratio) > 0.5


@given(positive, st.floats(0.0, 2.0))
def test_the_law_of_marquardt(damping: float, ratio: float) -> None:
    found = Marquardt(fall=2.0, rise=5.0)(damping, ratio)
    expected = damping / 2 if ratio > 0.75 else damping * 5 if ratio < 0.25 else damping
    assert found == expected


def test_published_factors() -> None:
    good, fair, bad = 0.8, 0.5, 0.2
    assert [MARTENS(1.0, rho) for rho in (good, fair, bad)] == [pytest.approx(2 / 3), 1.0, 1.5]
    assert [MARQUARDT(1.0, rho) for rho in (good, fair, bad)] == [pytest.approx(1 / 3), 1.0, 3.0]
    assert [NIELSEN(1.0, rho) for rho in (good, fair, bad)] == [pytest.approx(1 / 3), 1.0, 2.0]
    assert [KeepDamping()(0.3, rho) for rho in (good, bad, math.nan)] == [0.3] * 3


def test_the_damping_has_a_least_value() -> None:
    damping = 1.0
    for _ in range(2000):
        damping = MARQUARDT(damping, 1.0)
    assert damping == MARQUARDT.least and MARQUARDT(damping, math.nan) > damping


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.floats(1e-6, 1e3))
def test_the_ratio(before: float, after: float, predicted: float) -> None:
    assert decrease_ratio(before, after, predicted) == (before - after) / predicted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_has_no_meaning_is_a_failure(bad: float) -> None:
    assert decrease_ratio(1.0, bad, 1.0) == -math.inf
    assert decrease_ratio(1.0, 0.5, -abs(bad)) == -math.inf
    assert decrease_ratio(1.0, 0.5, math.nan) == -math.inf
    assert decrease_ratio(1.0, 0.5, 0.0) == -math.inf
    assert decrease_ratio(1e308, -1e308, 1e-308) == -math.inf  # overflows


@given(cases(), positive)
def test_all_predictions_are_one(case: tuple[nn.Module, Closure], damping: float) -> None:
    """Of a damped solve: by J, by the value of the solve, on a subspace, by the definition."""
    model, residuals = case
    lin = linearize(residuals, list(model.parameters()))
    G, g = lin.gramian(), lin.gradient
    A = G + damping * torch.eye(len(g), dtype=g.dtype)
    p = -torch.linalg.solve(A, g)
    expected = pytest.approx(-float(g @ p + 0.5 * p @ G @ p), rel=1e-6)
    assert predicted_decrease(lin, p) == expected
    assert decrease_of_solution(p, damping, float(g @ p + 0.5 * p @ A @ p)) == expected
    assert DampedModel(lin, lambda damping: p).step(damping).predicted == expected
    assert DampedModel(lin, lambda damping: p, lambda v: G @ v).decrease(p) == expected
    plane = QuadraticModel(lin, torch.stack([p, g]), 0.0)
    assert plane.decrease(torch.tensor([1.0, 0.0], dtype=p.dtype)) == expected


def test_a_prediction_that_was_given_is_kept() -> None:
    model, residuals = small_case()
    lin = linearize(residuals, list(model.parameters()))
    known = DampedModel(lin, lambda damping: Step(-lin.gradient, predicted=2.0))
    assert known.step(1.0).predicted == 2.0


def test_the_unit_of_a_damping() -> None:
    model, residuals = small_case()
    lin = linearize(residuals, list(model.parameters()))
    g = lin.gradient
    assert scale_of(lin) == pytest.approx(float(g @ lin.gramian() @ g / (g @ g)))


def test_a_step_that_stays_says_why() -> None:
    with pytest.raises(ValueError, match="says why"):
        Step(None)
    assert Step.stay(Outcome.ASCENT, damping=1.0).info == {"damping": 1.0}
