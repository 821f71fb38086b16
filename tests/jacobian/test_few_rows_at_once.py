"""Rows in chunks of bounded memory, blocks that a term does not see, and blocks in two places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from oracles import jacobian
from row_by_row import assert_exact
from torch import Tensor, nn

from kfac_pinn import laplacian, linearize
from kfac_pinn.jacobian.dense_rows import BroadcastJacobian, chain
from kfac_pinn.jacobian.linearization import Linearization

X = torch.rand(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def parameter(*shape: int, seed: int = 1) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    first, second, third = widths
    return nn.Sequential(nn.Linear(first, second), nn.Tanh(), nn.Linear(second, third)).double()


def numbers(count: int) -> Any:
    """The memory policy allows so many numbers at once."""
    return mock.patch("kfac_pinn.linalg.memory.NUMBERS", count)


@pytest.mark.parametrize("at_once", [1, 12, 13, 24, 35, 2**25])
def test_the_chain_rule_in_chunks(at_once: int) -> None:
    """From the third chunk on, an offset that forgets one is wrong; the last one is shorter."""
    p, q = parameter(3, 4), parameter(4, seed=2)
    t = p.sin() * q
    rows, asked = torch.randn(11, 12, dtype=torch.float64), []

    def some(points: slice) -> Tensor:
        asked.append(len(rows[points]))
        return rows[points]

    with numbers(at_once):
        found = chain([BroadcastJacobian(t, some)], [p, q], 11)
    for target, part in zip((p, q), found, strict=True):
        dense = torch.autograd.functional.jacobian(
            lambda v, target=target: (v if target is p else p).sin() * (v if target is q else q),
            target.detach(),
        )
        expected = rows @ dense.reshape(12, -1)
        assert part is not None
        torch.testing.assert_close(part.reshape(11, -1), expected)
    fit = max(1, at_once // 12)
    assert sum(asked) == 11 and max(asked) == min(fit, 11) and len(asked) == -(-11 // fit)


@pytest.mark.parametrize("at_once", [1, 40, 100])
def test_computed_weights_and_coefficients_in_chunks(at_once: int) -> None:
    model, A, B, scale = mlp(2, 5, 1), parameter(2, 2), parameter(5, 2, seed=2), parameter(2)
    x = X.clone().requires_grad_()

    def by_graph() -> Tensor:
        h = torch.tanh(F.linear(x, B @ A))
        u = model[2](h + torch.tanh(model[0](x * scale)))
        (du,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)
        return du[:, :1] - scale.prod() * u

    def by_jets() -> Tensor:
        u = lambda x: model[2](torch.tanh(F.linear(x, B @ A)) + torch.tanh(model[0](x * scale)))  # noqa: E731
        return laplacian(u, X) + scale[0] * model(X)

    parameters = [*model.parameters(), A, B, scale]
    with numbers(at_once):
        assert_exact(by_graph, parameters)
        found = linearize(by_jets, parameters, check=True)
        J = found.rows()
    torch.testing.assert_close(J, linearize(by_jets, parameters).rows(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 200, 2**25])
def test_rows_by_autograd_in_chunks(at_once: int) -> None:
    """Of residuals that mix the points; and where they are too many to be remembered."""
    model = mlp(2, 5, 1)
    with numbers(at_once), mock.patch("kfac_pinn.jacobian.matrix_free.NUMBERS", at_once):
        found = assert_exact(lambda: model(X) - model(X).mean(), list(model.parameters()))
        batches = [rows for rows, _ in found.batches(3)]
    assert len(batches) == 4
    torch.testing.assert_close(torch.cat(batches), found.rows())


def two_models() -> tuple[list[Tensor], Callable[[], Any]]:
    """Terms that see some of the parameters each: by layers, by a leaf, by autograd alone."""
    first, second, nu = mlp(2, 5, 1), mlp(2, 3, 1), parameter()
    parameters = [*first.parameters(), *second.parameters(), nu]

    def closure() -> dict[str, Tensor]:
        v = second(X)
        return {
            "first": first(X[:7]) - 1,
            "both": nu * first(X) * second(X),
            "mixed": v - v.mean(),
            "second": second(X[:4]),
        }

    return parameters, closure


@pytest.fixture
def absent() -> tuple[Linearization, Tensor]:
    """The linearisation, and J from one backward pass a row."""
    parameters, closure = two_models()
    found = linearize(closure, parameters)
    return found, jacobian(lambda: list(closure().values()), parameters)[1]


def test_rows_of_blocks_that_a_term_does_not_see_are_zero(
    absent: tuple[Linearization, Tensor],
) -> None:
    found, J = absent
    assert len(found.blocks) == 5 and all(len(t.depends_on) < 5 for t in found.terms[::2])
    for block in found.blocks:
        columns = torch.cat([torch.arange(s.start, s.stop) for s in block.slices])
        torch.testing.assert_close(found.rows(block), J[:, columns])
        torch.testing.assert_close(found.gramian(block), J[:, columns].mT @ J[:, columns])
        parts = [rows for rows, _ in found.batches(2, block)]
        assert all(1 <= len(rows) <= 2 for rows in parts)
        torch.testing.assert_close(torch.cat(parts), J[:, columns])


def test_one_block_alone(absent: tuple[Linearization, Tensor]) -> None:
    found, J = absent
    u, v = torch.randn(len(J), dtype=J.dtype), torch.randn(J.shape[1], dtype=J.dtype)
    for block in found.blocks:
        kept = torch.zeros(J.shape[1], dtype=J.dtype)
        for place in block.slices:
            kept[place] = 1
        alone = found.restrict(block)
        torch.testing.assert_close(alone.rows(), J * kept)
        torch.testing.assert_close(alone.vjp(u), kept * (J.mT @ u))
        torch.testing.assert_close(alone @ v, J @ (kept * v))
        torch.testing.assert_close(alone.kernel(), (J * kept) @ (J * kept).mT)


def test_kernels_and_gramians_of_terms_that_share_little(
    absent: tuple[Linearization, Tensor],
) -> None:
    found, J = absent
    for choice in (True, False):
        with mock.patch.object(Linearization, "factored_is_cheaper", lambda *_, c=choice: c):
            layers_only = all(t.rest is None for t in found.terms)
            if layers_only or not choice:
                torch.testing.assert_close(found.kernel(), J @ J.mT)
    torch.testing.assert_close(found.kernel(), J @ J.mT)
    torch.testing.assert_close(found.gramian(), J.mT @ J)
    torch.testing.assert_close(found.gramian_diagonal(), J.square().sum(0))


def test_products_with_a_penalty_on_weights_are_those_of_its_rows() -> None:
    """One entry a column: weight and bias of two layers, each with a factor of its own."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    factors = torch.tensor([0.3, 0.7, 1.1, 1.3], dtype=torch.float64)

    def closure():
        parts = zip(factors, model.parameters(), strict=True)
        return torch.cat([factor * p.reshape(-1) for factor, p in parts])

    found = linearize(closure, list(model.parameters()))
    sizes = [p.numel() for p in model.parameters()]
    J = torch.diag(torch.cat([f.expand(n) for f, n in zip(factors, sizes, strict=True)]))
    J = J / sum(sizes) ** 0.5
    u = torch.randn(len(J), dtype=torch.float64)
    torch.testing.assert_close(found.rows(), J)
    torch.testing.assert_close(found @ u, J @ u)
    torch.testing.assert_close(found.vjp(u), J.mT @ u)
