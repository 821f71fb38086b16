"""Micro-batches of one process, and of several, against one closure of all points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kfac_pinn as kp
from kfac_pinn import Batches
from tests.distributed.cases import (
    CLOSURES,
    OPTIMIZERS,
    Net,
    batched,
    points,
    residuals,
    trained,
    with_decay,
)

CUTS = [[20, 25, 15], [4, 1, 19]]


def parameters(name: str, closure: str, split: bool, steps: int) -> torch.Tensor:
    """After some steps in one process."""
    model, x, y = Net(), points(60, 1), points(24, 2)
    kind, arguments = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), **with_decay(arguments))
    make = CLOSURES[closure]
    whole = make(model, x, y)
    parts = zip(x.split(CUTS[0]), y.split(CUTS[1]), strict=True)
    batches = Batches([make(model, *part) for part in parts])
    for _ in range(steps):
        optimizer.step(batches if split else whole)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "HessianFree Hessian"])
def test_same_step_as_one_closure(name):
    found, expected = (parameters(name, "residuals", split, 4) for split in (True, False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("closure", ["mean_loss", "with_prior", "convex"])
def test_other_losses(closure):
    found, expected = (parameters("KFACPINN", closure, split, 3) for split in (True, False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_batches_of_two_processes(pools):
    for name in ("KFACPINN", "GaussNewton", "SPRING"):
        (one,) = pools(1)(trained, name, "residuals", 3)
        for each in pools(2)(batched, name, 3):
            np.testing.assert_allclose(each, one[0], rtol=0, atol=1e-10)


def test_points_drawn_inside_a_batch_are_found():
    model, generator = Net(), torch.Generator().manual_seed(0)

    def fresh():
        x = torch.rand(20, 2, generator=generator, dtype=torch.float64)
        return kp.laplacian(model, x), model(x)

    optimizer = kp.KFACPINN(model.parameters())
    with pytest.raises(RuntimeError, match=r"batch 0 has the loss .* draw its points before"):
        optimizer.step(Batches([fresh, fresh]))


def test_batches_of_different_terms():
    model, x, y = Net(), points(20, 1), points(8, 2)
    both = residuals(model, x, y)
    with pytest.raises(RuntimeError, match="batch 0 returns 2 terms, batch 1 1"):
        kp.KFACPINN(model.parameters()).step(Batches([both, lambda: both()[0]]))


@pytest.mark.parametrize(
    ("closures", "kind", "said"),
    [([], ValueError, "no batches"), ([3], TypeError, "found int"), ([Batches], TypeError, "")],
)
def test_what_is_no_batch(closures, kind, said):
    if closures == [Batches]:
        closures = [Batches([lambda: None])]
    with pytest.raises(kind, match=said):
        Batches(closures)


def test_other_optimizers_are_told():
    with pytest.raises(TypeError, match="sum the losses"):
        Batches([lambda: None])()
