"""KFAC and KFACStar against the published trajectories, exact blocks and their own invariances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kfac_pinn import laplacian, taylor
from kfac_pinn.factors import (
    Average,
    Empirical,
    Factors,
    ForwardOnly,
    Reduce,
    TraceNormDamping,
)
from kfac_pinn.optimizers.kfac import KFAC, KFACStar
from kfac_pinn.search import FixedStep

REFERENCE = Path(__file__).parent / "reference"
PROBLEMS = ["poisson2d", "heat1d", "logfokkerplanck3d"]
EARLY = Average(0.9, start=1.0)
Residuals = Callable[[], tuple[Tensor, Tensor]]


def poisson(u: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return laplacian(u, x) + y


def heat(u: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    _, first, second = taylor(u, x, weights=[0.0, 1.0])
    return first[0] - 0.25 * second


def log_fokker_planck(u: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    _, (q_t, *q_x), q_xx = taylor(u, x, weights=[0.0, 1.0, 1.0, 1.0])
    slope = torch.cat(q_x, dim=1)
    drift = 0.5 * (slope * x[:, 1:]).sum(1, keepdim=True) + slope.square().sum(1, keepdim=True)
    return q_t - 1.5 - drift - q_xx


EQUATIONS = {"poisson2d": poisson, "heat1d": heat, "logfokkerplanck3d": log_fokker_planck}


def reference(name: str) -> tuple[nn.Module, Residuals, dict[str, np.ndarray]]:
    data = dict(np.load(REFERENCE / f"{name}.npz"))
    x, y, xb, yb, theta = (torch.from_numpy(data[k]) for k in ("X", "y", "Xb", "yb", "theta0"))
    layers = [nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)]
    model = nn.Sequential(*layers).to(torch.float64)
    nn.utils.vector_to_parameters(theta, model.parameters())
    return model, lambda: (EQUATIONS[name](model, x, y), model(xb) - yb), data


SETTINGS: dict[str, Callable[..., KFAC]] = {
    "kfac": lambda p: KFAC(p, damping=1e-2, factors=Factors(average=EARLY)),
    "kfac_momentum": lambda p: KFAC(
        p, damping=1e-3, momentum=0.5, factors=Factors(average=Average(0.5, start=0.0))
    ),
    "kfac_periods": lambda p: KFAC(
        p, 0.1, 1e-2, factors=Factors(average=EARLY, every=2, invert_every=3), search=FixedStep()
    ),
    "kfac_star": lambda p: KFACStar(p, damping=1e-2, factors=Factors(average=EARLY)),
    "kfac_reduce": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(sharing=Reduce(), average=EARLY)
    ),
    "kfac_empirical": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(fisher=Empirical(), average=EARLY)
    ),
    "kfac_forward_only": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(fisher=ForwardOnly(), average=EARLY)
    ),
    "kfac_trace_norm": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(rule=TraceNormDamping(), average=EARLY)
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_published_trajectory(problem: str, setting: str) -> None:
    model, residuals, data = reference(problem)
    optimizer = SETTINGS[setting](model.parameters())
    for losses, theta in zip(data[f"{setting}/losses"], data[f"{setting}/thetas"], strict=True):
        loss = optimizer.step(residuals)
        expected = torch.from_numpy(theta)
        found = nn.utils.parameters_to_vector(model.parameters()).detach()
        assert (found - expected).norm() <= 1e-9 * expected.norm()
        assert float(loss) == pytest.approx(losses.sum(), rel=1e-9)
