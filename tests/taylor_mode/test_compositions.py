"""Elementwise functions of jets: all orders, sums over directions, blocks, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from nested_autograd import derivatives_along_lines
from torch import Tensor

from kfac_pinn.taylor_mode.operators import taylor
from kfac_pinn.taylor_mode.rules import series

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "square": torch.square,  # its derivatives end
    "relu": F.relu,  # with the first
}
# 20 directions are more than are summed one by one.
WEIGHTS: dict[str, Callable[[int], Any]] = {
    "no weights": lambda count: None,
    "one": lambda count: 1.0,
    "a number": lambda count: -2.5,
    "a whole number": lambda count: 3,
    "a sum": lambda count: torch.linspace(-1, 2, count, dtype=torch.float64),
    "two sums": lambda count: torch.linspace(-1, 2, 2 * count, dtype=torch.float64).view(2, -1),
}


def setting(count: int, order: int) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Points, directions, a trained matrix, and what is to be multiplied by all rows."""
    generator = torch.Generator().manual_seed(10 * count + order)
    x, v, W = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (7, count, 5))
    return (
        x,
        v,
        W.requires_grad_(),
        lambda rows: torch.cos(torch.arange(rows.numel())).view_as(rows),
    )


def summed(rows: Tensor, w: Any) -> Tensor:
    """The top order of an oracle, (D, ...), as `taylor` returns it."""
    if w is None:
        return rows
    w = w if isinstance(w, Tensor) else torch.full((len(rows),), float(w)).to(rows)
    return torch.tensordot(w, rows, 1)


@pytest.mark.parametrize("size", [1, 600, 2**21])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("order", "count"), [(1, 3), (2, 3), (2, 20), (3, 2), (4, 3)])
def test_rows_and_their_gradient_against_nested_autograd(
    name: str, weights: str, size: int, order: int, count: int
) -> None:
    """In the weights of a layer that the function follows; blocks of one entry, some, all."""
    f, w = FUNCTIONS[name], WEIGHTS[weights](count)
    x, v, W, cotangent = setting(count, order)
    u = lambda z: f(F.linear(z, W))  # noqa: E731
    with mock.patch.multiple(series, MIN_BLOCK=1, BLOCK_BYTES={"cpu": size}):
        found = taylor(u, x, order, v, weights=w)
        (gradient,) = torch.autograd.grad(sum((cotangent(r) * r).sum() for r in found), W)
    expected = derivatives_along_lines(u, x, v, order)
    expected[-1] = summed(expected[-1], w)
    (truth,) = torch.autograd.grad(sum((cotangent(r) * r).sum() for r in expected), W)
    for row, each in zip(found, expected, strict=True):
        torch.testing.assert_close(row, each, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_every_thread_has_a_share_that_is_worth_its_start(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    few, many = torch.empty(3, 10), torch.empty(10_000, 10)
    assert series.entries(few) == {1: 2**21 // 12, 2: 2**21 // 12, 8: 8 * 2**16}[threads]
    assert series.entries(many) == {1: 256, 2: 2 * 4 * 52, 8: 8 * 4 * 52}[threads]
    elsewhere = torch.empty(3, 10, device="meta")  # threads of the CPU are no matter of a GPU
    assert series.entries(elsewhere) == 2**28 // 12


@pytest.mark.parametrize("weights", WEIGHTS)
def test_gradients_of_gradients(weights: str) -> None:
    """A second backward pass, through the first."""
    x, v, W, cotangent = setting(3, 2)
    w = WEIGHTS[weights](3)

    def second(rows: Any) -> Tensor:
        total = sum((cotangent(r) * r).sum() for r in rows)
        (first,) = torch.autograd.grad(total, W, create_graph=True)
        return torch.autograd.grad(first.square().sum(), W)[0]

    u = lambda z: torch.tanh(F.linear(z, W))  # noqa: E731
    expected = derivatives_along_lines(u, x, v, 2)
    expected[-1] = summed(expected[-1], w)
    torch.testing.assert_close(second(taylor(u, x, 2, v, weights=w)), second(expected))


def test_no_sums_are_kept_where_nothing_is_differentiated() -> None:
    x, v, W, _ = setting(3, 2)
    with torch.no_grad():
        *_, top = taylor(lambda z: torch.tanh(F.linear(z, W)), x, 2, v, weights=1.0)
    expected = derivatives_along_lines(lambda z: torch.tanh(F.linear(z, W)), x, v, 2)[-1].sum(0)
    torch.testing.assert_close(top, expected)
