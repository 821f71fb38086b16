"""What Levenberg-Marquardt alone does: the veto of points that it is not fitted to, bent steps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_problems import flat, network, points
from torch import Tensor

from kfac_pinn import LevenbergMarquardt


@pytest.mark.parametrize(("growth", "moves"), [(1.0, True), (1.09, True), (1.11, False)])
def test_a_held_out_loss_may_rise_by_the_slack(growth: float, moves: bool) -> None:
    """By a tenth and no more; a veto leaves the parameters, says so, and is remembered."""
    model, x = network(2, 4, 1), points(20)
    losses = itertools.chain([1.0], itertools.repeat(growth))

    def held_out() -> Tensor:
        return torch.full((3,), next(losses) ** 0.5, dtype=torch.float64)

    optimizer = LevenbergMarquardt(model.parameters(), held_out=held_out, slack=0.1)
    before = flat(model)
    optimizer.step(lambda: model(x) - x.prod(1, keepdim=True))
    assert torch.equal(flat(model), before) is not moves
    assert optimizer.vetoed is not moves
    assert ("held-out" in str(optimizer.stats["reason"])) is not moves


def test_the_acceleration_bends_the_step_by_half_of_it() -> None:
    """theta + v + a/2, lr times the first and lr^2 times the second."""
    x = points(20)

    class Recorded:
        def __init__(self) -> None:
            self.v, self.a = torch.empty(0), torch.empty(0)

        def __call__(self, objective, linearization, v, pull_back):  # type: ignore[no-untyped-def]
            self.v, self.a = v, 1e-3 * torch.ones_like(v)
            return self.a, 0.1

    for lr in (1.0, 0.5):
        model = network(2, 4, 1)
        bend = Recorded()
        optimizer = LevenbergMarquardt(model.parameters(), lr=lr, acceleration=bend)
        before = flat(model)
        optimizer.step(lambda m=model: m(x) - x.prod(1, keepdim=True))  # type: ignore[misc]
        moved = lr * bend.v + 0.5 * lr**2 * bend.a
        torch.testing.assert_close(flat(model) - before, moved, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("damping", 0.0, ValueError),
        ("damping", float("nan"), ValueError),
        ("slack", -0.1, ValueError),
        ("trials", 0, ValueError),
        ("trials", 2.5, TypeError),
        ("damping", "1e-3", TypeError),
    ],
)
def test_settings_without_a_meaning(name: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=name):
        LevenbergMarquardt(network(2, 3, 1).parameters(), **{name: value})
