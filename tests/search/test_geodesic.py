"""Geodesic acceleration against exact second derivatives, and in a curved valley."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import flat, points, relative, small_case
from torch import Tensor, nn
from torch.autograd import functional as autograd

from kfac_pinn import ConvexLoss, LevenbergMarquardt, laplacian, linearize
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.geodesic import Geodesic, second_derivative


def exact_second_derivative(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """d^2/dt^2 of the residual at theta + t v by nested autograd."""
    names = [name for name, _ in model.named_parameters()]
    parts = v.split([p.numel() for p in model.parameters()])
    steps = [part.view_as(p) for part, p in zip(parts, model.parameters(), strict=True)]

    def residual(t: Tensor) -> Tensor:
        moved = [p.detach() + t * s for p, s in zip(model.parameters(), steps, strict=True)]
        values = dict(zip(names, moved, strict=True))
        u = lambda x: torch.func.functional_call(model, values, (x,))  # noqa: E731
        return laplacian(u, x)[:, 0] / len(x) ** 0.5

    first = lambda t: autograd.jacobian(residual, t, create_graph=True)  # noqa: E731
    return autograd.jacobian(first, torch.zeros((), dtype=v.dtype))


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_second_derivative(seed: int) -> None:
    model, _ = small_case(seed=seed)
    x = points(15, seed=seed)
    closure = lambda: laplacian(model, x)  # noqa: E731
    linearization = linearize(closure, list(model.parameters()))
    before, v = flat(model), torch.randn(linearization.size, dtype=torch.float64)
    objective = Objective(closure, list(model.parameters()))
    found = second_derivative(objective, linearization, v)
    assert relative(found, exact_second_derivative(model, x, v)) <= 1e-3
    assert torch.equal(flat(model), before)
    assert objective.evaluations == 1


def test_finite_difference_is_of_first_order() -> None:
    model, _ = small_case()
    x = points(15)
    closure = lambda: laplacian(model, x)  # noqa: E731
    linearization = linearize(closure, list(model.parameters()))
    v = torch.randn(linearization.size, dtype=torch.float64)
    objective = Objective(closure, list(model.parameters()))
    expected = exact_second_derivative(model, x, v)
    errors = [
        relative(second_derivative(objective, linearization, v, h), expected)
        for h in (1e-2, 1e-3, 1e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_step_is_the_second_order_path(rates: tuple[float, float]) -> None:
    """theta + t v + t^2/2 a, with v and a from dense solves; t is the lr of each group."""
    model, residuals = small_case(n=20)
    linearization = linearize(residuals, list(model.parameters()))
    J, identity = linearization.rows(), torch.eye(linearization.size, dtype=torch.float64)
    damped = J.mT @ J + 10.0 * identity
    fraction = 10.0 * linearization.size / float(J.square().sum())  # of the mean diagonal
    v = -torch.linalg.solve(damped, linearization.gradient)
    objective = Objective(residuals, list(model.parameters()))
    a = -torch.linalg.solve(damped, J.mT @ second_derivative(objective, linearization, v))
    before = flat(model)
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
    bend = Geodesic(alpha=1e9)
    optimizer = LevenbergMarquardt(groups, damping=fraction, trials=1, acceleration=bend)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step(residuals)
    t = optimizer.expand("lr")
    assert relative(flat(model) - before, t * v + 0.5 * t * t * a) <= 1e-9
    strength = pytest.approx(float(2 * a.norm() / v.norm()), rel=1e-6)
    assert optimizer.stats["acceleration"] == strength
    assert optimizer.stats["evaluations"] == 3  # one to bend, one to try, one to see it repeat


def test_strong_acceleration_is_not_followed() -> None:
    ends = []
    for acceleration in (Geodesic(alpha=0.0), None):
        model, residuals = small_case(n=20)
        optimizer = LevenbergMarquardt(model.parameters(), damping=0.3, acceleration=acceleration)
        optimizer.step(residuals)
        ends.append(flat(model))
    assert torch.equal(*ends)


class Valley(nn.Module):
    """Rosenbrock's valley as residuals (1 - x, 10 (y - x^2)) of two scalar parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(-1.2, dtype=torch.float64))
        self.y = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def residuals(self) -> tuple[Tensor, Tensor]:
        return (1 - self.x).reshape(1), 10 * (self.y - self.x**2).reshape(1)


def test_a_curved_valley_is_followed() -> None:
    """J is square: with a/2, the step lands where the curved residual vanishes, in one step."""
    losses = []
    for acceleration in (None, Geodesic(alpha=10.0)):
        valley = Valley()
        optimizer = LevenbergMarquardt(
            valley.parameters(), damping=1e-14, acceleration=acceleration
        )
        optimizer.step(valley.residuals)
        losses.append(float(sum(r.square().sum() for r in valley.residuals()).detach()))
    assert losses[1] < 1e-6 < 1 < losses[0]


def test_convex_losses_are_refused() -> None:
    model, _ = small_case()
    x = points(9)
    optimizer = LevenbergMarquardt(model.parameters())
    before = flat(model)

    def energy() -> ConvexLoss:
        return ConvexLoss(model(x), lambda u: u**4, "energy")

    with pytest.raises(ValueError, match=r"energy has a convex loss.*acceleration=None"):
        optimizer.step(energy)
    assert torch.equal(flat(model), before)
    straight = LevenbergMarquardt(model.parameters(), acceleration=None)
    first = float(straight.step(energy))
    assert float(straight.step(energy)) < first
