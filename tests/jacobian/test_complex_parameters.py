"""Complex parameters: an entry is two real ones, in J and in every step.

The rows are autograd's, one backward pass each; the steps those of the same program whose real and
imaginary parts are real tensors.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from row_by_row import assert_exact, coordinates, derivative
from torch import Tensor, nn

import kfac_pinn
from kfac_pinn import KFACPINN, Batches, GaussNewton, HessianFree, laplacian
from kfac_pinn.linalg import dimension, flatten, unflatten
from kfac_pinn.optimizers.base import LeastSquaresOptimizer
from kfac_pinn.optimizers.hessian_free import Hessian

X = torch.rand(9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EXPORTED = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
OPTIMIZERS = [
    c
    for c in EXPORTED
    if inspect.isclass(c) and issubclass(c, LeastSquaresOptimizer) and not inspect.isabstract(c)
]
pytestmark = pytest.mark.filterwarnings("ignore:the points of")


def noise(*shape: int, dtype: torch.dtype = torch.complex128) -> Tensor:
    return torch.randn(shape, dtype=dtype) / 2


class Waves(nn.Module):
    """A real layer, then complex ones, whose parts may be real tensors (..., 2)."""

    def __init__(self, parts: bool = False, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2, 4, dtype=dtype)
        values = [noise(*shape, dtype=dtype.to_complex()) for shape in ((4, 4), (4,), (4, 1), ())]
        stored = [torch.view_as_real(v).clone() if parts else v for v in values]
        self.matrices = nn.ParameterList(nn.Parameter(v) for v in stored)

    def forward(self, x: Tensor) -> Tensor:
        W, b, V, c = (p if p.is_complex() else torch.view_as_complex(p) for p in self.matrices)
        h = torch.tanh(self.first(x)).to(W.dtype)
        return torch.tanh(h @ W + b) @ V + c

    def loss(self) -> Tensor:
        """Of a complex residual, with nested derivatives, and a penalty on complex weights."""
        x = X.to(self.first.weight.dtype).requires_grad_()
        psi = self(x)
        r = 1j * derivative(psi.real, x)[:, :1] + psi * psi.abs().square() - x[:, :1].detach()
        penalty = sum((p * (p.conj() if p.is_complex() else p)).real.sum() for p in self.matrices)
        return r.abs().square().mean() + 1e-2 * penalty  # type: ignore[no-any-return]


class Spectral(nn.Module):
    """A layer of a Fourier neural operator: complex weights on the lowest modes of a function."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lift, self.skip = nn.Conv1d(1, 3, 1, dtype=dtype), nn.Conv1d(3, 3, 1, dtype=dtype)
        self.weight = nn.Parameter(noise(3, 3, 4, dtype=dtype.to_complex()))
        self.out = nn.Conv1d(3, 1, 1, dtype=dtype)

    def forward(self, a: Tensor) -> Tensor:
        h = self.lift(a)
        modes = torch.fft.rfft(h)
        low = torch.einsum("bix,iox->box", modes[..., :4], self.weight)
        high = torch.zeros_like(modes[..., 4:])
        smooth = torch.fft.irfft(torch.cat([low, high], -1), n=h.shape[-1])
        return self.out(torch.nn.functional.gelu(smooth + self.skip(h)))


# Coordinates


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 3), max_size=3)), min_size=1))
def test_coordinates_and_back(kinds: list[tuple[bool, list[int]]]) -> None:
    tensors = [noise(*shape) if cplx else noise(*shape).real for cplx, shape in kinds]
    flat = flatten(tensors)
    assert not flat.is_complex() and len(flat) == sum(map(dimension, tensors))
    assert all(torch.equal(a, b) for a, b in zip(unflatten(flat, tensors), tensors, strict=True))


def test_conjugate_views() -> None:
    w = noise(3, 2)
    assert torch.equal(flatten([w.mH]), flatten([w.mH.clone()]))


# The Jacobian

PRODUCTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda h, w: h @ w,
    lambda h, w: torch.einsum("ni,ij->nj", h, w.conj()),
    lambda h, w: torch.nn.functional.linear(h, w.mT),
    lambda h, w: torch.complex(h.real @ w.real, h.imag @ w.imag),
    lambda h, w: h @ torch.view_as_real(w)[..., 0].to(h) * w.abs().sum(),
    lambda h, w: h.mul(w[:, 0]) @ torch.exp(1j * w.real),
    lambda h, w: torch.fft.ifft(torch.fft.fft(h) * w[0]),
]
BENDS: list[Callable[[Tensor], Tensor]] = [
    torch.tanh,
    lambda z: torch.complex(z.real.tanh(), z.imag.sin()),
    lambda z: z * torch.sigmoid(z.abs()),
]
ENDS: list[Callable[[Tensor, Tensor], Any]] = [
    lambda u, x: (u.real[:, :1], u.imag[:, 1:]),
    lambda u, x: derivative(u.real[:, :1], x)[:, 0] + u.imag[:, 0],
    lambda u, x: u.abs().square().mean() + (u[:, 0] - 1j).abs().square().sum(),
    lambda u, x: (u * u.conj()).real.sum(1) - derivative(u.imag[:, :1], x)[:, 1],
]


@given(
    st.lists(st.tuples(st.sampled_from(PRODUCTS), st.sampled_from(BENDS)), min_size=1, max_size=2),
    st.sampled_from(ENDS),
)
def test_random_programs(layers: list[Any], end: Callable[[Tensor, Tensor], Any]) -> None:
    torch.manual_seed(0)
    first = nn.Linear(2, 3).double()
    weights = [nn.Parameter(noise(3, 3)) for _ in layers]

    def closure() -> Any:
        x = X.clone().requires_grad_()
        h = first(x).to(torch.complex128)
        for w, (product, bend) in zip(weights, layers, strict=True):
            h = bend(product(h, w))
        return end(h, x)

    assert_exact(closure, [*first.parameters(), *weights])


def test_jets() -> None:
    """Complex layers are left to autograd, real ones before them are in factors."""
    model = Waves()
    parameters = list(model.parameters())

    def closure() -> Any:
        return laplacian(lambda x: model(x).real, X), model(X).imag

    found = assert_exact(closure, parameters)
    assert all(len(term.blocks) == 1 and term.rest is not None for term in found.terms)


def test_parts_of_a_complex_weight_that_real_points_read_have_dense_rows() -> None:
    a, b = nn.Parameter(noise(4)), nn.Parameter(noise())

    def closure() -> Tensor:
        powers = X[:, :1] ** torch.arange(4)
        return (powers * a.real).sum(1) + (X[:, 1:] * a.imag).sum(1) * b.imag

    found = assert_exact(closure, [a, b])
    assert all(term.rest is None for term in found.terms)


def test_functions_of_complex_weights_alone() -> None:
    a, b = nn.Parameter(noise(3)), nn.Parameter(noise(2).real)
    assert_exact(lambda: (a.abs(), b, torch.cat([a.real, a.imag]) * b.sum()), [a, b])


def test_fourier_neural_operator() -> None:
    model, a = Spectral(), torch.randn(3, 1, 8, dtype=torch.float64)
    assert_exact(lambda: (model(a) - a.roll(1, -1)).square().sum(), list(model.parameters()))


# Steps


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_step_is_that_of_real_and_imaginary_parts(make: Any, dtype: torch.dtype) -> None:
    runs = []
    for model in (Waves(False, dtype), Waves(True, dtype)):
        optimizer = make(model.parameters(), weight_decay=1e-3)
        losses = [float(optimizer.step(model.loss)) for _ in range(4)]
        runs.append((losses, flatten(p.detach() for p in model.parameters())))
        for p in model.parameters():
            assert p.grad is not None and p.grad.dtype == p.dtype and p.grad.shape == p.shape
    assert runs[0][0][-1] < runs[0][0][0]
    rel = 1e-9 if dtype == torch.float64 else 1e-3
    assert runs[0][0] == pytest.approx(runs[1][0], rel=rel)
    assert torch.allclose(runs[0][1], runs[1][1], rtol=rel, atol=rel)


def test_gradients_are_those_of_backward() -> None:
    model = Waves()
    model.loss().backward()
    truth = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    optimizer = KFACPINN(model.parameters())
    optimizer.step(model.loss)
    for p, g in zip(model.parameters(), truth, strict=True):
        assert p.grad is not None and torch.allclose(p.grad, g, rtol=1e-10, atol=1e-12)


def test_products_with_the_hessian() -> None:
    model, parts = Waves(), Waves(parts=True)
    for each in (model, parts):
        optimizer = HessianFree(each.parameters(), curvature=Hessian())
        for _ in range(3):
            optimizer.step(each.loss)
    assert float(model.loss()) == pytest.approx(float(parts.loss()), rel=1e-9)


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda c: c.__name__)
def test_saved_and_resumed_bit_for_bit(make: Any) -> None:
    model = Waves()
    optimizer = make(model.parameters())
    for _ in range(2):
        optimizer.step(model.loss)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    twin = copy.deepcopy(model)
    resumed = make(twin.parameters())
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert float(optimizer.step(model.loss)) == float(resumed.step(twin.loss))
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_without_a_closure_and_in_batches() -> None:
    model, a = Spectral(), torch.randn(6, 1, 8, dtype=torch.float64)
    optimizer = KFACPINN(model.parameters())
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(a) - 2 * a).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert min(losses) < 0.1 * losses[0]
    halves = [lambda some=some: (model(some) - 2 * some).flatten() for some in (a[:3], a[3:])]
    whole, parts = copy.deepcopy(model), model
    one, two = GaussNewton(whole.parameters()), GaussNewton(parts.parameters())
    for _ in range(2):
        one.step(lambda: (whole(a) - 2 * a).flatten())
        two.step(Batches(halves))
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-8, atol=1e-10)


def test_points_of_another_precision_are_told_the_real_one() -> None:
    """Whatever parameter comes first."""
    w, first = nn.Parameter(noise(1)), nn.Linear(2, 3).double()
    optimizer = KFACPINN([w, *first.parameters()])
    with pytest.raises(RuntimeError, match=r"x = x\.to\(torch\.float64\)"):
        optimizer.step(lambda: (first(X.float()) * w).real.sum(1))


def test_a_failed_step_leaves_complex_parameters_as_they_were() -> None:
    model = Waves()
    before = [p.detach().clone() for p in model.parameters()]
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise KeyboardInterrupt
        return model.loss()

    with pytest.raises(KeyboardInterrupt):
        GaussNewton(model.parameters()).step(closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_closure_that_changes_a_complex_parameter_is_refused() -> None:
    model = Waves()

    def closure() -> Tensor:
        with torch.no_grad():
            model.matrices[0] *= 0.9
        return model.loss()

    with pytest.raises(RuntimeError, match="the closure changed parameter"):
        KFACPINN(model.parameters()).step(closure)


def test_roots_of_a_polynomial() -> None:
    """A complex unknown alone: Newton's method finds the cube root that is near."""
    z = nn.Parameter(torch.tensor([0.3 + 0.9j], dtype=torch.complex128))
    optimizer = GaussNewton([z])
    for _ in range(12):
        optimizer.step(lambda: (z**3 - 1).abs().square().sum())
    assert abs(z.item() - complex(math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3))) < 1e-12
    assert coordinates(z.detach()).shape == (2,)
