"""Kronecker sums and their inverses against dense solves and another library."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_operator import to_linear_operator
from linear_operator.operators import KroneckerProductLinearOperator, SumKroneckerLinearOperator
from random_matrices import normal, psd, relative, seeds, sizes
from torch import Tensor

from kfac_pinn.linalg import KroneckerInverse, KroneckerSum


def pairs_of(seed: int, count: int, d_in: int, d_out: int, digits: float):
    return [
        (psd(seed + k, d_in, digits), psd(seed + 7 * k + 1, d_out, digits)) for k in range(count)
    ]


def dense_solve(F: KroneckerSum, V: Tensor) -> Tensor:
    return torch.linalg.solve(F.dense(), V.flatten()).reshape(V.shape)


@given(seeds, st.integers(1, 4), sizes, sizes)
def test_product_is_the_dense_product(seed, count, d_in, d_out):
    F, V = KroneckerSum(pairs_of(seed, count, d_in, d_out, 2)), normal(seed, d_out, d_in)
    torch.testing.assert_close(F.product(V).flatten(), F.dense() @ V.flatten())
    batch = torch.stack([V, 2 * V])
    torch.testing.assert_close(F.product(batch)[1], 2 * F.product(V))


@given(seeds, st.integers(1, 2), sizes, sizes, st.floats(0, 5.5))
def test_solve_undoes_product_as_well_as_a_dense_solve(seed, count, d_in, d_out, digits):
    F = KroneckerSum(pairs_of(seed, count, d_in, d_out, digits))  # condition up to 1e11
    V = normal(seed, d_out, d_in)
    b = F.product(V)
    dense = relative(dense_solve(F, b), V)
    bound = 1e-14 * float(torch.linalg.cond(F.dense()))  # what any solver may lose
    assert relative(F.inverse().solve(b), V) <= 3 * dense + bound


@given(seeds, sizes, sizes, st.floats(1, 5.5))
def test_order_of_the_pairs_does_not_matter(seed, d_in, d_out, digits):
    pairs = pairs_of(seed, 2, d_in, d_out, digits)
    F, swapped, V = KroneckerSum(pairs), KroneckerSum(pairs[::-1]), normal(seed, d_out, d_in)
    b = F.product(V)
    error, other = (relative(x.inverse().solve(b), V) for x in (F, swapped))
    bound = 1e-14 * float(torch.linalg.cond(F.dense()))
    assert max(error, other) <= 10 * min(error, other) + bound


def test_one_huge_and_one_tiny_pair():
    (A1, B1), (A2, B2) = pairs_of(3, 2, 20, 15, 3)
    for scale in (1e-8, 1.0, 1e8):
        F, V = KroneckerSum([(A1 * scale, B1), (A2, B2)]), normal(4, 15, 20)
        assert relative(F.inverse().solve(F.product(V)), V) < 1e-9


@given(seeds, sizes, sizes)
def test_agrees_with_linear_operator(seed, d_in, d_out):
    pairs = pairs_of(seed, 2, d_in, d_out, 2)
    V = normal(seed, d_out, d_in)
    terms = [
        KroneckerProductLinearOperator(to_linear_operator(B), to_linear_operator(A))
        for A, B in pairs
    ]
    expected = SumKroneckerLinearOperator(*terms).solve(V.flatten()[:, None]).reshape(V.shape)
    # its whitening by one pair is the less accurate of the two
    assert relative(KroneckerSum(pairs).inverse().solve(V), expected) < 1e-8


@given(seeds, st.integers(3, 5), sizes, sizes)
def test_many_pairs_are_solved_to_the_tolerance(seed, count, d_in, d_out):
    F = KroneckerSum(pairs_of(seed, count, d_in, d_out, 1))
    V = normal(seed, d_out, d_in)
    found = F.inverse().iterate(V, 1e-12, 500)
    assert relative(found.x, dense_solve(F, V)) < 1e-9
    assert relative(F.inverse().solve(V), dense_solve(F, V)) < 1e-9


def test_small_sums_of_many_pairs_are_solved_as_a_whole():
    """Where conjugate gradients would stop at their limit, or lose digits."""
    F = KroneckerSum(pairs_of(0, 3, 9, 8, 4))
    V = normal(1, 8, 9)
    b = F.product(torch.stack([V, 2 * V]))
    found, bound = F.inverse().solve(b), 1e-14 * float(torch.linalg.cond(F.dense()))
    assert relative(found[0], V) < bound
    torch.testing.assert_close(found[1], 2 * found[0])


def test_large_sums_of_many_pairs_are_iterated():
    F = KroneckerSum(pairs_of(0, 3, 31, 25, 1))
    inverse, V = F.inverse(), normal(1, 25, 31)
    assert inverse.lower is None
    assert relative(inverse.solve(F.product(V), tolerance=1e-12), V) < 1e-9


def test_many_pairs_need_few_iterations_when_two_dominate():
    pairs = pairs_of(0, 2, 20, 15, 4)
    small = [(1e-4 * A, B) for A, B in pairs_of(9, 2, 20, 15, 1)]
    F = KroneckerSum([pairs[0], *small])
    assert F.inverse().iterate(normal(1, 15, 20), 1e-10, 100).iterations <= 40


def test_three_pairs_of_which_two_are_alike_are_exact_at_once():
    (A1, B1), (A2, B2) = pairs_of(0, 2, 9, 8, 3)
    inverse = KroneckerSum([(A2, B2), (A1, B1), (A2, 3 * B2)]).inverse()
    assert inverse.iterate(normal(1, 8, 9), 1e-9, 100).iterations <= 2


def test_stopping_short_warns():
    F, V = KroneckerSum(pairs_of(0, 3, 31, 25, 6)), normal(1, 25, 31)
    with pytest.warns(UserWarning, match="3 Kronecker pairs stopped") as said:
        X = F.inverse().solve(V, iterations=2)
    left = float((F.product(X) - V).norm() / V.norm())
    assert f"relative residual {left:.1e} " in str(said[0].message)


def test_state_is_plain_tensors():
    F, V, file = KroneckerSum(pairs_of(0, 3, 5, 4, 2)), normal(1, 4, 5), io.BytesIO()
    inverse = F.inverse()
    torch.save(vars(inverse), file)
    file.seek(0)
    restored = KroneckerInverse(**torch.load(file, weights_only=True))
    assert torch.equal(restored.solve(V), inverse.solve(V))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_singular_factors_give_finite_answers(count):
    pairs = [(torch.ones(4, 4).double(), torch.zeros(3, 3).double())] * (count - 1)
    pairs += [(torch.ones(4, 4).double(), torch.eye(3).double())]
    solution = KroneckerSum(pairs).inverse().diagonal_solve(normal(0, 3, 4))
    assert solution.isfinite().all()


def test_float32():
    pairs = [(A.float(), B.float()) for A, B in pairs_of(0, 3, 6, 5, 1)]
    F, V = KroneckerSum(pairs), normal(0, 5, 6).float()
    assert F.inverse().solve(V).dtype == torch.float32
    assert relative(F.product(F.inverse().solve(V)), V) < 1e-4


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="at least one"):
        KroneckerSum([])
    with pytest.raises(ValueError, match="differ in shape"):
        KroneckerSum([(torch.eye(2), torch.eye(3)), (torch.eye(3), torch.eye(3))])
