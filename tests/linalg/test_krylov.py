"""Conjugate gradients against dense solves, and their rules to stop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_matrices import normal, psd, relative, seeds, sizes

from kfac_pinn.linalg import (
    ProgressOfSolve,
    RelativeProgress,
    RelativeResidual,
    Stop,
    conjugate_gradients,
    geometric_indices,
)


@given(seeds, sizes, st.floats(0, 3))
def test_against_a_dense_solve(seed, size, digits):
    M, b = psd(seed, size, digits), normal(seed, size)
    found = conjugate_gradients(lambda v: M @ v, b, (RelativeResidual(1e-12),))
    torch.testing.assert_close(found.x, torch.linalg.solve(M, b), rtol=1e-7, atol=1e-7)
    assert found.stop in (Stop.RELATIVE_RESIDUAL, Stop.SOLVED)


@given(seeds, sizes)
def test_history_is_true(seed, size):
    M, b = psd(seed, size, 2), normal(seed, size)
    found = conjugate_gradients(lambda v: M @ v, b, (), iterations=3, start=normal(seed + 1, size))
    x = found.x
    assert math.isclose(found.model_values[-1], float(x @ M @ x / 2 - b @ x), abs_tol=1e-10)
    assert math.isclose(found.residual_norms[-1], relative(M @ x, b), abs_tol=1e-10)
    assert (torch.tensor(found.model_values).diff() <= 1e-6).all()  # phi never grows


def test_a_perfect_preconditioner_needs_one_iteration():
    M, b = psd(0, 9, 6), normal(1, 9)
    found = conjugate_gradients(
        lambda v: M @ v, b, preconditioner=lambda v: torch.linalg.solve(M, v)
    )
    assert found.iterations == 1 and found.stop is Stop.RELATIVE_RESIDUAL


def test_any_shape_and_kept_iterates():
    M, b = psd(0, 12, 3), normal(1, 3, 4)
    keep = geometric_indices(20)
    found = conjugate_gradients(lambda v: (M @ v.flatten()).reshape(3, 4), b, keep=keep)
    indices = [i for i, _ in found.kept]
    assert indices[:-1] == [i for i in keep if i < found.iterations]
    assert indices[-1] == found.iterations and torch.equal(found.kept[-1][1], found.x)
    again = conjugate_gradients(
        lambda v: (M @ v.flatten()).reshape(3, 4), b, iterations=found.kept[3][0]
    )
    assert torch.equal(again.x, found.kept[3][1]) and again.stop is Stop.ITERATION_LIMIT


def test_relative_progress_is_martens_rule():
    M, b = psd(0, 200, 5), normal(1, 200)
    found = conjugate_gradients(lambda v: M @ v, b, (RelativeProgress(5e-4),))
    phi, i = found.model_values, found.iterations
    k = max(10, math.ceil(0.1 * i))
    assert found.stop is Stop.RELATIVE_PROGRESS
    assert (phi[i] - phi[i - k]) / phi[i] < k * 5e-4
    assert (phi[i - 1] - phi[i - 1 - k]) / phi[i - 1] >= k * 5e-4


def test_progress_of_the_solve_does_not_mind_where_it_starts():
    M, b = psd(0, 200, 5), normal(1, 200)
    whole = conjugate_gradients(lambda v: M @ v, b, (), iterations=40)
    found = conjugate_gradients(lambda v: M @ v, b, (ProgressOfSolve(5e-3),), start=0.95 * whole.x)
    phi, i = found.model_values, found.iterations
    k = max(10, i // 10)
    assert found.stop is Stop.PROGRESS_OF_SOLVE and phi[0] < 0
    assert phi[i - k] - phi[i] < 5e-3 * (phi[0] - phi[i])
    before = i - 1
    assert phi[before - k] - phi[before] >= 5e-3 * (phi[0] - phi[before]) or before <= k


def test_a_rule_of_ones_own():
    M, b = psd(0, 12, 3), normal(1, 12)
    rule = lambda history: Stop.RULE if history.iterations == 3 else None  # noqa: E731
    found = conjugate_gradients(lambda v: M @ v, b, (rule,))
    assert found.stop is Stop.RULE and found.iterations == 3


def test_negative_curvature_zero_and_nan_are_named():
    b = normal(0, 4)
    assert conjugate_gradients(lambda v: -v, b).stop is Stop.NEGATIVE_CURVATURE
    assert conjugate_gradients(lambda v: v * math.nan, b).stop is Stop.NOT_FINITE
    assert conjugate_gradients(lambda v: v, 0 * b).stop is Stop.SOLVED
    found = conjugate_gradients(lambda v: v, b)
    assert found.stop in (Stop.SOLVED, Stop.RELATIVE_RESIDUAL)


def test_geometric_indices():
    assert geometric_indices(20, 1.3) == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18]
    assert geometric_indices(1) == [1]
    with pytest.raises(ValueError, match="above 1"):
        geometric_indices(5, 1.0)
