"""Convex losses: the generalised Gauss-Newton matrix and gradient, by nested autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import flat, network, points, relative
from torch import Tensor, nn
from torch.autograd import functional as autograd

from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    SPRING,
    ConvexLoss,
    GaussNewton,
    HessianFree,
    KFACStar,
    laplacian,
    linearize,
    taylor,
    total_loss,
)
from kfac_pinn.curvature.kronecker_factors import Average, Factors
from kfac_pinn.optimizers.engd import Diagonal, Full, PerLayer, SampleSpace
from kfac_pinn.optimizers.hessian_free import Hessian
from kfac_pinn.pinn.problem import relative_l2
from kfac_pinn.pinn.problems.ritz import poisson_ritz
from kfac_pinn.search.line import Armijo, FixedStep

X = points(9)
Operators = Callable[[Any], Sequence[Tensor]]


def value(u: Any) -> Sequence[Tensor]:
    return (u(X),)


def interior(u: Any) -> Sequence[Tensor]:
    return (laplacian(u, X) + 1,)


def value_and_slopes(u: Any) -> Sequence[Tensor]:
    v, first = taylor(u, X, order=1)
    return (v, *first)


def huber(r: Tensor) -> Tensor:
    """Quadratic near zero, linear beyond 0.3."""
    return torch.where(r.abs() < 0.3, 0.5 * r * r, 0.3 * (r.abs() - 0.15))


# operators of u, and l of their values
LOSSES: dict[str, tuple[Operators, Callable[..., Tensor]]] = {
    "square": (interior, lambda r: 0.5 * r * r),
    "huber": (interior, huber),
    "pseudo-huber": (interior, lambda r: torch.sqrt(1 + r * r) - 1),
    "l4": (interior, lambda r: r.abs() ** 4 / 4),
    "l2.5": (interior, lambda r: r.abs() ** 2.5 / 2.5),
    "log-cosh": (value, lambda r: torch.log(torch.cosh(r))),
    "exponential": (value, lambda r: torch.exp(r) - r),
    "linear": (value, lambda r: 3 * r),
    "ritz": (value_and_slopes, lambda v, p, q: (p * p + q * q) / 2 - X[:, 0] * v),
    "p-laplacian": (value_and_slopes, lambda v, p, q: (1 + p * p + q * q) ** 2 / 4 - v),
    "coupled": (value_and_slopes, lambda v, p, q: torch.logsumexp(torch.stack([v, p, q]), 0)),
}


def outputs_of(theta: Tensor, model: nn.Module, operators: Operators) -> Tensor:
    """y (N, C) as a function of the flat parameters: no capture, no mode."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    parts = theta.split([p.numel() for p in parameters])
    values = {n: t.view(p.shape) for n, t, p in zip(names, parts, parameters, strict=True)}
    u = lambda x: torch.func.functional_call(model, values, (x,))  # noqa: E731
    return torch.stack([y.reshape(-1) for y in operators(u)], dim=-1)


def generalised_gauss_newton(model: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and mean_n J_n^T H_n J_n, all by autograd."""
    operators, density = LOSSES[name]
    theta = flat(model)
    y = outputs_of(theta, model, operators)
    J = autograd.jacobian(lambda t: outputs_of(t, model, operators), theta)
    H = torch.stack([autograd.hessian(partial(single, density, n), z) for n, z in enumerate(y)])
    slope = torch.stack(
        [autograd.jacobian(partial(single, density, n), z) for n, z in enumerate(y)]
    )
    matrix = torch.einsum("ncp,ncd,ndq->pq", J, H, J) / len(y)
    gradient = torch.einsum("ncp,nc->p", J, slope) / len(y)
    return density(*y.unbind(-1)).mean(), gradient, matrix


def single(density: Callable[..., Tensor], n: int, z: Tensor) -> Tensor:
    """l at point n: the density may hold data of all points."""
    return density(*[z[c].expand(len(X)) for c in range(len(z))])[n]


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=4)
@given(seed=st.integers(0, 1000))
def test_gauss_newton_and_gradient(name: str, seed: int) -> None:
    model = network(2, 5, 1, seed=seed)
    operators, density = LOSSES[name]
    closure = lambda: ConvexLoss(operators(model), density)  # noqa: E731
    linearization = linearize(closure, list(model.parameters()), check=True)
    loss, gradient, matrix = generalised_gauss_newton(model, name)
    assert linearization.loss == pytest.approx(float(loss), rel=1e-13)
    scale = 1 + float(matrix.norm())
    assert (linearization.gradient - gradient).norm() <= 1e-11 * float(gradient.norm())
    assert (linearization.gramian() - matrix).norm() <= 1e-11 * scale


def test_a_square_is_least_squares() -> None:
    """Residual, Gramian, gradient and linear term of the two ways to write one term."""
    model = network(2, 5, 1)
    parameters = list(model.parameters())
    convex = linearize(lambda: ConvexLoss(interior(model), lambda r: 0.5 * r * r), parameters)
    square = linearize(lambda: interior(model)[0], parameters)
    assert convex.linear_term is None
    assert convex.loss == pytest.approx(square.loss, rel=1e-14)
    assert relative(convex.residual.abs(), square.residual.abs()) <= 1e-14
    assert relative(convex.gramian(), square.gramian()) <= 1e-14
    assert relative(convex.gradient, square.gradient) <= 1e-14


@pytest.mark.parametrize("name", ["ritz", "linear", "huber", "coupled"])
def test_directions_are_dense_solves(name: str) -> None:
    """Sample space, parameter space and conjugate gradients, with a linear term."""
    model = network(2, 30, 1)
    operators, density = LOSSES[name]
    closure = lambda: ConvexLoss(operators(model), density)  # noqa: E731
    _, gradient, matrix = generalised_gauss_newton(model, name)
    expected = -torch.linalg.solve(
        matrix + 1e-2 * torch.eye(len(matrix), dtype=torch.float64), gradient
    )
    for optimizer in (
        ENGD(model.parameters(), damping=1e-2),
        ENGD(model.parameters(), damping=1e-2, gramian=SampleSpace()),
        SPRING(model.parameters(), damping=1e-2, momentum=0.5),
    ):
        linearization = linearize(closure, list(model.parameters()))
        assert relative(optimizer.direction(linearization), expected) <= 1e-9


def test_layers_are_solved_alone_with_an_excess() -> None:
    model = network(2, 30, 1)
    operators, density = LOSSES["ritz"]
    linearization = linearize(
        lambda: ConvexLoss(operators(model), density), list(model.parameters())
    )
    _, gradient, matrix = generalised_gauss_newton(model, "ritz")
    direction = ENGD(model.parameters(), damping=1e-2, gramian=PerLayer()).direction(linearization)
    for columns in (slice(0, 90), slice(90, 121)):
        damped = matrix[columns, columns].clone()
        damped.diagonal().add_(1e-2)
        expected = -torch.linalg.solve(damped, gradient[columns])
        assert relative(direction[columns], expected) <= 1e-9


def test_full_hessian_of_a_convex_loss() -> None:
    model = network(2, 4, 1)
    operators, density = LOSSES["ritz"]
    closure = lambda: ConvexLoss(operators(model), density)  # noqa: E731
    linearization = linearize(closure, list(model.parameters()))
    product = Hessian().product(linearization, closure)
    H = autograd.hessian(
        lambda t: density(*outputs_of(t, model, operators).unbind(-1)).mean(), flat(model)
    )
    v = torch.randn(len(H), dtype=torch.float64)
    assert relative(product(v), H @ v) <= 1e-11


def test_terms_mix() -> None:
    model = network(2, 5, 1)
    parameters = list(model.parameters())
    energy = lambda: ConvexLoss(value_and_slopes(model), LOSSES["ritz"][1])  # noqa: E731
    closure = lambda: {"energy": energy(), "boundary": model(X[:4])}  # noqa: E731
    linearization = linearize(closure, parameters, check=True)
    expected = float((energy().loss() + 0.5 * model(X[:4]).square().mean()).detach())
    assert linearization.loss == pytest.approx(expected, rel=1e-13)
    assert float(total_loss(closure()).detach()) == pytest.approx(expected, rel=1e-13)


def test_a_concave_density_is_refused() -> None:
    model = network(2, 4, 1)
    with pytest.raises(ValueError, match="not convex"):
        linearize(lambda: ConvexLoss(model(X), lambda u: -u * u), list(model.parameters()))


def test_a_density_that_averages_is_refused() -> None:
    model = network(2, 4, 1)
    with pytest.raises(ValueError, match="one loss per point"):
        linearize(lambda: ConvexLoss(model(X), lambda u: (u * u).mean()), list(model.parameters()))


RECENT = Factors(average=Average(0.5))
# Name: optimizer, and a bound on the relative L2 error, two to three times what it reaches. New
# points every step keep all of them above 0.02; the penalty alone biases by about 0.01.
RITZ: dict[str, tuple[Callable[[Any], Any], float]] = {
    "ENGD": (lambda p: ENGD(p, damping=1e-3, search=Armijo()), 0.1),
    "ENGD averaged": (
        lambda p: ENGD(p, damping=1e-3, gramian=Full(Average(0.5)), search=Armijo()),
        0.1,
    ),
    "ENGD per layer": (lambda p: ENGD(p, damping=1e-3, gramian=PerLayer(), search=Armijo()), 0.1),
    "ENGD diagonal": (lambda p: ENGD(p, damping=1e-3, gramian=Diagonal(), search=Armijo()), 0.95),
    "kernel ENGD": (lambda p: ENGD(p, damping=1e-3, gramian=SampleSpace(), search=Armijo()), 0.1),
    "SPRING": (lambda p: SPRING(p, damping=1e-3, search=Armijo()), 0.15),
    "HessianFree": (lambda p: HessianFree(p), 0.15),
    "KFAC": (lambda p: KFAC(p, damping=1e-3, factors=RECENT, search=Armijo()), 0.1),
    "KFACStar": (lambda p: KFACStar(p, damping=1e-2, factors=Factors(average=Average(0.0))), 0.06),
    "KFACPINN": (lambda p: KFACPINN(p), 0.15),
    "GaussNewton": (lambda p: GaussNewton(p), 0.25),
}


@pytest.mark.parametrize("name", RITZ)
def test_deep_ritz(name: str) -> None:
    """Poisson's equation by its energy: every optimizer comes close to the solution."""
    problem = poisson_ritz()
    generator = torch.Generator().manual_seed(0)
    model = network(2, 12, 1)
    make, bound = RITZ[name]
    optimizer = make(model.parameters())
    for _ in range(50):
        batch = problem.sample(generator, {"energy": 400, "boundary": 100}, torch.float64)
        optimizer.step(batch.residuals(model))
    assert relative_l2(model, problem.solution, points(1000, seed=7)) < bound


def test_ritz_energy_is_least_at_the_solution() -> None:
    """-1/4 2 pi^2 / 2, from many points; perturbations cost energy."""
    problem = poisson_ritz()
    generator = torch.Generator().manual_seed(0)
    batch = problem.sample(generator, {"energy": 200_000, "boundary": 1000}, torch.float64)
    least = float(total_loss(batch.residuals(problem.solution)()))
    assert least == pytest.approx(-(torch.pi**2) / 4, rel=1e-2)
    for factor in (0.9, 1.1):
        u = lambda x, factor=factor: factor * problem.solution(x)  # noqa: E731
        assert float(total_loss(batch.residuals(u)())) > least


def test_steps_of_huber_are_bounded_by_outliers() -> None:
    """Data with one wild value: the median survives, which least squares does not."""
    torch.manual_seed(0)
    x = points(30)
    data = x.sum(1, keepdim=True)
    wild = data.clone()
    wild[0] += 100

    def fit(closure: Callable[[Any], Any]) -> float:
        model = network(2, 4, 1)
        optimizer = ENGD(model.parameters(), damping=1e-6)
        for _ in range(30):
            optimizer.step(lambda: closure(model))
        return float((model(x) - data)[1:].abs().mean().detach())

    robust = fit(lambda u: ConvexLoss(u(x) - wild, lambda r: torch.sqrt(1 + r * r)))
    square = fit(lambda u: u(x) - wild)
    assert robust < 0.1 * square


def test_first_order_terms_move_by_gradient_over_damping() -> None:
    """A loss that is linear has no curvature: the step is -gradient / damping."""
    model = network(2, 4, 1)
    closure = lambda: ConvexLoss(model(X), lambda u: 3 * u)  # noqa: E731
    before = flat(model)
    gradient = linearize(closure, list(model.parameters())).gradient
    ENGD(model.parameters(), damping=2.0, search=FixedStep()).step(closure)
    assert relative(flat(model) - before, -gradient / 2) <= 1e-12
