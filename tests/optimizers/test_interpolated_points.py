"""Every optimizer says when new points show that the last ones were fitted, not the equation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_problems import flat, network, points, poisson

from kfac_pinn import ENGD, KFACPINN, SPRING, Affordable

FITTED = r"left a loss of \d\.\de-\d+, this one found .* residuals for 65 parameters"


def train(make: Callable[[Any], Any], inside: int, batches: int, steps: int = 12) -> None:
    """On Poisson's equation, so many steps a batch."""
    model = network(2, 16, 1)
    optimizer = make(model.parameters())
    for seed in range(batches):
        closure = poisson(model, points(inside, seed=seed), points(inside, seed=100 + seed))
        for _ in range(steps):
            optimizer.step(closure)


def truncated(parameters: Any) -> KFACPINN:
    """Without the exact steps, which have a warning of their own for points that are too few."""
    return KFACPINN(parameters, exact=Affordable(0))


@pytest.mark.parametrize("make", [truncated, ENGD, SPRING])
def test_points_that_were_fitted_are_noticed_once(make: Callable[[Any], Any]) -> None:
    """At the line that calls `step`."""
    with pytest.warns(UserWarning, match=FITTED) as caught:
        train(make, inside=6, batches=4, steps=25)
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__)


def test_a_warning_made_an_error_loses_nothing() -> None:
    """It is raised before the step, which then leaves the parameters as they were."""
    model = network(2, 16, 1)
    optimizer = KFACPINN(model.parameters())
    few = poisson(model, points(4), points(4, seed=1))
    for _ in range(25):
        optimizer.step(few)
    before = flat(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=FITTED):
            optimizer.step(poisson(model, points(6, seed=2), points(6, seed=3)))
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("make", [KFACPINN, ENGD, SPRING])
def test_enough_points_are_not_warned_of(make: Callable[[Any], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make, inside=200, batches=4)


def test_losses_at_rounding_are_not_compared() -> None:
    """A problem with the solution zero, which is found to the last digit."""
    model = torch.nn.Linear(2, 1).double()
    optimizer = KFACPINN(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(8):
            x = points(20, seed=seed)
            optimizer.step(lambda x=x: model(x))
    assert float(optimizer.stats["loss"]) < 1e-16
