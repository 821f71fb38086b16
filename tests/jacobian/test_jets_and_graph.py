"""Two sources of one Jacobian: the shipped problems by jets, and by nested autograd on the graph.

The nested closure is the problem's own, with derivatives by `torch.autograd.grad`. Poisson in a
hundred dimensions is left out: ten thousand nodes, and nothing that ten dimensions do not have.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from small_problems import flat, network
from torch import Generator, Tensor, nn

from kfac_pinn import KFACPINN, GaussNewton, linearize
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.problems import (
    WithDiffusivity,
    burgers,
    fokker_planck,
    heat_1d,
    heat_4d,
    inverse_heat,
    poisson_2d,
    poisson_5d,
    poisson_10d,
    poisson_ritz,
)

MAKE = [
    poisson_2d,
    poisson_5d,
    poisson_10d,
    heat_1d,
    heat_4d,
    fokker_planck,
    inverse_heat,
    burgers,
    poisson_ritz,
]
every_problem = pytest.mark.parametrize("make", MAKE, ids=lambda f: f.__name__)


def nested_taylor(
    u: Any, x: Tensor, order: int = 2, directions: Tensor | None = None, weights: Any = None
) -> tuple[Tensor, ...]:
    """`taylor` of a scalar u by nested autograd."""
    x = x.detach().requires_grad_()
    v = torch.eye(x.shape[1], dtype=x.dtype) if directions is None else directions
    v = v[:, None].expand(-1, *x.shape) if v.ndim == 2 else v
    value, found = u(x), []
    along = [value.expand(len(v), *value.shape)]
    for _ in range(order):
        rows = [
            (torch.autograd.grad(y.sum(), x, create_graph=True)[0] * d).sum(1).view_as(value)
            for y, d in zip(along[-1], v, strict=True)
        ]
        found.append(torch.stack(rows))
        along.append(found[-1])
    if weights is not None:
        w = torch.stack([torch.as_tensor(each, dtype=x.dtype) for each in weights])
        found[-1] = (w[:, None, None] * found[-1]).sum(0)
    return (value, *found)


def nested_laplacian(u: Any, x: Tensor) -> Tensor:
    return nested_taylor(u, x, weights=[1.0] * x.shape[1])[-1]


@contextmanager
def by_nested_autograd() -> Iterator[None]:
    """The problems' operators replaced."""
    where = "kfac_pinn.pinn.problems"
    with (
        mock.patch(f"{where}.poisson_equation.laplacian", nested_laplacian),
        mock.patch(f"{where}.burgers_equation.taylor", nested_taylor),
        mock.patch(f"{where}.fokker_planck_equation.taylor", nested_taylor),
        mock.patch(f"{where}.heat_equation.taylor", nested_taylor),
        mock.patch(f"{where}.ritz.taylor", nested_taylor),
        mock.patch("kfac_pinn.pinn.conditions.taylor", nested_taylor),
    ):
        yield


def case(make: Any, n: int = 10) -> tuple[nn.Module, Any]:
    """A model, and the residuals of a problem as a function of a model."""
    problem: Problem = make()
    batch = problem.sample(
        Generator().manual_seed(0), dict.fromkeys(problem.terms, n), torch.float64
    )
    model: nn.Module = network(problem.domain.dim, 6, 6, 1)
    if make is inverse_heat:
        model = WithDiffusivity(model).double()
    return model, batch.residuals


@every_problem
def test_gauss_newton_steps_agree(make: Any) -> None:
    model, residuals = case(make)
    twin = copy.deepcopy(model)
    start = flat(model)
    for each, source in ((model, mock.patch.dict({}, {})), (twin, by_nested_autograd())):
        with source:
            optimizer = GaussNewton(each.parameters())
            optimizer.step(residuals(each))
    step, other = flat(model) - start, flat(twin) - start
    assert step.norm() > 0
    # nine trial steps of an energy, a difference of large terms, find the radius
    tolerance = 1e-9 if make is poisson_ritz else 1e-10
    assert (step - other).norm() <= tolerance * step.norm()


@every_problem
def test_the_graph_is_read_in_factors(make: Any) -> None:
    """No layer is left to autograd, and J is that of the jets."""
    model, residuals = case(make, n=4)
    found = linearize(residuals(model), model.parameters())
    with by_nested_autograd():
        other = linearize(residuals(model), model.parameters())
    assert all(term.rest is None for term in other.terms)
    torch.testing.assert_close(other.rows(), found.rows(), rtol=1e-10, atol=1e-11)
    assert other.loss == pytest.approx(found.loss, rel=1e-12)


@pytest.mark.parametrize("make", [poisson_2d, heat_1d])
def test_kronecker_factors_converge_from_either_source(make: Any) -> None:
    """Their positions differ, and so do the factors; the errors stay within a factor of ten."""
    losses = []
    for nested in (False, True):
        model, residuals = case(make, n=30)
        optimizer = KFACPINN(model.parameters())
        with by_nested_autograd() if nested else mock.patch.dict({}, {}):
            for _ in range(15):
                optimizer.step(residuals(model))
        losses.append(optimizer.stats["new_loss"])
    assert max(losses) < 10 * min(losses)
