"""Rows that mix points: exact products and rows by autograd, and one warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from row_by_row import assert_exact, derivative
from torch import Tensor, nn

from kfac_pinn import (
    KFACPINN,
    LinearMap,
    gauss_legendre,
    laplacian,
    linearize,
    periodic_trapezoid,
    taylor,
)
from kfac_pinn.jacobian.matrix_free import AutogradJacobian
from kfac_pinn.jacobian.sources import REMEMBERED

X = torch.rand(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
A = torch.rand(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the points of")
        yield


class Nets(nn.Module):
    """Some small networks."""

    def __init__(self) -> None:
        super().__init__()
        self.u = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        self.branch = nn.Sequential(nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 4))
        self.trunk = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4))
        self.normed = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.axis = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 3))


def nested(n: Nets) -> Tensor:
    x = X.clone().requires_grad_()
    u = n.u(x)
    return derivative(derivative(u, x)[:, :1], x)[:, 1:] + u


def attention(n: Nets) -> Tensor:
    h = n.trunk(X)[None]
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return n.attention(h, h, h, need_weights=False)[0].sum(-1).reshape(-1)  # type: ignore[no-any-return]


def separable(n: Nets) -> Tensor:
    """A product of networks of one coordinate each, on a grid."""
    first, second = n.axis(X[:, :1]), n.axis(X[:5, 1:])
    return torch.einsum("ir,jr->ij", first, second).reshape(-1)


MIXING: dict[str, Callable[[Nets], Any]] = {
    "minus a mean": lambda n: n.u(X) - n.u(X).mean(),
    "minus a mean, nested": lambda n: nested(n) - nested(n).mean(),
    "a mean": lambda n: (n.u(X).mean() - 1).reshape(1),
    "a mean of derivatives": lambda n: (laplacian(n.u, X).mean() - 1).reshape(1),
    "differences": lambda n: n.u(X)[1:] - n.u(X)[:-1],
    "differences of one pass": lambda n: torch.diff(n.u(X)[:, 0]),
    "a matrix": lambda n: A @ n.u(X),
    "a sparse matrix": lambda n: LinearMap(A.to_sparse())(n.u(X)),
    "a matrix, nested": lambda n: A @ nested(n),
    "of jets": lambda n: A @ laplacian(n.u, X),
    "a shift": lambda n: n.u(X) - n.u(X).roll(1, 0),
    "a Fourier transform": lambda n: torch.fft.rfft(n.u(X)[:, 0]).abs(),
    "a running sum": lambda n: n.u(X)[:, 0].cumsum(0),
    "sorted": lambda n: n.u(X)[:, 0].sort().values,
    "a softmax": lambda n: torch.softmax(n.u(X)[:, 0], 0) - 0.1,
    "a norm": lambda n: n.u(X)[:, 0] / n.u(X)[:, 0].norm(),
    "a convolution over points": lambda n: torch.nn.functional.conv1d(
        n.u(X).T[None], A[:1, :3][None]
    ).reshape(-1),
    "BatchNorm": lambda n: n.normed(X),
    "attention over points": attention,
    "DeepONet": lambda n: (n.branch(A) @ n.trunk(X).T).reshape(-1),
    "DeepONet, nested": lambda n: deeponet(n),
    "a grid of products": separable,
    "two terms of one pass": lambda n: n.u(torch.cat([X, X + 1])).split([12, 8]),
    "Gram matrix": lambda n: (n.trunk(X).T @ n.trunk(X) - torch.eye(4).double()).reshape(-1),
    "a determinant": lambda n: torch.linalg.det(n.trunk(X)[:4]).reshape(1),
}


def deeponet(n: Nets) -> Tensor:
    x = X.clone().requires_grad_()
    u = n.branch(A) @ n.trunk(x).T
    return derivative(u, x).sum(1)


@pytest.mark.parametrize("name", MIXING)
def test_every_kind_is_exact(name: str) -> None:
    nets = Nets().double()
    used = [
        p
        for p, g in zip(
            nets.parameters(),
            torch.autograd.grad(
                sum(r.sum() for r in as_tuple(MIXING[name](nets))),
                list(nets.parameters()),
                allow_unused=True,
            ),
            strict=True,
        )
        if g is not None
    ]
    assert_exact(lambda: MIXING[name](nets), used)


def as_tuple(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def test_what_is_not_mixed_stays_in_factors() -> None:
    """Layers after a BatchNorm, and terms without any mean."""
    nets = Nets().double()
    found = linearize(lambda: (nets.normed(X), nets.u(X)), list(nets.parameters()))
    assert found.terms[1].rest is None
    assert [block.weight is nets.normed[3].weight for block in found.terms[0].blocks] == [True]  # type: ignore[union-attr]


def test_one_warning() -> None:
    nets = Nets().double()
    REMEMBERED.clear()
    optimizer = KFACPINN(nets.u.parameters())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.step(lambda: {"zero mean": nets.u(X) - nets.u(X).mean()})
            optimizer.step(lambda: {"other": nets.u(X)[1:] - nets.u(X)[:-1]})
    messages = [str(w.message) for w in said]
    assert sum("points of zero mean" in m or "residual 'zero mean'" in m for m in messages) == 1
    assert sum("backward pass" in m for m in messages) == 1


class Once(torch.autograd.Function):
    """A function without a second derivative, and that vmap does not know."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.cumsum(0).sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (g * x.cumsum(0).cos()).flip(0).cumsum(0).flip(0)


def test_functions_that_are_differentiated_once() -> None:
    nets = Nets().double()
    assert_exact(lambda: Once.apply(nets.u(X)), list(nets.u.parameters()))


def test_products_do_not_form_rows() -> None:
    nets = Nets().double()
    found = linearize(lambda: nested(nets) - nested(nets).mean(), list(nets.u.parameters()))
    rest = found.terms[0].rest
    assert isinstance(rest, AutogradJacobian)
    found.vjp(found @ torch.ones(found.size, dtype=torch.float64))
    assert rest._known is None
    found.rows()
    assert rest._known is not None


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_gauss_legendre_is_exact_for_polynomials(count: int) -> None:
    rule = gauss_legendre(
        count, torch.tensor([0.0, -1.0]).double(), torch.tensor([1.0, 3.0]).double()
    )
    for k in range(2 * count):
        exact = torch.tensor([1.0, 3.0 ** (k + 1) - (-1.0) ** (k + 1)]) / (k + 1)
        torch.testing.assert_close(rule(lambda x, k=k: x**k), exact.double())  # type: ignore[misc]


def test_quadratures() -> None:
    rule = periodic_trapezoid(16, 2 * torch.pi, like=X)
    torch.testing.assert_close(rule(lambda a: a.sin() ** 2), torch.tensor([torch.pi]).double())
    kernel = torch.rand(3, 16, dtype=torch.float64)
    torch.testing.assert_close(
        rule.times(kernel)(lambda a: a.cos()),
        kernel @ rule.points[0, :, 0].cos() * (2 * torch.pi / 16),
    )
    with pytest.raises(ValueError, match=r"7, 10.*|takes values at 10 points.*\(9, 1\)"):
        LinearMap(A)(X[:9, :1])
    with pytest.raises(ValueError, match="do not fit"):
        type(rule)(X, torch.ones(3))
    with pytest.raises(ValueError, match=r"a matrix \(N, M\), found \(10,\)"):
        LinearMap(X[:, 0])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("weights", [None, 1.0, [0.5, 2.0]], ids=["each", "sum", "weighted"])
def test_rows_of_jets_come_several_at_once(order: int, weights: Any) -> None:
    """One backward pass for many rows, through the passes that usually write into their memory."""
    n = Nets().double()
    parameters = list(n.u.parameters())

    def closure() -> Tensor:
        top = taylor(n.u, X, order, weights=weights)[-1].reshape(-1)
        return torch.sin(top - top.mean() * top[0])

    assert_exact(closure, parameters, tolerance=1e-11)
    (term,) = linearize(closure, parameters).terms
    assert term.rest is not None
    with mock.patch.object(AutogradJacobian, "_pull", side_effect=AssertionError):
        term.rest.all_rows()


def test_backward_passes_of_jets_under_vmap() -> None:
    """As users write all rows of a Jacobian themselves."""
    u = Nets().double().u
    r, weight = laplacian(u, X)[:, 0], u[0].weight

    def row(v: Tensor) -> Tensor:
        return torch.autograd.grad(r, weight, v, retain_graph=True)[0]

    identity = torch.eye(len(X), dtype=r.dtype)
    rows = torch.stack([row(v) for v in identity])
    assert (torch.func.vmap(row)(identity) - rows).abs().max() < 1e-14
