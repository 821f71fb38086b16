"""Closures with tensors of other classes: subclasses, and objects that only pass as tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from row_by_row import assert_exact, derivative
from torch import Tensor, nn

from kfac_pinn import KFACPINN, GaussNewton, OneEvaluation


class Labelled(torch.Tensor):
    """Tensors with names for their columns; what autograd makes of one has none, and then fails."""

    labels: list[str]

    def named(self, labels: list[str]) -> Labelled:
        self.labels = labels
        return self

    def clone(self, *args: Any, **options: Any) -> Labelled:
        return super().clone(*args, **options).named(self.labels)

    def detach(self) -> Labelled:
        return super().detach().named(self.labels)

    def to(self, *args: Any, **options: Any) -> Labelled:
        return super().to(*args, **options).named(self.labels)


class Points:
    """Points of a space: no tensor, but torch functions take it for one."""

    def __init__(self, coordinates: Tensor) -> None:
        self.coordinates = coordinates

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [a.coordinates if isinstance(a, cls) else a for a in args]
        return func(*plain, **(kwargs or {}))


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def residual(model: nn.Module, x: Tensor, wrapped: Any) -> Tensor:
    """u_xx + 1 of a model that gets its points in other people's wrapping."""
    return derivative(derivative(model(wrapped), x)[:, :1], x)[:, :1] + 1


def labelled(model: nn.Module) -> Tensor:
    x = torch.linspace(0, 1, 24).double().reshape(12, 2).as_subclass(Labelled)
    x = x.requires_grad_().named(["x", "t"])
    return residual(model, x, x)


def in_a_space(model: nn.Module) -> Tensor:
    x = torch.linspace(0, 1, 24).double().reshape(12, 2).requires_grad_()
    return residual(model, x, Points(x))


def mean_square(r: Tensor) -> Tensor:
    zeros = torch.zeros_like(r)
    return nn.functional.mse_loss(r, zeros, reduction="none").mean().as_subclass(Tensor)


@pytest.mark.parametrize("read", [lambda r: r, mean_square], ids=["residuals", "loss"])
@pytest.mark.parametrize("foreign", [labelled, in_a_space])
def test_the_jacobian_is_autograd_s(
    foreign: Callable[[nn.Module], Tensor], read: Callable[[Tensor], Tensor], model: nn.Module
) -> None:
    assert_exact(lambda: read(foreign(model)), list(model.parameters()))


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton, partial(KFACPINN, search=OneEvaluation())])
@pytest.mark.parametrize("foreign", [labelled, in_a_space])
def test_steps_are_those_of_plain_tensors(
    foreign: Callable[[nn.Module], Tensor], kind: Any, model: nn.Module
) -> None:
    start = {k: v.clone() for k, v in model.state_dict().items()}

    def train(r: Callable[[nn.Module], Tensor]) -> list[Tensor]:
        model.load_state_dict(start)
        optimizer = kind(model.parameters())

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = mean_square(r(model))
            loss.backward()
            return loss.detach()

        for _ in range(3):
            optimizer.step(closure)
        return [p.detach().clone() for p in model.parameters()]

    plain = torch.linspace(0, 1, 24).double().reshape(12, 2).requires_grad_()
    expected = train(lambda m: residual(m, plain, plain))
    torch.testing.assert_close(train(foreign), expected)
