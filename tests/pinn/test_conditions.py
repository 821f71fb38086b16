"""Conditions at boundaries vanish where they hold, and say by how much they do not elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from kfac_pinn import GaussNewton, laplacian, linearize
from kfac_pinn.pinn.conditions import dirichlet, interface, neumann, periodic, robin
from kfac_pinn.pinn.domains import Ball, Box, Polygon, TimeSpace
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.training import fit
from kfac_pinn.pinn.wrappers import SideBySide

F64 = torch.float64
PLATE = Box.cube(2, -1.0, 1.0) - Ball((0.3, 0.2), 0.4)
DOMAINS = [
    Box((0.0, -1.0), (2.0, 1.0)),
    Ball((1.0, 0.5), 0.7),
    Polygon([(0, 0), (2, 0), (1, 2)]),
    PLATE,
    TimeSpace(0.0, 1.0, PLATE),
]


def on(domain, n=60):
    return domain.boundary(n, Generator().manual_seed(0), F64)


def u(x):
    return torch.sin(x[:, :1]) * torch.exp(x[:, 1:2]) + x[:, -1:] ** 2


def slope(domain, x):
    """By nested autograd."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(u(x).sum(), x)
    return (grad * domain.normal(x.detach())).sum(1, keepdim=True)


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: type(d).__name__)
def test_fluxes_against_autograd(domain):
    x = on(domain)
    torch.testing.assert_close(neumann(domain)(u, x), slope(domain, x))
    torch.testing.assert_close(neumann(domain, 2.0)(u, x), slope(domain, x) - 2)
    found = robin(domain, 3.0, lambda x: x[:, 0], lambda x: x[:, :1] ** 2)(u, x)
    torch.testing.assert_close(found, 3 * u(x) + x[:, :1] * slope(domain, x) - x[:, :1] ** 2)
    torch.testing.assert_close(dirichlet(lambda x: x[:, 0])(u, x), u(x) - x[:, :1])
    assert dirichlet(u)(u, x).abs().max() == 0


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "condition",
    [dirichlet(1.0), neumann(PLATE), robin(PLATE, 1.0, 2.0), periodic(0, 2.0), periodic(1, 2.0, 1)],
    ids=["dirichlet", "neumann", "robin", "periodic", "periodic slope"],
)
def test_a_system_at_few_points(condition, n):
    """Three fields at a start of one point: (1, 3) is no mistake of broadcasting."""
    torch.manual_seed(0)
    model, x = MLP((2, 4, 3)).double(), on(PLATE, n)
    problem = Problem("few", PLATE, {"start": Term(lambda *_: x, condition, n)})
    lin = linearize(problem.sample().residuals(model), list(model.parameters()))
    found = condition(model, x)
    parts = [r.detach() for r in (found if isinstance(found, tuple) else (found,))]
    columns = torch.cat([part.reshape(n, -1) for part in parts], 1)
    assert columns.shape[1] % 3 == 0
    assert lin.loss == pytest.approx(float(columns.square().mean(0).sum() / 2))


def test_an_interface_of_two_media():
    """u = r^2 inside and 1 + k log r outside: equal at r = 1, flux 2 k_in = k_out k."""
    disk = Ball((0.0, 0.0))

    def both(x):
        square = (x * x).sum(1, keepdim=True)
        return torch.cat([square, 1 + 0.25 * torch.log(square)], 1)

    x = on(disk)
    values, fluxes = interface(disk, 1.0, 4.0)(both, x)
    assert values.abs().max() < 1e-14 and fluxes.abs().max() < 1e-14
    values, fluxes = interface(disk, 2.0, 4.0, jump=0.5, flux=lambda x: -x[:, 0])(both, x)
    assert (values + 0.5).abs().max() < 1e-14
    torch.testing.assert_close(fluxes, 2 - 4 + x[:, :1])
    with pytest.raises(ValueError, match="two columns"):
        interface(disk)(u, x)


def test_periodic_values_and_derivatives():
    box = Box((0.0, 0.0), (1.0, 2.0))
    x = box.face(1, 0)(30, Generator().manual_seed(0), F64)

    def wave(x):
        return torch.sin(math.pi * x[:, 1:2]) * x[:, :1]

    assert all(r.abs().max() < 1e-13 for r in periodic(1, 2.0, 3)(wave, x))
    assert len(periodic(1, 2.0, 3)(wave, x)) == 4 and len(periodic(1, 2.0)(wave, x)) == 1
    value, first = periodic(1, 2.0, 1)(lambda x: x[:, 1:2] ** 2, x)
    torch.testing.assert_close(value, torch.full((30, 1), -4.0, dtype=F64))
    torch.testing.assert_close(first, torch.full((30, 1), -4.0, dtype=F64))
    two = periodic(1, 2.0)(lambda x: x, x)[0]
    assert two.shape == (30, 2) and (two[:, 1] == -2).all()  # a system


def test_domains_without_normals_are_refused():
    for make in (neumann, interface, lambda d: robin(d, 1.0, 1.0)):
        with pytest.raises(TypeError, match="a domain with normals"):
            make((0.0, 1.0))


def test_a_problem_of_two_media():
    """Sources inside only: the solution leaves no residual in any of the terms."""
    disk, ring = Ball((0.0, 0.0), 0.5), Box.cube(2, -1.0, 1.0) - Ball((0.0, 0.0), 0.5)

    def exact(x):
        square = 4 * (x * x).sum(1, keepdim=True)
        return torch.cat([square, 1 + 0.25 * torch.log(square)], 1)

    terms = {
        "inside": Term(disk.interior, lambda u, x: laplacian(lambda z: u(z)[:, :1], x) - 16, 150),
        "outside": Term(ring.interior, lambda u, x: laplacian(lambda z: u(z)[:, 1:], x), 300),
        "between": Term(disk.boundary, interface(disk, 1.0, 4.0), 60),
        "walls": Term(
            ring.boundary.where(lambda x: x.abs().amax(1) == 1),
            lambda u, x: (u(x) - exact(x))[:, 1],
            80,
        ),
    }
    problem = Problem("media", ring, terms)
    batch = problem.sample(Generator().manual_seed(0), dtype=F64)
    assert all(r.abs().max() < 1e-12 for r in batch.residuals(exact)().values())
    model = SideBySide(MLP((2, 6, 1)), MLP((2, 8, 1))).double()
    history = fit(model, problem, GaussNewton(model.parameters()), steps=10, every=5)
    assert history.last["loss"] < history.rows[0]["loss"]
