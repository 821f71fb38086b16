"""Neuromancer: no closure, gradients clipped by its trainer, bounds as squared violations."""

from __future__ import annotations

import torch
from installed import body

from kfac_pinn import KFACPINN

diffusion = body("neuromancer_diffusion")


def test_diffusion_ends_below_adam() -> None:
    assert diffusion.solve(KFACPINN, 60) < diffusion.solve(torch.optim.Adam, 200, lr=1e-3) / 5
