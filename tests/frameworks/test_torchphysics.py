"""TorchPhysics: an lr that it insists on, a loss of shape (1,)."""

from __future__ import annotations

import pytest
import torch
from installed import body

from kfac_pinn import KFACPINN

poisson = body("torchphysics_poisson")


def test_poisson_ends_below_adam() -> None:
    assert poisson.solve(KFACPINN, 20, lr=1.0) < poisson.solve(torch.optim.Adam, 200, lr=1e-3) / 10


def test_the_lr_of_adam_is_named() -> None:
    with pytest.warns(UserWarning, match="lr"):
        poisson.solve(KFACPINN, 1, lr=1e-3)
