"""Linearisation of random networks against nested autograd, one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    LaplaceResidual,
    backpack_factors,
    backpack_rows,
    curvlinops_gramian,
    derivatives,
    flat_gradient,
    jacobian,
    stacked,
)
from small_problems import network, points
from torch import Tensor, nn

from kfac_pinn import ConvexLoss, Linearization, laplacian, linearize, taylor, total_loss
from kfac_pinn.jacobian.blocks import LayerJacobian
from kfac_pinn.jacobian.layers import Layer

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: list[Activation] = [torch.tanh, torch.sin, torch.sigmoid, torch.exp]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-4}


class Network(nn.Module):
    """Linear layers of the given widths, some without bias, with one activation between them."""

    def __init__(self, widths: list[int], biases: list[bool], activation: Activation) -> None:
        super().__init__()
        pairs = zip(widths[:-1], widths[1:], biases, strict=True)
        self.layers = nn.ModuleList([nn.Linear(a, b, bias=bias) for a, b, bias in pairs])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


def formula(jet: list[Tensor], order: int, c: int) -> Tensor:
    """A nonlinear residual of u_c, its first derivatives and its summed top order."""
    u = jet[0][:, c]
    if order == 0:
        return u * u - 0.5
    first = jet[1][:, :, c]
    if order == 1:
        return first[0] * u + first.square().sum(0) + 0.3
    return jet[-1][:, c] + u * first[0] - torch.sin(u)


@dataclass
class Term:
    """Points and the order of a residual; one per output of the network, from one pass."""

    points: Tensor
    order: int

    def by_taylor(self, model: nn.Module) -> list[Tensor]:
        ones = self.points.new_ones(self.points.shape[1])
        if self.order == 0:
            jet = [model(self.points)]
        else:
            weights = ones if self.order > 1 else None
            jet = list(taylor(model, self.points, self.order, weights=weights))
        return [formula(jet, self.order, c) for c in range(jet[0].shape[1])]

    def by_autograd(self, model: nn.Module) -> list[Tensor]:
        jet = derivatives(model, self.points, self.order)
        if self.order > 1:
            jet[-1] = jet[-1].sum(0)
        return [formula(jet, self.order, c) for c in range(jet[0].shape[1])]


@dataclass
class Case:
    """A network and its terms: the same residuals by jets and by nested autograd."""

    model: Network
    terms: list[Term]

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def residuals(self) -> tuple[Tensor, ...]:
        return tuple(r for term in self.terms for r in term.by_taylor(self.model))

    def oracle(self) -> tuple[Tensor, ...]:
        return tuple(r for term in self.terms for r in term.by_autograd(self.model))


@st.composite
def cases(draw: st.DrawFn, orders: tuple[int, ...] = (0, 1, 2)) -> Case:
    """Random architecture, dtype, number and kind of terms."""
    depth = draw(st.integers(1, 4))
    widths = [draw(st.integers(1, 3)), *(draw(st.integers(1, 5)) for _ in range(depth))]
    biases = [draw(st.booleans()) for _ in range(depth)]
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32]))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    model = Network(widths, biases, draw(st.sampled_from(ACTIVATIONS))).to(dtype)
    terms = [
        Term(torch.rand(draw(st.integers(1, 5)), widths[0], dtype=dtype), order)
        for order in draw(st.lists(st.sampled_from(orders), min_size=1, max_size=3))
    ]
    return Case(model, terms)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to rounding, relative to the largest entry."""
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 1.0
    tolerance = TOLERANCE[expected.dtype] * max(scale, 1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def kernel_by(lin: Linearization, factored: bool) -> Tensor:
    """The kernel, forced through factors (layers only) or rows."""
    choice = lambda block: factored and isinstance(block, Layer)  # noqa: E731
    with mock.patch.object(lin, "factored_is_cheaper", side_effect=choice):
        return lin.kernel()


@given(cases())
def test_everything_read_from_it_is_the_jacobian_of_autograd(case: Case) -> None:
    lin = linearize(case.residuals, case.parameters, check=True)
    r, J = jacobian(case.oracle, case.parameters)
    close(lin.residual, r)
    close(lin.rows(), J)
    close(torch.as_tensor(lin.loss, dtype=r.dtype), 0.5 * r @ r)
    close(lin.gradient, J.T @ r)
    close(lin.gramian(), J.T @ J)
    close(lin.gramian_diagonal(), J.square().sum(0))
    close(kernel_by(lin, True), J @ J.T)
    close(kernel_by(lin, False), J @ J.T)
    close(lin.kernel(), J @ J.T)


@given(cases(), st.integers(1, 4))
def test_products_and_their_adjoint(case: Case, count: int) -> None:
    lin = linearize(case.residuals, case.parameters)
    r, J = jacobian(case.oracle, case.parameters)
    v, u = torch.randn(lin.size, dtype=r.dtype), torch.randn_like(r)
    close(lin @ v, J @ v)
    close(lin.vjp(u), J.T @ u)
    close((lin @ v) @ u, v @ lin.vjp(u))
    V = torch.randn(lin.size, count, dtype=r.dtype)
    close(lin @ V, J @ V)


@given(cases(), st.integers(1, 4))
def test_blocks_and_batches(case: Case, size: int) -> None:
    lin = linearize(case.residuals, case.parameters)
    _, J = jacobian(case.oracle, case.parameters)
    for block in lin.blocks:
        columns = torch.cat([torch.arange(lin.size)[place] for place in block.slices])
        assert block.size == len(columns)
        close(lin.rows(block), J[:, columns])
        close(lin.gramian(block), J[:, columns].T @ J[:, columns])
    batches = list(lin.batches(size))
    assert all(len(rows) == len(r) <= size for rows, r in batches)
    close(torch.cat([rows for rows, _ in batches]), J)
    close(torch.cat([r for _, r in batches]), lin.residual)
    with mock.patch("kfac_pinn.linalg.memory.NUMBERS", 1):
        close(lin.gramian(), J.T @ J)
        close(lin.gramian_diagonal(), J.square().sum(0))


@given(cases())
def test_flat_vectors_follow_the_parameters(case: Case) -> None:
    lin = linearize(case.residuals, case.parameters)
    for part, p in zip(lin.unflatten(lin.gradient), case.parameters, strict=True):
        assert part.shape == p.shape
        assert part.data_ptr() >= lin.gradient.data_ptr()
    loss = total_loss(case.oracle())
    close(lin.gradient, flat_gradient(loss, case.parameters))
    assert [len(part) for part in lin.split(lin.residual)] == [
        len(tangent.residual) for tangent in lin.terms
    ]


@settings(max_examples=3)
@given(cases(orders=(4,)))
def test_fourth_order(case: Case) -> None:
    lin = linearize(case.residuals, case.parameters, check=True)
    r, J = jacobian(case.oracle, case.parameters)
    close(lin.residual, r)
    close(lin.rows(), J)


def test_order_of_the_parameters_is_the_callers() -> None:
    model = Network([2, 4, 1], [True, True], torch.tanh).double()
    x = torch.rand(5, 2, dtype=torch.float64)
    shuffled = list(model.parameters())[::-1]
    lin = linearize(lambda: laplacian(model, x), shuffled)
    close(lin.rows(), jacobian(lambda: [derivatives(model, x, 2)[2].sum(0)], shuffled)[1])


def test_gramian_is_half_the_ggn_of_curvlinops() -> None:
    model = Network([3, 6, 5, 1], [True, False, True], torch.tanh).double()
    x = torch.rand(7, 3, dtype=torch.float64)
    module = LaplaceResidual(model, lambda x: x.sum(1))
    lin = linearize(lambda: laplacian(model, x)[:, 0] - x.sum(1), list(model.parameters()))
    close(lin.gramian(), curvlinops_gramian(module, x))


def test_rows_and_factors_of_backpack() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    network = network.double()
    x = torch.rand(6, 3, dtype=torch.float64)
    lin = linearize(lambda: network(x), list(network.parameters()))
    close(lin.rows() * len(x) ** 0.5, backpack_rows(network, x))
    for block, (A, B) in zip(lin.blocks, backpack_factors(network, x), strict=True):
        jacobian_ = lin.terms[0].blocks[block]
        assert isinstance(jacobian_, LayerJacobian)
        z, g = jacobian_.inputs.z[0], jacobian_.g[0]
        close(z.T @ z / len(x), A)
        close(jacobian_.inputs.second_moment()[:-1, :-1] / len(x), A)
        close(g.T @ g / len(x), B)


def test_inputs_of_a_system_are_shared() -> None:
    model = Network([2, 4, 3], [True, True], torch.tanh).double()
    case = Case(model, [Term(torch.rand(5, 2, dtype=torch.float64), 2)])
    lin = linearize(case.residuals, case.parameters)
    first, *others = [list(tangent.blocks.values()) for tangent in lin.terms]
    for blocks in others:
        for a, b in zip(first, blocks, strict=True):
            assert isinstance(a, LayerJacobian)
            assert isinstance(b, LayerJacobian)
            assert a.inputs is b.inputs


def test_a_convex_loss_is_its_own_gradient_and_gauss_newton_matrix() -> None:
    model = Network([2, 5, 1], [True, True], torch.tanh).double()
    x = torch.rand(6, 2, dtype=torch.float64)

    def energy() -> ConvexLoss:
        u, du = taylor(model, x, order=1)
        return ConvexLoss((u, *du), lambda u, *du: sum(p**2 for p in du) / 2 - x[:, 0] * u)

    parameters = list(model.parameters())
    lin = linearize(energy, parameters, check=True)
    u, du = derivatives(model, x, 1)
    loss = (du.square().sum(0)[:, 0] / 2 - x[:, 0] * u[:, 0]).mean()
    close(torch.tensor(lin.loss, dtype=torch.float64), loss.detach())
    close(lin.gradient, flat_gradient(loss, parameters))
    rows = torch.stack([flat_gradient(each, parameters) for each in du[..., 0].reshape(-1)])
    close(lin.gramian(), rows.T @ rows / len(x))


def test_a_convex_loss_of_one_square_is_least_squares() -> None:
    model = Network([2, 5, 1], [True, True], torch.tanh).double()
    x = torch.rand(6, 2, dtype=torch.float64)
    parameters = list(model.parameters())
    convex = linearize(lambda: ConvexLoss(model(x), lambda u: (u - 2) ** 2 / 2), parameters)
    squares = linearize(lambda: model(x) - 2, parameters)
    close(convex.gradient, squares.gradient)
    close(convex.gramian(), squares.gramian())
    close(convex.kernel(), squares.kernel())
    assert convex.linear_term is None
    assert convex.loss == pytest.approx(squares.loss, rel=1e-14)


def test_scaled_residuals_are_stacked() -> None:
    parts = [torch.ones(4, dtype=torch.float64), torch.ones(9, dtype=torch.float64)]
    w = nn.Parameter(torch.ones((), dtype=torch.float64))
    lin = linearize(lambda: [w * part for part in parts], [w])
    close(lin.residual, stacked(parts))
    assert lin.loss == pytest.approx(1.0)


@pytest.mark.parametrize("small", [0, 2**20])
def test_products_are_the_same_from_rows_and_from_factors(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small J the rows are written out, whatever the number of its shared positions."""
    monkeypatch.setattr("kfac_pinn.jacobian.linearization.SMALL", small)
    model, x = network(2, 5, 1), points(9)
    found = linearize(lambda: (laplacian(model, x), model(x)), model.parameters())
    found = found.with_ridge(torch.rand(found.size, dtype=torch.float64))
    J, v = found.rows(), torch.randn(found.size, dtype=torch.float64)
    for _ in range(3):
        torch.testing.assert_close(found.curvature(v), J.T @ (J @ v) + found.ridge * v)
    rows = vars(found)["_arranged"]
    assert rows is None if not small else torch.equal(rows, J)
    factors = found.terms[0].blocks[found.blocks[0]]
    assert (factors.g.stride(1) == 1) == (not small)  # points last in memory
