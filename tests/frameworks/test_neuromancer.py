"""Neuromancer: no closure, gradients clipped by its trainer, bounds as squared violations."""

from __future__ import annotations

import pytest
import torch
from installed import body
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, GaussNewton

diffusion = body("neuromancer_diffusion")

SMALL = {"width": 24, "inside": 500}


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_diffusion_ends_below_adam(kind: type[Optimizer]) -> None:
    by_adam = diffusion.solve(torch.optim.Adam, 200, **SMALL, lr=1e-3)
    assert diffusion.solve(kind, 60, **SMALL) < by_adam / 5
