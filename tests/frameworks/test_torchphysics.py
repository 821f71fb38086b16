"""TorchPhysics: an lr that it insists on, a loss of shape (1,)."""

from __future__ import annotations

import pytest
import torch
from installed import body

from kfac_pinn import KFACPINN, Affordable

poisson = body("torchphysics_poisson")


def test_poisson_ends_below_adam() -> None:
    by_adam = poisson.solve(torch.optim.Adam, 200, lr=1e-3)
    assert poisson.solve(KFACPINN, 100, lr=1.0) < by_adam / 1000
    assert poisson.solve(KFACPINN, 20, lr=1.0, exact=Affordable(0)) < by_adam / 10


def test_the_lr_of_adam_is_named() -> None:
    with pytest.warns(UserWarning, match="lr"):
        poisson.solve(KFACPINN, 1, lr=1e-3)
