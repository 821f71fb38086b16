"""Symmetric solves and reduced rows against dense solves and their defining identities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_matrices import normal, psd, seeds, sizes
from torch import Tensor

from kfac_pinn.linalg import (
    damped_inverse,
    damped_solve,
    normal_equations,
    pinv_solve,
    reduce_rows,
    sum_of_squares,
)


@given(seeds, sizes, st.floats(1e-6, 1))
def test_damped_solve(seed, size, damping):
    M, b = psd(seed, size, 4), normal(seed, size, 3)
    expected = torch.linalg.solve(M + damping * torch.eye(size, dtype=M.dtype), b)
    torch.testing.assert_close(damped_solve(M, b, damping), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(damped_solve(M, b[:, 0], damping), damped_solve(M, b, damping)[:, 0])


def test_without_damping_a_singular_matrix_that_cholesky_takes_is_pseudo_inverted():
    """Where rounding leaves a pivot of 1e-17 instead of 0, Cholesky would answer with 1e17."""
    M = torch.tensor([[1.0, 0.0], [0.0, 1e-17]], dtype=torch.float64)
    assert not torch.linalg.cholesky_ex(M).info
    b = torch.ones(2, dtype=torch.float64)
    expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(damped_solve(M, b), expected)
    torch.testing.assert_close(damped_inverse(M, torch.tensor([1.0, 0.0]))(b), expected / 2)
    torch.testing.assert_close(damped_inverse(M, 0.0, rtol=1e-18)(b)[1], 1e17 * b[1])


@given(seeds, sizes)
def test_damping_of_each_unknown(seed, size):
    M, b = psd(seed, size, 2), normal(seed, size, 3)
    damping = normal(seed + 1, size).abs() + 1e-3
    expected = torch.linalg.solve(M + damping.diag(), b)
    torch.testing.assert_close(damped_inverse(M, damping)(b), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        damped_inverse(M, damping)(b[:, 0]), expected[:, 0], rtol=1e-7, atol=1e-9
    )


def test_a_damping_below_the_rounding_of_single_precision_still_counts():
    """In a long run J J^T grew, its Cholesky factor failed, and every step was lost."""
    J = (100 * normal(0, 60, 40)).round()  # single precision has M to the last digit
    M, b, damping = (J @ J.mT).float(), (J @ normal(1, 40)).float(), 1e-2
    assert torch.equal(M.double(), J @ J.mT)
    assert torch.linalg.cholesky_ex(M + damping * torch.eye(60)).info
    found = damped_solve(M, b, damping)
    expected = torch.linalg.solve(M.double() + damping * torch.eye(60).double(), b.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=0)


def test_negative_eigenvalues_count_by_their_size():
    values = torch.tensor([-2.0, 1e-20, 1.0, -1e-20], dtype=torch.float64)
    vectors = torch.linalg.qr(normal(0, 4, 4)).Q
    M, b = vectors * values @ vectors.mT, normal(1, 4)
    torch.testing.assert_close(pinv_solve(M, b), torch.linalg.pinv(M, hermitian=True) @ b)
    assert float(pinv_solve(M, vectors[:, 0]) @ vectors[:, 0]) == pytest.approx(-0.5)


def test_damped_solve_of_a_singular_matrix_is_the_pseudo_inverse():
    z = normal(0, 6, 2)
    M = z @ z.mT - 1e-14 * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.pinv(z @ z.mT, hermitian=True, rtol=1e-10) @ z[:, 0]
    torch.testing.assert_close(damped_solve(M, z[:, 0]), expected, rtol=1e-9, atol=1e-9)


@given(seeds, sizes, st.integers(0, 12))
def test_pinv_solve(seed, size, rank):
    z, b = normal(seed, size, min(rank, size)), normal(seed + 1, size, 2)
    M = z @ z.mT
    expected = torch.linalg.pinv(M, hermitian=True, rtol=1e-9) @ b
    torch.testing.assert_close(pinv_solve(M, b, rtol=1e-9), expected, rtol=1e-6, atol=1e-6)
    assert pinv_solve(M, b[:, 0]).shape == (size,)


@given(seeds, st.integers(1, 40), st.integers(1, 8), st.integers(1, 15))
def test_blocked_qr_keeps_the_least_squares_problem(seed, rows, columns, block):
    J, r = normal(seed, rows, columns), normal(seed + 1, rows)
    R, c = reduce_rows(zip(J.split(block), r.split(block), strict=True))
    assert R.shape == (min(rows, columns), columns) and c.shape == R.shape[:1]
    torch.testing.assert_close(R.mT @ R, J.mT @ J)
    torch.testing.assert_close(R.mT @ c, J.mT @ r)


def test_blocked_qr_keeps_small_singular_values():
    J = torch.linalg.qr(normal(0, 300, 20)).Q * torch.logspace(0, -12, 20, dtype=torch.float64)
    R, _ = reduce_rows((rows, rows[:, 0]) for rows in J.split(64))
    torch.testing.assert_close(
        torch.linalg.svdvals(R), torch.linalg.svdvals(J), rtol=1e-3, atol=1e-17
    )


def test_blocked_qr_of_nothing():
    with pytest.raises(ValueError, match="no blocks"):
        reduce_rows([])


@pytest.mark.parametrize("columns", [1, 7, 300])
def test_sum_of_squares(columns):
    J = normal(columns, 60, columns)
    total = sum_of_squares(J.split(25))
    torch.testing.assert_close(total, J.mT @ J)
    assert torch.equal(total, total.mT)
    with pytest.raises(ValueError, match="no rows"):
        sum_of_squares([])


@pytest.mark.parametrize("layout", [Tensor.contiguous, lambda J: J.mT.contiguous().mT])
def test_squares_of_many_wide_rows(layout):
    """Above some width rows are copied piece by piece; the last piece is shorter."""
    J = layout(normal(0, 1300, 200))
    torch.testing.assert_close(sum_of_squares([J[:1100], J[1100:1100], J[1100:]]), J.mT @ J)


@pytest.mark.parametrize("columns", [5, 600])
def test_normal_equations(columns):
    J, r = normal(columns, 60, columns), normal(0, 60)
    gramian, gradient = normal_equations(zip(J.split(25), r.split(25), strict=True))
    torch.testing.assert_close(gramian, J.mT @ J)
    torch.testing.assert_close(gradient, J.mT @ r)
