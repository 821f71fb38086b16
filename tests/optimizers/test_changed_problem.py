"""A problem that changes during a run: coefficients moved on, points where they matter."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch

from kfac_pinn import GaussNewton, laplacian
from kfac_pinn.optimizers.gauss_newton import Memory
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.search.trust_region import Stage, TakenStep

KNOWN = Memory(
    radius=1e-3,
    stage=Stage(second=True, due=-math.inf, lowest=1e-20),
    taken=TakenStep(1e-3, 1e-9, 1e-9, 1e-12),
    began=1e-9,
)


@pytest.mark.parametrize(
    ("loss", "another"),
    [(1e-12, False), (5e-8, False), (2e-7, True), (math.nan, False)],
    ids=["as it was left", "the last step fitted its points", "another problem", "not a number"],
)
def test_nothing_is_remembered_of_another_problem(loss: float, another: bool) -> None:
    """One step does not make so much of a difference on points of the same kind."""
    assert KNOWN.renewed(loss) == (Memory() if another else KNOWN)


@pytest.mark.parametrize("began", [0.0, -1.0], ids=["no step yet", "an energy"])
def test_what_has_no_size_is_not_compared(began: float) -> None:
    known = replace(KNOWN, began=began)
    assert known.renewed(1.0) == known


def test_a_solved_problem_may_be_followed_by_another() -> None:
    """u'' = f to rounding, then another f with the same optimizer: it used to stand still."""
    torch.manual_seed(0)
    model = MLP((1, 16, 1)).double()
    x = torch.linspace(-1, 1, 60, dtype=torch.float64)[:, None]
    edge = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    optimizer = GaussNewton(model.parameters())
    for wave in (math.pi, 3 * math.pi):
        f = wave**2 * torch.sin(wave * x)
        for _ in range(130):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the loss has jumped
                optimizer.step(lambda f=f: [laplacian(model, x) + f, 10 * model(edge)])
        assert optimizer.stats["loss"] < 1e-6
