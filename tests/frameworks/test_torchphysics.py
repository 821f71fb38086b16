"""TorchPhysics: an lr that it insists on, a loss of shape (1,)."""

from __future__ import annotations

import pytest
import torch
from installed import body
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, GaussNewton

poisson = body("torchphysics_poisson")


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_poisson_ends_below_adam(kind: type[Optimizer]) -> None:
    assert poisson.solve(kind, 30, lr=1.0) < poisson.solve(torch.optim.Adam, 300, lr=1e-3) / 10


def test_the_lr_of_adam_is_named() -> None:
    with pytest.warns(UserWarning, match="lr"):
        poisson.solve(KFACPINN, 1, lr=1e-3)
