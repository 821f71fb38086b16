"""Predictions averaged over a mirror of the family: exact symmetry, errors no larger."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.problems import burgers1d, burgers1d_published, reflection, solve_burgers
from hyperlora_ext.symmetry import Averaged, Symmetry, averaged
from kfac_pinn import MLP, PeriodicFeatures, taylor

F64 = torch.float64
FAMILIES = [burgers1d(), burgers1d_published()]
MIRROR = reflection()


def drawn(n: int = 1, seed: int = 0) -> Tensor:
    return FAMILIES[0].space.sample(n, Generator().manual_seed(seed))


def hypernetwork(family: Family) -> HyperLoRA:
    torch.manual_seed(0)
    base = nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, 8, 8, 1))).double()
    h = HyperLoRA(base, family.space, 2, hidden=(16,))
    with torch.no_grad():
        h.network.layers[-1].get_parameter("weight").mul_(100)  # tasks far from the base
    return h


def test_the_solver_knows_the_symmetry() -> None:
    """What is averaged over holds for the reference: nothing is shared with the wrapper."""
    u0 = drawn(2)
    there, here = (solve_burgers(u, 0.01) for u in (MIRROR.task(u0), u0))
    mirrored = -here.on_grid(128, 11).flip(-1).roll(1, -1)
    assert (there.on_grid(128, 11) - mirrored).abs().max() < 1e-10


@pytest.mark.parametrize("family", FAMILIES, ids=["its own frame", "no frame"])
def test_what_is_averaged_has_the_symmetry(family: Family) -> None:
    h, u0, x = hypernetwork(family), drawn()[0], torch.rand(20, 2, dtype=F64)
    predict, other = averaged(h.pinn, MIRROR), MIRROR.points(x)
    u, v = predict(u0), predict(MIRROR.task(u0))
    assert (v(x) + u(other)).abs().max() < 1e-12
    apart = h.pinn(MIRROR.task(u0))(x) + h.pinn(u0)(other)
    assert apart.abs().max() > 1e-2  # which the hypernetwork alone has not


def test_errors_are_at_most_the_mean_of_both() -> None:
    family, tasks = FAMILIES[0], drawn(3)
    h = hypernetwork(family)
    both = torch.stack([family.errors(h.pinn, t).mse for t in (tasks, MIRROR.task(tasks))])
    mse = family.errors(averaged(h.pinn, MIRROR), tasks).mse
    assert (mse <= both.mean(0) * (1 + 1e-9)).all() and (mse < 0.999 * both.mean(0)).any()


def test_jets_pass_through_it() -> None:
    """Residuals of an averaged network are those by nested autograd."""
    h, u0 = hypernetwork(FAMILIES[0]), drawn()[0]
    u = averaged(h.pinn, MIRROR)(u0)
    x = torch.rand(6, 2, dtype=F64, requires_grad=True)
    _, (u_t, u_x), u_xx = taylor(u, x.detach(), weights=torch.tensor([0.0, 1.0], dtype=F64))
    first = torch.autograd.grad(u(x).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first[:, 1].sum(), x)[0][:, 1:]
    assert torch.allclose(torch.cat([u_t, u_x], 1), first) and torch.allclose(u_xx, second)


def test_what_is_no_mirror_is_named() -> None:
    turn = Symmetry(lambda task: task + 1, MIRROR.points, MIRROR.fields)
    with pytest.raises(ValueError, match=r"task applied twice.*lambda task: -task"):
        averaged(lambda task: MLP((2, 1)), turn)(drawn()[0])
    with pytest.raises(TypeError, match="Symmetry: points"):
        Symmetry(MIRROR.task, 3, MIRROR.fields)  # type: ignore[arg-type]
    assert isinstance(averaged(lambda task: MLP((2, 1)), MIRROR)(drawn()[0]), Averaged)
