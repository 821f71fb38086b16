"""Neuromancer: no closure, gradients clipped by its trainer, bounds as squared violations."""

from __future__ import annotations

import torch
from installed import body

from kfac_pinn import KFACPINN

diffusion = body("neuromancer_diffusion")

SMALL = {"width": 24, "inside": 500}


def test_diffusion_ends_below_adam() -> None:
    by_adam = diffusion.solve(torch.optim.Adam, 200, **SMALL, lr=1e-3)
    assert diffusion.solve(KFACPINN, 60, **SMALL) < by_adam / 5
