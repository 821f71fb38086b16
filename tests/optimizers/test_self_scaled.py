"""Self-scaled Broyden: quadratics in P steps, losses without residuals, what H is after a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import scipy.optimize
import torch
from small_problems import flat, network, points, small_case
from torch import Tensor, nn

from kfac_pinn import (
    BFGS,
    SSBFGS,
    Armijo,
    Batches,
    OneEvaluation,
    SelfScaledBroyden,
    SSBroyden,
    taylor,
    total_loss,
)
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.jacobian.slopes import slope
from kfac_pinn.search.step import Outcome, Step

MEMBERS = [BFGS(), SSBFGS(), SSBroyden()]
members = pytest.mark.parametrize("update", MEMBERS, ids=lambda u: type(u).__name__)


@dataclass(frozen=True, eq=False)
class ExactSearch:
    """The minimum of 1/2 p.A p - b.p along the direction."""

    A: Tensor

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        slope = float(linearization.gradient @ direction)
        length = -slope / float(direction @ self.A @ direction)
        return Step(length * direction, objective(length * direction), length)


class Quadratic:
    """1/2 p.A p - b.p with the eigenvalues of A over two decades: a loss without residuals."""

    def __init__(self, n: int = 8) -> None:
        torch.manual_seed(3)
        Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
        self.A = Q @ torch.diag(torch.logspace(-1, 1, n, dtype=torch.float64)) @ Q.mT
        self.b = torch.randn(n, dtype=torch.float64)
        self.p = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    def loss(self) -> Tensor:
        return self.p @ self.A @ self.p / 2 - self.b @ self.p


@members
def test_a_quadratic_is_solved_in_as_many_steps_as_parameters(update: Any) -> None:
    """With exact searches the whole family makes the directions of conjugate gradients."""
    problem = Quadratic()
    optimizer = SelfScaledBroyden([problem.p], update=update, search=ExactSearch(problem.A))
    for _ in range(len(problem.b)):
        optimizer.step(problem.loss)
    gradient = problem.A @ problem.p.detach() - problem.b
    assert gradient.norm() < 1e-7 * problem.b.norm()


def test_bfgs_ends_with_the_inverse_of_the_quadratics_matrix() -> None:
    problem = Quadratic()
    optimizer = SelfScaledBroyden([problem.p], update=BFGS(), search=ExactSearch(problem.A))
    for _ in range(len(problem.b)):
        optimizer.step(problem.loss)
    product = optimizer.memory.matrix @ problem.A
    torch.testing.assert_close(product, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6)


def rosenbrock(p: Tensor) -> Tensor:
    return (100 * (p[1:] - p[:-1] ** 2) ** 2 + (1 - p[:-1]) ** 2).sum() + 0.1 * torch.cosh(p).sum()


@members
def test_a_valley_that_is_no_sum_of_squares_is_followed_as_far_as_scipys_bfgs(update: Any) -> None:
    p = nn.Parameter(torch.full((6,), -0.7, dtype=torch.float64))
    optimizer = SelfScaledBroyden([p], update=update)

    def both(x: Any) -> tuple[float, Any]:
        q = torch.tensor(x, requires_grad=True)
        loss = rosenbrock(q)
        return float(loss.detach()), torch.autograd.grad(loss, q)[0].numpy()

    theirs = scipy.optimize.minimize(both, p.detach().numpy().copy(), jac=True, method="BFGS")
    for _ in range(2 * theirs.nit):
        optimizer.step(lambda: rosenbrock(p))
    assert float(rosenbrock(p)) == pytest.approx(theirs.fun, abs=1e-9)


@members
@pytest.mark.parametrize("rates", [(1.0, 1.0), (0.5, 0.5), (1.0, 0.2), (1.0, 0.0)])
def test_h_obeys_the_secant_equation_of_the_last_step(
    update: Any, rates: tuple[float, float]
) -> None:
    model, closure = small_case()
    first, *rest = model.parameters()
    groups = [{"params": [first], "lr": 1.0}, {"params": rest, "lr": 1.0}]
    optimizer = SelfScaledBroyden(groups, update=update)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for _ in range(6):
        theta, before = flat(model), gradient_of(closure, model)
        optimizer.step(closure)
        s, y = flat(model) - theta, gradient_of(closure, model) - before
        H = optimizer.memory.matrix
        assert (H @ y - s).norm() <= 1e-8 * s.norm()
        assert torch.linalg.eigvalsh(H).min() > 0
        assert y @ s > 0


def gradient_of(closure: Callable[[], Any], model: nn.Module) -> Tensor:
    loss = total_loss(closure())
    parts = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def test_the_curvature_along_a_step_is_that_of_the_inverse() -> None:
    """s.B s by a product where lr is common, by Cholesky where it is not: both are dense solves."""
    model, closure = small_case()
    first, *rest = model.parameters()
    optimizer = SelfScaledBroyden([{"params": [first]}, {"params": rest}])
    for _ in range(4):
        optimizer.step(closure)
    g, H = gradient_of(closure, model), optimizer.memory.matrix
    for rates in ((0.7, 0.7), (0.7, 0.3)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        s = -0.4 * optimizer.expand("lr") * (H @ g)
        expected = float(s @ torch.linalg.solve(H, s))
        assert optimizer._curvature(g, s) == pytest.approx(expected, rel=1e-6)


# Losses without residuals


def ritz(model: nn.Module, x: Tensor) -> Tensor:
    """The energy of -u'' = 1 with a penalty, as deep Ritz codes write it: no sum of squares."""
    u, du = taylor(model, x, order=1)
    return (0.5 * sum(p.square() for p in du) - u).mean() + 50 * model(x[:2]).square().mean()


@pytest.mark.parametrize("sent_backwards", [True, False])
def test_an_energy_is_minimised(sent_backwards: bool) -> None:
    model, x = network(1, 8, 1), torch.linspace(0, 1, 41, dtype=torch.float64)[:, None]
    x = torch.cat([x[[0, -1]], x[1:-1]])
    optimizer = SelfScaledBroyden(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ritz(model, x)
        if sent_backwards:
            loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(150)]
    assert losses == sorted(losses, reverse=True)
    # The minimum over all functions: u = x (1 - x) / 2 + c, with the penalty's c
    assert losses[-1] == pytest.approx(-1 / 24, rel=0.1)
    assert optimizer.stats["loss"] < 0


def test_slope_is_loss_and_gradient_and_has_no_rows() -> None:
    model, closure = small_case()
    found = slope(closure, list(model.parameters()))
    assert found.loss == pytest.approx(float(total_loss(closure()).detach()), rel=1e-14)
    torch.testing.assert_close(found.gradient, gradient_of(closure, model))
    assert len(found.residual) == 0 and (found @ found.gradient).shape == (0,)
    assert not found.vjp(found.residual).any()
    ridged = found.with_ridge(torch.ones_like(found.gradient))
    torch.testing.assert_close(ridged.gradient, found.gradient + flat(model))


def test_the_slope_at_a_trial_has_the_ridge() -> None:
    model, closure = small_case()
    ridge, p = torch.full_like(flat(model), 0.3), list(model.parameters())
    theta, step = flat(model), 0.1 * torch.ones_like(flat(model))
    objective = Objective(closure, p, ridge=ridge)
    found = objective.slope(step)
    assert found.loss == pytest.approx(objective(step), rel=1e-13)
    expected = gradient_of(closure, model) + 0.3 * (theta + step)
    torch.testing.assert_close(found.gradient, expected)


def test_batches_are_one_closure() -> None:
    model, x = network(2, 5, 1), points(14)
    other = network(2, 5, 1)
    closure = lambda net, part: lambda: net(part) - part.prod(1, keepdim=True)  # noqa: E731
    optimizer, whole = SelfScaledBroyden(model.parameters()), SelfScaledBroyden(other.parameters())
    for _ in range(5):
        optimizer.step(Batches([closure(model, x[:4]), closure(model, x[4:])]))
        whole.step(closure(other, x))
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [
        (lambda model: model(points(3)).mean().detach(), RuntimeError, "carries no gradient"),
        (lambda model: 0 * nn.Parameter(torch.ones(())), RuntimeError, "depends on none"),
        (lambda model: model(points(3)).mean() / 0, FloatingPointError, "loss is|not finite"),
        (lambda model: "0.5", TypeError, "str"),
        (lambda model: None, TypeError, "returned nothing"),
    ],
)
def test_a_loss_that_cannot_be_differentiated_is_named(loss: Any, error: Any, says: str) -> None:
    model = network(2, 4, 1)
    optimizer, theta = SelfScaledBroyden(model.parameters()), flat(model)
    with pytest.raises(error, match=says):
        optimizer.step(lambda: loss(model))
    assert torch.equal(flat(model), theta) and optimizer.memory.matrix is None


# Searches, and what happens where they fail


@pytest.mark.parametrize("search", [Armijo(), OneEvaluation()], ids=lambda s: type(s).__name__)
def test_other_searches(search: Any) -> None:
    model, closure = small_case()
    optimizer = SelfScaledBroyden(model.parameters(), search=search)
    losses = [float(optimizer.step(closure)) for _ in range(60)]
    assert min(losses) < 0.05 * losses[0]


def test_an_inverse_that_finds_no_descent_is_forgotten_within_the_step() -> None:
    model, closure = small_case()
    optimizer = SelfScaledBroyden(model.parameters())
    for _ in range(3):
        optimizer.step(closure)
    optimizer.memory = type(optimizer.memory)(-optimizer.memory.matrix)
    before = float(optimizer.step(closure))
    assert optimizer.stats["new_loss"] < before and optimizer.stats["reason"] == ""
    assert torch.linalg.eigvalsh(optimizer.memory.matrix).min() > 0


def test_an_inverse_that_finds_no_descent_unseen_is_forgotten() -> None:
    model, closure = small_case()
    optimizer = SelfScaledBroyden(model.parameters(), search=OneEvaluation())
    optimizer.memory = type(optimizer.memory)(-torch.eye(len(flat(model)), dtype=torch.float64))
    optimizer.step(closure)
    assert optimizer.stats["reason"] == Outcome.ASCENT.value
    assert optimizer.memory.matrix is None
    optimizer.step(closure)
    assert optimizer.stats["reason"] == ""


def test_unseen_steps_teach_at_the_same_points_only() -> None:
    model = network(2, 5, 1)
    optimizer = SelfScaledBroyden(model.parameters(), search=OneEvaluation())
    for seed in range(6):
        optimizer.step(lambda seed=seed: model(points(20, seed=seed)) - 1)
        assert optimizer.memory.matrix is None
    for _ in range(4):
        optimizer.step(lambda: model(points(20)) - 1)
    assert optimizer.memory.matrix is not None


def test_points_may_be_new_in_every_step() -> None:
    torch.manual_seed(0)
    model = network(2, 8, 1)
    optimizer = SelfScaledBroyden(model.parameters())
    for _ in range(80):
        x = torch.rand(60, 2, dtype=torch.float64)
        optimizer.step(lambda x=x: model(x) - x.prod(1, keepdim=True))
        assert torch.linalg.eigvalsh(optimizer.memory.matrix).min() > 0
    x = points(200)
    assert float((model(x) - x.prod(1, keepdim=True)).square().mean().sqrt()) < 0.05


def test_leaves_that_others_train_get_their_gradient_once() -> None:
    """Adaptive weights of terms, raised by another optimizer: trials add nothing to it."""
    model, x = network(2, 5, 1), points(12)
    weight = nn.Parameter(torch.ones(12, 1, dtype=torch.float64))
    optimizer = SelfScaledBroyden(model.parameters())

    def closure() -> Tensor:
        weight.grad = None
        loss = (weight * (model(x) - x[:, :1]).square()).mean()
        loss.backward()
        return loss

    for _ in range(3):
        loss = (weight * (model(x) - x[:, :1]).square()).mean()
        (expected,) = torch.autograd.grad(loss, weight)
        optimizer.step(closure)
        torch.testing.assert_close(weight.grad, expected)


def test_settings_are_looked_at() -> None:
    p = [nn.Parameter(torch.ones(2))]
    with pytest.raises(TypeError, match=r"SelfScaledBroyden: update .*SSBroyden\(\), found 'BFGS'"):
        SelfScaledBroyden(p, update="BFGS")
    with pytest.raises(TypeError, match=r"update is the class BFGS: write SSBroyden\(\)"):
        SelfScaledBroyden(p, update=BFGS)
    with pytest.raises(TypeError, match="has no damping"):
        SelfScaledBroyden(p, damping=1.0)
