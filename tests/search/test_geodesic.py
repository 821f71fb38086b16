"""Geodesic acceleration against exact second derivatives, and in a curved valley."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import flat, points, relative, small_case
from torch import Tensor, nn
from torch.autograd import functional as autograd

from kfac_pinn import ENGD, ConvexLoss, laplacian, linearize
from kfac_pinn.search.geodesic import Geodesic, second_derivative
from kfac_pinn.search.line import FixedStep, GridSearch, Objective


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


def test_step_is_the_second_order_path() -> None:
    """theta + v + a/2, with v and a from dense solves."""
    model, residuals = small_case(n=20)
    linearization = linearize(residuals, list(model.parameters()))
    J, identity = linearization.rows(), torch.eye(linearization.size, dtype=torch.float64)
    damped = J.mT @ J + 10.0 * identity
    v = -torch.linalg.solve(damped, linearization.gradient)
    objective = Objective(residuals, list(model.parameters()))
    a = -torch.linalg.solve(damped, J.mT @ second_derivative(objective, linearization, v))
    before = flat(model)
    optimizer = ENGD(
        model.parameters(), damping=10.0, search=FixedStep(), acceleration=Geodesic(alpha=1e9)
    )
    optimizer.step(residuals)
    assert relative(flat(model) - before, v + 0.5 * a) <= 1e-10
    assert optimizer.stats["acceleration"] == pytest.approx(float(2 * a.norm() / v.norm()))
    assert optimizer.stats["evaluations"] == 1


def test_strong_acceleration_is_not_followed() -> None:
    model, residuals = small_case(n=20)
    before = flat(model)
    optimizer = ENGD(
        model.parameters(), damping=10.0, search=FixedStep(), acceleration=Geodesic(alpha=0.0)
    )
    optimizer.step(residuals)
    accelerated = flat(model)
    nn.utils.vector_to_parameters(before.clone(), model.parameters())
    ENGD(model.parameters(), damping=10.0, search=FixedStep()).step(residuals)
    assert torch.equal(flat(model), accelerated)


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
        optimizer = ENGD(
            valley.parameters(), damping=1e-12, search=FixedStep(), acceleration=acceleration
        )
        optimizer.step(valley.residuals)
        losses.append(float(sum(r.square().sum() for r in valley.residuals()).detach()))
    assert losses[1] < 1e-6 < 1 < losses[0]


def test_curved_grid_search_decreases_the_loss() -> None:
    model, residuals = small_case(n=20, hidden=8)
    optimizer = ENGD(model.parameters(), damping=1e-6, search=GridSearch(), acceleration=Geodesic())
    losses = [float(optimizer.step(residuals)) for _ in range(10)]
    assert losses == sorted(losses, reverse=True)
    assert float(optimizer.stats["new_loss"]) == pytest.approx(
        float(optimizer.step(residuals)), rel=1e-12
    )


def test_convex_losses_are_refused() -> None:
    model, _ = small_case()
    x = points(9)
    optimizer = ENGD(model.parameters(), damping=1e-3, acceleration=Geodesic())
    before = flat(model)
    with pytest.raises(ValueError, match="energy has a convex loss"):
        optimizer.step(lambda: ConvexLoss(model(x), lambda u: u**4, "energy"))
    assert torch.equal(flat(model), before)
