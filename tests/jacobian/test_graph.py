"""Closures in anybody's style, one of each: their Jacobians are exact, and in factors.

Nested derivatives, matrix products written by hand, weights that are computed, points concatenated
and sliced, transforms of torch.func, systems: what the graph says is compared with one backward
pass a row.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from row_by_row import assert_exact, derivative
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from kfac_pinn import GaussNewton, laplacian, linearize
from kfac_pinn.jacobian.blocks import EntriesJacobian, LayerJacobian
from kfac_pinn.jacobian.capture.readers import PRODUCTS, Factor, Product
from kfac_pinn.jacobian.closure import linearize_loss
from kfac_pinn.jacobian.sources import REMEMBERED

X = torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mlp(*widths: int) -> nn.Sequential:
    modules = [m for pair in pairwise(widths) for m in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*modules[:-1]).double()


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64) / 2)


def leaf() -> Tensor:
    return X.clone().requires_grad_()


def in_factors(found: Any) -> bool:
    """Whether no term is left to autograd, and every matrix is a layer."""
    return all(
        t.rest is None and all(isinstance(j, LayerJacobian) for j in t.blocks.values())
        for t in found.terms
    )


def burgers(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    u = model(x)
    du = derivative(u, x)
    return du[:, :1] + u * du[:, 1:] - 0.1 * derivative(du[:, 1:], x)[:, 1:]


def test_nested_derivatives() -> None:
    model = mlp(2, 6, 5, 1)
    assert in_factors(assert_exact(lambda: burgers(model, leaf()), list(model.parameters())))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_of_any_order(order: int) -> None:
    model = mlp(2, 5, 4, 1)

    def closure() -> Tensor:
        x = leaf()
        u = model(x).sin()
        for k in range(order):
            u = u * derivative(u, x)[:, k % 2 : k % 2 + 1]
        return u

    assert in_factors(assert_exact(closure, list(model.parameters())))


class ByHand(nn.Module):
    """x @ W + b, einsum, F.linear and matmul with a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.b1 = parameter(2, 6), parameter(6)
        self.W2, self.b2 = parameter(5, 6), parameter(5)
        self.W3, self.W4 = parameter(5, 4), parameter(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.W1 + self.b1)
        h = torch.tanh(h @ self.W2.T + self.b2)
        h = torch.sin(torch.einsum("ni,ij->nj", h, self.W3))
        return (self.W4 @ h.mT).mT


def test_products_written_by_hand() -> None:
    model = ByHand()
    found = assert_exact(lambda: burgers(model, leaf()), list(model.parameters()))
    assert in_factors(found)
    assert sum(len(block.parameters) for block in found.blocks) == 6
    assert len(found.blocks) == 4  # biases belong to their weights


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3)])
def test_products_of_batches(shape: tuple[int, ...]) -> None:
    W, b, V = parameter(2, 5), parameter(5), parameter(5, 1)

    def closure() -> Tensor:
        x = X.reshape(*shape, 2).clone().requires_grad_()
        u = torch.tanh(torch.matmul(x, W) + b)
        u = torch.einsum("...i,ij->...j", u, V)
        return (u[..., 0] * derivative(u, x)[..., 1]).reshape(-1)

    assert all(t.rest is None for t in assert_exact(closure, [W, b, V]).terms)


def test_points_concatenated_sliced_and_permuted() -> None:
    model = ByHand()
    order = torch.randperm(12)

    def closure() -> dict[str, Tensor]:
        x = torch.cat([X, X + 1, X[:5] - 1]).requires_grad_()
        u = model(x)
        du = derivative(u, x)
        return {
            "pde": (derivative(du[:, :1], x)[:, :1] + u)[:12][order],
            "bc": u[12:24].flip(0) - 1,
            "ic": torch.stack([u[24:, 0], du[24:, 1]]).sum(0),
        }

    assert in_factors(assert_exact(closure, list(model.parameters())))


def test_a_system_and_its_columns() -> None:
    model = mlp(2, 6, 3)

    def closure() -> Tensor:
        x = leaf()
        u = model(x)
        return torch.cat([u[:, :2] * u[:, 2:], derivative(u[:, :1], x)], 1)

    found = assert_exact(closure, list(model.parameters()))
    assert in_factors(found)
    assert [t.name for t in found.terms] == [f"residual[:, {c}]" for c in range(4)]


def test_tied_weights_and_several_calls() -> None:
    W, model = parameter(5, 2), mlp(2, 5, 1)

    def closure() -> Tensor:
        x = leaf()
        h = torch.tanh(torch.tanh(x @ W.T) @ W) @ W.T
        u = h.sum(1, keepdim=True) + model(x) * model(x + 1) - model(X)
        return derivative(derivative(u, x)[:, :1], x)[:, 1:]

    assert in_factors(assert_exact(closure, [W, *model.parameters()]))


class Computed(nn.Module):
    """Weights that are computed: weight norm, low rank, a slope, a hypernetwork, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(2, 6).double())
        self.A, self.B, self.slope = parameter(2, 6), parameter(4, 2), parameter()
        self.register_buffer("base", torch.randn(4, 6, dtype=torch.float64))
        self.hyper, self.P = mlp(3, 4, 8), parameter(2, 3)
        self.register_buffer("code", torch.randn(1, 3, dtype=torch.float64))
        self.register_buffer("wide", torch.randn(3, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh((1 + self.slope) * self.first(x))
        h = torch.sin(F.linear(h, self.base + 0.5 * self.B @ self.A))
        h = torch.tanh(h @ self.hyper(self.code)[0].view(4, 2))
        return h @ (self.P @ self.wide)[:1].T + torch.exp(self.slope)


def test_weights_that_are_computed() -> None:
    model = Computed()
    found = assert_exact(lambda: burgers(model, leaf()), list(model.parameters()))
    assert all(t.rest is None for t in found.terms)


def test_trained_coefficients() -> None:
    model, nu, scales, weights = mlp(2, 5, 1), parameter(), parameter(2), parameter(12, 1)

    def closure() -> Tensor:
        x = leaf()
        u = model(x * scales)
        return weights * (nu.exp() * derivative(u, x)[:, :1] - u / (1 + nu**2) + scales[0])

    found = assert_exact(closure, [*model.parameters(), nu, scales, weights])
    assert all(t.rest is None for t in found.terms)


def test_norms_of_features() -> None:
    model = nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1)).double()
    assert_exact(lambda: burgers(model, leaf()), list(model.parameters()))


@pytest.mark.parametrize("transform", [torch.func.hessian, torch.func.jacrev, torch.func.jacfwd])
def test_transforms_of_torch_func(transform: Callable[..., Any]) -> None:
    model = mlp(2, 5, 1)
    derivative_at = transform(lambda point: model(point).sum())
    assert_exact(lambda: torch.vmap(derivative_at)(X).flatten(1).sum(1), list(model.parameters()))


def test_complex_layers() -> None:
    """A matrix of two trained parts is left to autograd; what stands before it is in factors."""
    first, real, imaginary = nn.Linear(2, 5).double(), parameter(5, 1), parameter(5, 1)

    def closure() -> Tensor:
        x = leaf()
        z = torch.exp(1j * first(x)) @ torch.complex(real, imaginary)
        return derivative(z.real, x)[:, 0] - z.imag[:, 0]

    assert_exact(closure, [*first.parameters(), real, imaginary])


def test_real_numbers_times_complex_fields() -> None:
    """The coefficients of an inverse Schroedinger equation have exact dense rows."""
    model, a, b, c = mlp(2, 5, 2), parameter(), parameter(1), parameter(2)

    def closure() -> tuple[Tensor, Tensor]:
        y = model(X)
        psi = torch.complex(y[:, 0], y[:, 1])
        f = 1j * psi + a * psi.abs() ** 2 * psi + b * psi / (c[0] + 2) + c[1]
        return f.real, f.imag

    found = assert_exact(closure, [*model.parameters(), a, b, c])
    assert all(term.rest is None for term in found.terms)


def test_convolutions() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8, 1))
    model = model.double()

    def closure() -> tuple[Tensor, Tensor]:
        x = leaf()
        u = model(x[:, None])
        return derivative(u, x).sum(1), model(X[:, None])

    found = assert_exact(closure, list(model.parameters()))
    assert found.terms[1].rest is None  # derivatives of convolutions are left to autograd
    grouped = nn.Conv1d(2, 2, 1, groups=2).double()
    assert_exact(lambda: grouped(X[:, :, None]).sum((1, 2)), list(grouped.parameters()))


def test_linear_as_one_operation() -> None:
    """Nodes of other devices: a bias is added, and a weight stands on the right, transposed."""
    z, W, b = X.reshape(3, 4, 2), parameter(5, 2), parameter(5)
    node = SimpleNamespace(
        _saved_input=z, _saved_weight=W, _input_metadata=[torch.empty(3, 4, 5, device="meta")]
    )
    read = PRODUCTS["Linear"]
    weight = read(node, 1, get_gradient_edge(W))
    assert isinstance(weight, Product)
    weight.find_weight(W)
    product = torch.einsum("md,de->me", weight.z, W.T if weight.transposed != weight.left else W)
    assert weight.weight is W
    torch.testing.assert_close(product, weight.rows(F.linear(z, W)))
    bias = read(node, 2, get_gradient_edge(b))
    assert isinstance(bias, Factor)
    assert (bias.c, bias.shape) == (1.0, (1, 1, 5))
    with pytest.raises(AttributeError):
        read(node, 0, get_gradient_edge(W))


def test_tokens_that_attend_to_each_other_within_a_point() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True).double()
    embed, read = nn.Linear(1, 4).double(), nn.Linear(4, 1).double()

    def closure() -> Tensor:
        x = X[:, :, None].clone().requires_grad_()
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            h = embed(x)
            u = read(attention(h, h, h, need_weights=False)[0])
        return derivative(u, x)[:, 0, 0] + u[:, 1, 0]

    parameters = [*attention.parameters(), *embed.parameters(), *read.parameters()]
    found = assert_exact(closure, parameters)
    assert all(t.rest is None for t in found.terms)


def test_penalties_on_weights() -> None:
    """P rows, never P^2 numbers: at most one entry a column."""
    model = mlp(2, 300, 1)
    flat = lambda: torch.cat([p.reshape(-1) for p in model.parameters()])  # noqa: E731
    found = linearize(lambda: (model(X), 0.1 * flat()), list(model.parameters()))
    assert all(isinstance(j, EntriesJacobian) for j in found.terms[1].blocks.values())
    small = mlp(2, 3, 1)
    W = small[0].weight
    assert_exact(lambda: (small(X), 0.1 * W.flatten(), W[0] ** 2), list(small.parameters()))


def test_a_single_number() -> None:
    model = mlp(2, 4, 1)
    assert in_factors(
        assert_exact(lambda: (model(X).mean() - 1).reshape(1), list(model.parameters()))
    )


def test_single_precision() -> None:
    model = mlp(2, 6, 5, 1).float()

    def closure() -> Tensor:
        x = torch.cat([X, X + 1]).float().requires_grad_()
        return burgers(model, x)[torch.arange(23, 0, -2)]

    assert in_factors(assert_exact(closure, list(model.parameters()), tolerance=2e-5))


def test_many_points_in_single_precision() -> None:
    """More residuals than one backward pass can number."""
    model = mlp(2, 4, 1).float()
    points = torch.rand(5000, 2)
    order = torch.randperm(5000)

    def closure() -> Tensor:
        x = points.clone().requires_grad_()
        return (model(x) * derivative(model(x), x)[:, :1])[order]

    found = linearize(closure, list(model.parameters()))
    assert in_factors(found)
    r = closure()[:, 0]
    u = torch.rand(5000)
    slopes = torch.autograd.grad(r, list(model.parameters()), u)
    truth = torch.cat([slope.reshape(-1) for slope in slopes]) / 5000**0.5
    torch.testing.assert_close(found.vjp(u), truth, rtol=1e-4, atol=1e-4)


def test_models_in_another_precision_than_their_residuals() -> None:
    model = mlp(2, 6, 1).float()
    found = linearize(
        lambda: burgers(lambda x: model(x.float()).double(), leaf()), list(model.parameters())
    )
    assert in_factors(found)


def test_rows_that_move_from_step_to_step() -> None:
    """Remembered row maps are compared, by weights that are all different."""
    model, order = mlp(2, 5, 1), [torch.arange(12)]
    parameters = list(model.parameters())
    closure = lambda: burgers(model, leaf())[order[0]] + model(X)  # noqa: E731
    for _ in range(3):
        assert_exact(closure, parameters)
        order[0] = torch.randperm(12)


def test_factors_that_vanish_at_first() -> None:
    model, mask = mlp(2, 5, 1), torch.zeros(12, 1, dtype=torch.float64)
    mask[3] = 1
    closure = lambda: mask * burgers(model, leaf())  # noqa: E731
    assert_exact(closure, list(model.parameters()))
    mask[:] = 1
    assert_exact(closure, list(model.parameters()))
    mask[:] = 0
    assert not linearize(closure, list(model.parameters())).rows().any()


def test_the_first_residual_vanishes_at_first() -> None:
    """Its rows reach nothing: no residual, not residual 0."""
    model, mask, order = mlp(2, 5, 1), torch.ones(12, 1, dtype=torch.float64), torch.randperm(12)
    closure = lambda: (mask * burgers(model, leaf()))[order]  # noqa: E731
    for first in (0.0, 1.0):
        mask[order[0]] = first
        assert in_factors(assert_exact(closure, list(model.parameters())))


def test_terms_that_are_computed_alike_share_no_memory() -> None:
    """One has zero weights at some points: whose rows those are cannot be told in any run."""
    model, weights = mlp(2, 5, 1), torch.ones(len(X), 1, dtype=torch.float64)
    masked = weights.clone()
    masked[:4] = 0

    def term(w: Tensor) -> Tensor:
        x = leaf()
        return w * derivative(model(x), x)[:, :1]

    def factors() -> list[Tensor]:
        found = linearize(lambda: (term(masked), term(2 * weights)), list(model.parameters()))
        jacobians = [j for t in found.terms for j in t.blocks.values()]
        layers = [j for j in jacobians if isinstance(j, LayerJacobian)]
        return [t for layer in layers for t in (layer.inputs.z, layer.g)]

    first = factors()
    for others in (factors(), factors()):
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))


class Recurrent(nn.Module):
    """A point read twice by a cell, or by attention over three copies of it."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(2, 6), cell, nn.Linear(6, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = torch.sin(self.first(x))
        if isinstance(self.cell, nn.MultiheadAttention):
            tokens = z[:, None] * torch.linspace(0.5, 1.5, 3)[:, None].to(x.dtype)
            return self.last(self.cell(tokens, tokens, tokens)[0].mean(1))  # type: ignore[no-any-return]
        state = self.cell(z, None)
        h = self.cell(z, state)
        return self.last(h[0] if isinstance(h, tuple) else h)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "cell",
    [
        nn.RNNCell(6, 6),
        nn.GRUCell(6, 6),
        nn.LSTMCell(6, 6),
        nn.MultiheadAttention(6, 2, batch_first=True),
    ],
    ids=lambda cell: type(cell).__name__,
)
def test_layers_inside_a_rule_of_jets_are_read_off_the_graph(cell: nn.Module) -> None:
    """Not by a backward pass a row: their matrices are layers, in factors."""
    model, x = Recurrent(cell), torch.rand(20, 2, dtype=torch.float64)
    parameters = list(model.parameters())
    with mock.patch("kfac_pinn.jacobian.dense_rows.gradient", side_effect=AssertionError):
        found = linearize(lambda: laplacian(model, x), parameters)
    assert_exact(lambda: laplacian(model, x), parameters)
    (term,) = found.terms
    layers = [j.layer.weight for j in term.blocks.values() if isinstance(j, LayerJacobian)]
    assert term.rest is None and {id(w) for w in layers} == {
        id(p) for p in parameters if p.ndim == 2
    }


@pytest.mark.parametrize("points", [3, 40])
@pytest.mark.parametrize("jets", [True, False])
@pytest.mark.parametrize(
    "make",
    [spectral_norm, orthogonal, weight_norm],
    ids=lambda f: f.__name__,
)
def test_computed_weights_have_dense_rows(make: Any, jets: bool, points: int) -> None:
    """Of few points by a backward pass each, of many by the derivatives of the weight's entries."""
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), make(nn.Linear(4, 4)), nn.Linear(4, 1))
    model.double().eval()
    x = torch.rand(points, 2, dtype=torch.float64, requires_grad=True)

    def closure() -> Tensor:
        return laplacian(model, x.detach()) if jets else derivative(model(x), x)[:, 0]

    found = assert_exact(closure, list(model.parameters()), tolerance=1e-11)
    assert all(term.rest is None for term in found.terms)


def test_columns_of_one_residual_share_no_memory() -> None:
    """Which rows an equation of a system reads is the same in every run, and its K-FAC factors."""
    model = mlp(2, 5, 2)

    def closure() -> Tensor:
        x = leaf()
        u = model(x)
        return torch.stack([u[:, 0] - 1, derivative(u[:, 1:], x)[:, 0]], dim=1)

    def factors() -> list[Tensor]:
        found = linearize(closure, list(model.parameters()))
        jacobians = [j for term in found.terms for j in term.blocks.values()]
        return [t for j in jacobians for t in (j.inputs.z, j.g)]

    first, second, third = factors(), factors(), factors()
    for others in (second, third):
        assert all(torch.equal(a, b) for a, b in zip(first, others, strict=True))


def test_what_is_remembered_is_bounded() -> None:
    model = mlp(2, 3, 1)
    for n in range(2, 12):
        for power in range(1, 10):
            linearize(lambda n=n, k=power: model(X[:n]) ** k, list(model.parameters()))  # type: ignore[misc]
    assert len(REMEMBERED) <= 64


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_jets_whose_closure_was_not_seen(d: int, bias: bool) -> None:
    """The first layer, too, whose product with the directions is computed once for all points."""
    model = nn.Sequential(nn.Linear(d, 5, bias=bias), nn.Tanh(), *mlp(5, 5, 1))
    model, x = model.double(), torch.rand(12, d, dtype=torch.float64)
    parameters = list(model.parameters())
    loss = (laplacian(model, x) + 1).square().mean() + model(x).square().mean()
    found = linearize_loss(loss, parameters)
    truth = linearize(lambda: (laplacian(model, x) + 1, model(x)), parameters)
    torch.testing.assert_close(found.gramian(), 2 * truth.gramian(), rtol=1e-12, atol=1e-14)
    assert all(term.rest is None for term in found.terms)


def test_rows_that_are_copied_to_all_points() -> None:
    """A code that all points read, and a first layer applied to directions."""
    W, V, code = parameter(2, 5), parameter(3, 4), mlp(2, 3)

    def copies() -> Tensor:
        moved = (torch.eye(2, dtype=torch.float64) @ W)[:, None].expand(2, 12, 5)
        return (moved * torch.tanh(X @ W)).sum((0, 2))

    assert in_factors(assert_exact(copies, [W]))
    latent = lambda: code(X[:1]).expand(12, 3) @ V  # noqa: E731
    assert_exact(lambda: (latent() * X[:, :1]).sum(1), [*code.parameters(), V])
    wide = lambda: (X[:3] @ W)[:, :1].expand(3, 4).reshape(12)  # noqa: E731
    assert_exact(lambda: wide() * X[:, 0], [W])


def test_jets_beside_nested_derivatives() -> None:
    model = mlp(2, 5, 1)
    closure = lambda: (laplacian(model, X) + 1, derivative(model(z := leaf()), z)[:, 0])  # noqa: E731
    assert in_factors(assert_exact(closure, list(model.parameters())))


def test_a_compiled_model_without_a_closure() -> None:
    """Its backward pass is one node, and is not differentiated again: rows by autograd."""
    torch.compiler.reset()  # not as other tests left it
    model = mlp(2, 5, 1)
    parameters = list(model.parameters())
    compiled = torch.compile(model, backend="aot_eager")
    found = linearize_loss((compiled(X) - 1).square().mean(), parameters)
    truth = linearize(lambda: model(X) - 1, parameters)
    v = torch.rand(found.size, dtype=torch.float64)
    torch.testing.assert_close(found @ v, 2**0.5 * (truth @ v))
    torch.testing.assert_close(found.gramian(), 2 * truth.gramian())


def test_a_model_compiled_for_another_optimizer_without_a_closure() -> None:
    """Its backward pass gives its memory away: the way out is said, and works."""
    torch.compiler.reset()
    model = mlp(2, 5, 1)
    compiled = torch.compile(model, backend="aot_eager")

    def backward() -> None:
        (compiled(X) - 1).square().mean().backward()

    adam = torch.optim.Adam(model.parameters())
    backward()
    adam.step()
    optimizer = GaussNewton(model.parameters())
    with pytest.raises(RuntimeError, match=r"step\(closure\).*torch.compiler.reset\(\)"):
        backward()
    torch.compiler.reset()
    for _ in range(2):
        optimizer.zero_grad()
        backward()
        optimizer.step()
    before = (model(X) - 1).square().mean()
    optimizer.step(lambda: compiled(X) - 1)
    assert (model(X) - 1).square().mean() < before


def test_half_precision_in_the_graph() -> None:
    model = mlp(2, 5, 1).float()

    def closure() -> Tensor:
        x = X.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ model[0].weight.T).tanh().sum(1).float()

    with pytest.raises(RuntimeError, match=r"bfloat16.*autocast.*float64"):
        linearize(closure, [model[0].weight])


def test_jets_and_graph_give_the_same_step() -> None:
    def stepped(residual: Callable[[nn.Module], Tensor]) -> Tensor:
        torch.manual_seed(0)
        model = mlp(2, 8, 8, 1)
        optimizer = GaussNewton(model.parameters())
        for _ in range(3):
            optimizer.step(lambda: (residual(model) + X[:, :1].sin(), model(X + 1)))
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    def nested(model: nn.Module) -> Tensor:
        x = leaf()
        du = derivative(model(x), x)
        return sum(derivative(du[:, i : i + 1], x)[:, i : i + 1] for i in (0, 1))  # type: ignore[return-value]

    jets = stepped(lambda model: laplacian(model, X))
    torch.testing.assert_close(stepped(nested), jets, rtol=1e-10, atol=1e-10)
