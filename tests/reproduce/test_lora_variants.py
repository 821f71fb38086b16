"""Variants of adapters: each begins as its base, and its Jacobian is autograd's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from variants import ALPHA, VARIANTS, Magnitudes, Scaled, adapted, principal

from hyperlora_ext.lora import LoRALinear
from hyperlora_ext.problems import kovasznay
from kfac_pinn import MLP, LevenbergMarquardt, linearize

F64 = torch.float64


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 7).double()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_begins_as_its_base_and_is_trained(name: str) -> None:
    torch.manual_seed(0)
    base, x = MLP((2, 7, 5, 3)).double(), torch.randn(4, 2, dtype=F64)
    v = adapted(base, 2, VARIANTS[name])
    assert torch.allclose(v(x), base(x), rtol=1e-12, atol=1e-12)
    problem = kovasznay().problem(30.0)
    closure = problem.sample(
        torch.Generator().manual_seed(0), {"interior": 8, "boundary": 6}, F64
    ).residuals(v)
    parameters = [p for p in v.parameters() if p.requires_grad]
    lin = linearize(closure, parameters, check=True)  # against autograd
    assert lin.loss > 0 and lin.rows().shape[1] == sum(p.numel() for p in parameters)
    optimizer = LevenbergMarquardt(v.parameters())
    losses = [float(optimizer.step(closure)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_what_each_variant_is() -> None:
    """By dense matrices, away from the start."""
    base, x = linear(), torch.randn(6, 5, dtype=F64)
    scaled, sized, parted = Scaled(base, 2), Magnitudes(base, 2), principal(base, 2)
    assert isinstance(parted, LoRALinear)
    A, B = (layer.weight for layer in scaled.update)
    with torch.no_grad():
        for p in (*scaled.parameters(), *sized.parameters()):
            if p.requires_grad:
                p.normal_()
    W, W0, b = base.weight + ALPHA / math.sqrt(2) * B @ A, base.weight, base.bias
    assert torch.allclose(scaled(x), x @ W.T + b)
    adapter = sized.adapter
    assert torch.allclose(sized(x), x @ (sized.m[:, None] * (W0 + adapter.B @ adapter.A)).T + b)
    # The best approximation of rank 2: what is left has the other singular values
    rest = torch.linalg.svdvals(parted.frozen.weight)
    assert torch.allclose(rest[:3], torch.linalg.svdvals(W0)[2:]) and rest[3:].max() < 1e-12
