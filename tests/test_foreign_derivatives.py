"""Derivatives and models of other people's kinds: the Jacobian of each closure, row by row.

Forward-mode and functional derivatives, batched gradients, finite differences, spectra, ensembles,
models that return several things. The truth is one backward pass a row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from kfac_pinn import KFACPINN, Affordable, linearize

Made: TypeAlias = tuple[nn.Module, Callable[[], Tensor]]

X = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
SOURCE = math.pi**2 * torch.sin(math.pi * X)


def network(inputs: int = 1, outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def derivative(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]


def nested_jvp() -> Made:
    model, ones = network(), torch.ones_like(X)

    def residual() -> Tensor:
        first = lambda x: jvp(model, (x,), (ones,))[1]  # noqa: E731
        return jvp(first, (X,), (ones,))[1] + SOURCE

    return model, residual


def functional_jvp() -> Made:
    model, ones = network(), torch.ones_like(X)
    of = torch.autograd.functional.jvp

    def residual() -> Tensor:
        first = lambda x: of(model, x, ones, create_graph=True)[1]  # noqa: E731
        return of(first, X, ones, create_graph=True)[1] + SOURCE

    return model, residual


def dual_numbers() -> Made:
    model = network()

    def residual() -> Tensor:
        with forward_ad.dual_level():
            u = model(forward_ad.make_dual(X, torch.ones_like(X)))
            return forward_ad.unpack_dual(u).tangent - torch.cos(X)

    return model, residual


def batched_gradients() -> Made:
    model = network(2, 3)
    points = torch.rand(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def residual() -> Tensor:
        x = points.clone().requires_grad_()
        one = torch.eye(3, dtype=torch.float64)[:, None].expand(3, 10, 3)
        (J,) = torch.autograd.grad(model(x), x, one, is_grads_batched=True, create_graph=True)
        return J[0, :, 0] + J[1, :, 1] * J[2, :, 0]

    return model, residual


def differences() -> Made:
    model = network()
    return model, lambda: torch.gradient(model(X)[:, 0], spacing=1 / 11)[0] - torch.cos(X[:, 0])


def spectrum() -> Made:
    model, angle = network(2), 2 * math.pi * torch.arange(12).double() / 12
    circle = torch.stack([angle.sin(), angle.cos()], 1)
    k = torch.fft.fftfreq(12, 1 / 12, dtype=torch.float64)

    def residual() -> Tensor:
        u = model(circle)[:, 0]
        return torch.fft.ifft(-(k**2) * torch.fft.fft(u)).real - u + angle.sin()

    return model, residual


def stencil() -> Made:
    model = network(2)
    grid = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 5, dtype=torch.float64)])
    laplace = torch.tensor([[[[0, 1, 0], [1, -4, 1], [0, 1, 0]]]]).double()
    return model, lambda: F.conv2d(model(grid).reshape(1, 1, 5, 5), laplace).reshape(-1) + 1


class Pair(nn.Module):
    """A network of two heads, as a tuple or a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(1, 6), nn.Tanh())
        self.heads = nn.ModuleDict({"u": nn.Linear(6, 1), "q": nn.Linear(6, 1)})
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(x)
        return {name: head(hidden) for name, head in self.heads.items()}


def several_outputs() -> Made:
    model = Pair()

    def residual() -> Tensor:
        x = X.clone().requires_grad_()
        u, q = model(x).values()
        return torch.cat([derivative(u, x) - q, derivative(q, x) + SOURCE])

    return model, residual


def recomputed() -> Made:
    model = network()

    def residual() -> Tensor:
        x = X.clone().requires_grad_()
        u = checkpoint(model, x, use_reentrant=False)
        return derivative(derivative(u, x), x) + SOURCE

    return model, residual


def ensemble() -> Made:
    models = [network() for _ in range(3)]
    stacked, _ = stack_module_state(models)
    trained = nn.ParameterList(stacked.values())
    shell = copy.deepcopy(models[0]).to("meta")

    def residual() -> Tensor:
        states = dict(zip(stacked, trained, strict=True))
        found = vmap(lambda state, x: functional_call(shell, state, (x,)), (0, None))(states, X)
        return (found - torch.sin(X)).reshape(-1)

    return trained, residual


KINDS = [nested_jvp, functional_jvp, dual_numbers, batched_gradients, differences, spectrum]
KINDS += [stencil, several_outputs, recomputed, ensemble]


@pytest.mark.filterwarnings("ignore:the points of", "ignore:.*torch.jit", "ignore:.*non-leaf")
@pytest.mark.parametrize("make", KINDS)
def test_rows_are_those_of_autograd(make: Callable[[], Made]) -> None:
    model, residual = make()
    parameters: list[Any] = list(model.parameters())
    r = residual().reshape(-1)
    rows = [
        torch.autograd.grad(each, parameters, retain_graph=True, materialize_grads=True)
        for each in r
    ]
    J = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    found = linearize(lambda: residual().square().sum() / 2, parameters)
    torch.testing.assert_close(found.gradient, J.T @ r, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(found.gramian(), J.T @ J, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:the points of", "ignore:.*torch.jit", "ignore:.*non-leaf")
@pytest.mark.filterwarnings("ignore:KFACPINN fits")
@pytest.mark.parametrize("exact", [Affordable(), Affordable(0)])
@pytest.mark.parametrize("make", [nested_jvp, dual_numbers, batched_gradients, several_outputs])
def test_they_train(make: Callable[[], Made], exact: Affordable) -> None:
    model, residual = make()
    optimizer = KFACPINN(model.parameters(), exact=exact)
    first = float(residual().detach().square().mean())
    for _ in range(12):
        optimizer.step(lambda: residual().square().mean())
    assert float(residual().detach().square().mean()) < 0.5 * first
