"""Every optimizer trains on closures of other people's style: nested derivatives, rows that mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from row_by_row import derivative
from torch import Tensor, nn

from kfac_pinn import ENGD, KFAC, KFACPINN, SPRING, GaussNewton, HessianFree
from kfac_pinn.jacobian.objective import Objective

X = torch.rand(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OPTIMIZERS = [KFACPINN, GaussNewton, SPRING, ENGD, KFAC, HessianFree]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def poisson(model: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    du = derivative(model(x), x)
    laplacian = sum(derivative(du[:, i : i + 1], x)[:, i : i + 1] for i in (0, 1))
    return laplacian + 2 * X[:, :1].sin() * X[:, 1:].cos()  # type: ignore[no-any-return]


def nested(model: nn.Module) -> Any:
    return poisson(model), model(X + 1) - 1


def scalar(model: nn.Module) -> Any:
    loss = poisson(model).square().mean() + 10 * F.mse_loss(model(X + 1), X[:, :1])
    loss.backward()
    return loss.detach()


def mixed(model: nn.Module) -> Any:
    """Finite differences, an integral condition, and a fixed matrix times the values."""
    u = model(X)
    return u[1:] - u[:-1] - 0.1, (u.mean() - 1).reshape(1), torch.ones(4, 30).double() @ u - 1


def normalised(model: nn.Module) -> Any:
    u = model(X)
    return (u - u.mean()) / (u.std() + 1) - (X[:, :1] - X[:, :1].mean())


CLOSURES: dict[str, Callable[[nn.Module], Any]] = {
    "nested": nested,
    "scalar": scalar,
    "mixed": mixed,
    "normalised": normalised,
}


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", CLOSURES)
def test_the_loss_decreases(name: str, kind: Any) -> None:
    model = network().double()
    optimizer = kind(model.parameters())
    losses = [float(optimizer.step(lambda: CLOSURES[name](model))) for _ in range(8)]
    assert losses[-1] < (0.5 if kind in (KFACPINN, GaussNewton) else 1.0) * losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_a_model_with_batch_norm(kind: Any) -> None:
    model = network()
    model.insert(1, nn.BatchNorm1d(8))
    model = model.double()
    optimizer = kind(model.parameters())
    losses = [float(optimizer.step(lambda: model(X) - X[:, :1])) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_products_after_the_parameters_have_moved() -> None:
    """They are those of the point where the closure was linearised."""
    from kfac_pinn import linearize

    model = network().double()
    parameters = list(model.parameters())
    found = linearize(lambda: normalised(model), parameters)
    v = torch.rand(found.size, dtype=torch.float64)
    product, pulled = found @ v, found.vjp(found.residual)
    objective = Objective(lambda: normalised(model), parameters)
    objective(0.1 * v)
    torch.testing.assert_close(found @ v, product)
    torch.testing.assert_close(found.vjp(found.residual), pulled)
    moved = nn.utils.parameters_to_vector(parameters)
    torch.testing.assert_close(moved, objective.origin + 0.1 * v)
