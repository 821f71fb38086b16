"""GaussNewton says when it fits the points instead of the equation, and only then."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from small_problems import flat, network, points, poisson
from torch import Tensor, nn

from kfac_pinn import GaussNewton
from kfac_pinn.optimizers import gauss_newton
from kfac_pinn.pinn.problem import relative_l2
from kfac_pinn.pinn.problems import poisson_2d

BATCH = r"fits \d+ of \d+ residuals freely.*use more points"


def train(model: nn.Sequential, rows: tuple[int, int], steps: int) -> float:
    """On Poisson's equation with fixed points; the most effective parameters of a step."""
    closure = poisson(model, points(rows[0]), points(rows[1], seed=1))
    optimizer, most = GaussNewton(model.parameters()), 0.0
    for _ in range(steps):
        optimizer.step(closure)
        most = max(most, float(optimizer.stats["effective_parameters"]))
    return most


def test_fewer_points_than_parameters_are_interpolated() -> None:
    """It warns once, at the line that calls `step`."""
    with pytest.warns(UserWarning, match=BATCH) as caught:
        most = train(network(2, 16, 1), (30, 10), steps=40)
    assert len(caught) == 1
    assert Path(caught[0].filename) == Path(__file__)
    assert 36 < most <= 40


def test_the_error_is_then_far_above_the_loss() -> None:
    """What it warns of: held-out points see nothing of the loss on the batch."""
    problem, model = poisson_2d(), network(2, 16, 1)
    generator = torch.Generator().manual_seed(0)
    batch = problem.sample(
        generator, dict(zip(problem.terms, (30, 10), strict=True)), torch.float64
    )
    optimizer = GaussNewton(model.parameters())
    with pytest.warns(UserWarning, match=BATCH):
        for _ in range(60):
            loss = optimizer.step(batch.residuals(model))
    held_out = problem.held_out(generator, 500, torch.float64)
    assert relative_l2(model, problem.solution, held_out) > 100 * float(loss) ** 0.5


@pytest.mark.parametrize(("sizes", "rows"), [((2, 6, 1), (60, 20)), ((2, 8, 8, 1), (900, 120))])
def test_enough_points_are_not_warned_of(sizes: tuple[int, ...], rows: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network(*sizes), rows, steps=25)


def test_the_warning_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> Tensor:
        model = network(2, 16, 1)
        train(model, (30, 10), steps=30)
        return flat(model)

    with pytest.warns(UserWarning, match=BATCH):
        spoken = end()
    monkeypatch.setattr(gauss_newton, "FREE_SHARE", 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = end()
    assert torch.equal(spoken, silent)
