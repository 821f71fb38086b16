"""A problem that changes in the middle of a run: coefficients moved on, points where they matter."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from kfac_pinn import GaussNewton, laplacian
from kfac_pinn.optimizers.gauss_newton import Memory
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.search.trust_region import Stage, TakenStep

SECOND = Stage(second=True, due=-math.inf, lowest=1e-20)


@pytest.mark.parametrize(
    ("loss", "second"),
    [(1e-10, True), (5e-9, True), (2e-8, False), (math.nan, True)],
    ids=["as it was", "new points of one kind", "another problem", "not a number"],
)
def test_the_first_stage_begins_anew_where_the_loss_jumps(loss: float, second: bool) -> None:
    """By more than new points of the same kind change it; the radius and its bound are kept."""
    memory = Memory(radius=1e-3, stage=SECOND, taken=TakenStep(1e-3, 1e-9, 1e-9, 1e-10))
    renewed = memory.renewed(loss)
    assert renewed.stage.second == second
    assert (renewed.radius, renewed.taken) == (memory.radius, memory.taken)


def test_nothing_is_known_before_a_step_was_taken() -> None:
    memory = Memory(stage=SECOND)
    assert memory.renewed(1.0) == memory


def test_a_solved_problem_may_be_followed_by_another() -> None:
    """u'' = f, then another f with the same optimizer: it used to stand at 2e-5."""
    torch.manual_seed(0)
    model = MLP((1, 16, 1)).double()
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None]
    edge = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    optimizer = GaussNewton(model.parameters())
    for wave in (math.pi, 3 * math.pi):
        f = wave**2 * torch.sin(wave * x)
        for _ in range(120):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the loss has jumped
                optimizer.step(lambda f=f: [laplacian(model, x) + f, 10 * model(edge)])
        assert optimizer.stats["loss"] < 1e-8
