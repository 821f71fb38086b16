"""Remembered pairs and conjugate directions against dense solves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_matrices import normal, psd

from kfac_pinn.linalg import Pairs, conjugate_gradients


@given(n=st.integers(2, 14), spread=st.floats(1, 10), seed=st.integers(0, 10**6))
def test_conjugate_directions_end_after_n_steps(n: int, spread: float, seed: int) -> None:
    """A spectrum of any spread is solved in n products once every direction is conjugate to all."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, spread, n, dtype=torch.float64)
    A, b = (Q * values) @ Q.T, Q @ values  # the solution has n equal parts
    found = conjugate_gradients(A.__matmul__, b, stop=(), iterations=n, conjugate=True)
    error = (found.x - Q.sum(1)).norm() / Q.sum(1).norm()
    assert error < 1e-13 * 10**spread


def test_products_of_remembered_pairs_are_kept_up_to_date():
    pairs = Pairs.none(normal(0, 9))
    for seed, count in enumerate((2, 3, 1, 5, 4)):  # the oldest of at most seven are dropped
        S = normal(seed, count, 9)
        pairs = pairs.join(list(zip(S, S + 0.1 * normal(seed + 9, count, 9), strict=True)), 7)
        torch.testing.assert_close(pairs.SY.triu(), (pairs.S @ pairs.Y.T).triu())
        torch.testing.assert_close(pairs.SS.triu(), (pairs.S @ pairs.S.T).triu())
    assert len(pairs.S) == 7


@pytest.mark.parametrize("damping", [0.0, 0.3, 40.0])
def test_the_last_remembered_pair_is_solved_exactly_under_damping(damping: float) -> None:
    """H (y + damping s) = s, the secant condition of A + damping I."""
    A, S = psd(3, 9, 9), normal(4, 5, 9)
    pairs = Pairs.none(normal(0, 9)).join(list(zip(S, S @ A, strict=True)), 7)
    H = pairs.correct(lambda v: v / (1 + damping), damping)
    s, y = pairs.S[-1], pairs.Y[-1]
    torch.testing.assert_close(H(y + damping * s), s)
