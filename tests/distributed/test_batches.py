"""Micro-batches of one process, and of several, against one closure of all points."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

import kfac_pinn as kp
from kfac_pinn import Batches, Factors
from kfac_pinn.jacobian.blocks import LayerJacobian
from kfac_pinn.jacobian.matrix_free import AutogradJacobian
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


def parameters(
    name: str, closure: str, split: bool, steps: int, keep: bool = False
) -> torch.Tensor:
    """After some steps in one process."""
    model, x, y = Net(), points(60, 1), points(24, 2)
    kind, arguments = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), **with_decay(arguments))
    make = CLOSURES[closure]
    whole = make(model, x, y)
    parts = zip(x.split(CUTS[0]), y.split(CUTS[1]), strict=True)
    batches = Batches([make(model, *part) for part in parts], keep=keep)
    for _ in range(steps):
        optimizer.step(batches if split else whole)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n != "HessianFree Hessian"])
def test_same_step_as_one_closure(name, keep):
    found, expected = (parameters(name, "residuals", split, 4, keep) for split in (True, False))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def in_batches(keep, at_once=7):
    """The same points in one closure and in batches."""
    model, points_of_terms = Net(), (points(60, 1), points(24, 2))

    def terms(x, y):
        return residuals(model, x, y)()

    whole = kp.linearize(residuals(model, *points_of_terms), model.parameters())
    batches = Batches.of(terms, points_of_terms, at_once=at_once, keep=keep)
    return whole, kp.linearize(batches, model.parameters())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("at_once", [3, 7, 59, 60, 100])
def test_the_same_jacobian(keep, at_once):
    whole, parts = in_batches(keep, at_once)
    u, v = torch.randn_like(whole.residual), torch.randn_like(whole.gradient)
    for of in (
        lambda found: found.residual,
        lambda found: found.gradient,
        lambda found: found.rows(),
        lambda found: found.gramian(),
        lambda found: found.kernel(),
        lambda found: found @ v,
        lambda found: found.vjp(u),
        lambda found: found.curvature(v),
        lambda found: found.curvature(v),  # the second is made in another way
        lambda found: found.sketched(20, torch.Generator().manual_seed(0))[0],
    ):
        torch.testing.assert_close(of(parts), of(whole), rtol=1e-12, atol=1e-12)


def test_kept_batches_are_evaluated_once():
    model, calls = Net(), []

    def terms(x):
        calls.append(torch.is_grad_enabled())
        return model(x).square() - 1

    for keep, passes in ((True, 1), (False, 4)):
        calls.clear()
        found = kp.linearize(
            Batches.of(terms, (points(12, 1),), at_once=4, keep=keep),
            model.parameters(),
            check=False,
        )
        for _ in range(3):
            found.curvature(torch.ones_like(found.gradient))
        # Once more, to know how many points there are
        assert len(calls) == 3 * (passes + 1)


def test_a_kept_batch_keeps_no_graph():
    model, x = Net(), points(12, 1)
    graphs = []

    def terms(x):
        r = kp.laplacian(model, x)
        graphs.append(weakref.ref(r))
        return r

    found = kp.linearize(Batches.of(terms, (x,), at_once=4, keep=True), model.parameters())
    assert all(each() is None for each in graphs)
    assert not any(term.residual.requires_grad for part in found.parts() for term in part.terms)


@pytest.fixture
def jacobians(monkeypatch):
    """How many there are in memory: of layers, and left to autograd with a graph."""
    made = weakref.WeakSet()
    for kind in (LayerJacobian, AutogradJacobian):

        def noted(self, *args, _init=kind.__init__):
            _init(self, *args)
            made.add(self)

        monkeypatch.setattr(kind, "__init__", noted)
    return lambda: sum(isinstance(j, LayerJacobian) or j.output.requires_grad for j in made)


READINGS = {
    "gradient": lambda found: found.gradient,
    "rows": lambda found: found.rows(),
    "rows of a block": lambda found: found.rows(found.blocks[0]),
    "gramian": lambda found: found.gramian(),
    "diagonal": lambda found: found.gramian_diagonal(),
    "kernel": lambda found: found.kernel(),
    "product": lambda found: found @ torch.ones_like(found.gradient),
    "transposed": lambda found: found.vjp(torch.ones_like(found.residual)),
    "curvature": lambda found: found.curvature(torch.ones_like(found.gradient)),
    "sketch": lambda found: found.sketched(5, torch.Generator().manual_seed(0)),
    "batches": lambda found: [len(rows) for rows, _ in found.batches()],
    "restricted": lambda found: found.restrict(found.blocks[0]).rows(),
    "factors": lambda found: Factors().measure(found, 0),
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("reading", READINGS)
def test_no_batch_is_in_memory_while_the_next_is_linearised(reading, mixed, jacobians):
    model, alive = Net(), []

    def terms(x):
        alive.append(jacobians())
        r = kp.laplacian(model, x)
        return r - r.mean() if mixed else r

    batches = Batches.of(terms, (points(12, 1),), at_once=3)
    found = kp.linearize(batches, model.parameters(), check=False)
    READINGS[reading](found)
    assert alive == [0] * len(alive)
    assert jacobians() == 0  # nor is the first kept for the step


@pytest.mark.parametrize(
    ("points_of_terms", "at_once", "kind", "said"),
    [
        ((points(60, 1), points(2, 2)), 7, ValueError, r"9 batches of 60 .* are 2 .*at_once=30"),
        (points(60, 1), 7, TypeError, r"write \(x,\)"),
        ((points(60, 1),), 0, ValueError, "at_once"),
        ((points(60, 1),), 7.0, TypeError, "at_once"),
        ((points(60, 1), 3), 7, TypeError, r"points\[1\]"),
        ((), 7, ValueError, "points"),
    ],
)
def test_points_that_cannot_be_divided(points_of_terms, at_once, kind, said):
    with pytest.raises(kind, match=said):
        Batches.of(lambda *x: x, points_of_terms, at_once=at_once)


def test_keep_is_a_flag():
    with pytest.raises(TypeError, match="Batches: keep"):
        Batches([lambda: None], keep=2)


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
