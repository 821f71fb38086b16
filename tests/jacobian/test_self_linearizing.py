"""A closure that linearises itself is compared with autograd as any other, no more laxly."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kfac_pinn import GaussNewton, Linearization, linearize
from kfac_pinn.pinn.networks import MLP


class Own:
    """Two terms of different length; the Jacobian is that of `scale` times the residuals."""

    def __init__(self, scale: float) -> None:
        torch.manual_seed(0)
        self.model, self.scale = MLP((2, 4, 1)).double(), scale
        self.x = torch.rand(9, 2, dtype=torch.float64)

    def __call__(self) -> dict[str, Tensor]:
        return {"a": self.model(self.x) - 1, "b": self.model(self.x[:4]).square()}

    def linearize(self, parameters: Sequence[Tensor]) -> Linearization:
        return linearize(lambda: {k: self.scale * r for k, r in self().items()}, parameters)


def test_the_right_jacobian_passes() -> None:
    closure = Own(1.0)
    optimizer = GaussNewton(closure.model.parameters())
    losses = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("error", [1e-6, 1e-3, 1.0])
def test_a_wrong_jacobian_is_refused_and_its_parameter_named(error: float) -> None:
    closure = Own(1 + error)
    with pytest.raises(RuntimeError, match=r"Jacobian of parameter .*\(4, 2\) .*does not match"):
        linearize(closure, closure.model.parameters(), check=True)
    with pytest.raises(RuntimeError, match="does not match autograd's"):
        GaussNewton(closure.model.parameters()).step(closure)
