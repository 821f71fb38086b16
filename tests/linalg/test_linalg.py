"""The linear algebra against dense solves, other libraries and defining identities."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linear_operator import to_linear_operator
from linear_operator.operators import KroneckerProductLinearOperator, SumKroneckerLinearOperator
from torch import Generator, Tensor

from kfac_pinn.linalg import (
    CountSketch,
    KroneckerInverse,
    KroneckerSum,
    Pairs,
    ProgressOfSolve,
    RelativeProgress,
    RelativeResidual,
    Stop,
    aligned,
    conjugate_gradients,
    damped_inverse,
    damped_solve,
    generator_for,
    geometric_indices,
    normal_equations,
    nystrom,
    pinv_solve,
    reduce_rows,
    sum_of_squares,
)

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 12)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def psd(seed: int, size: int, digits: float) -> Tensor:
    """A random symmetric matrix with eigenvalues 1 ... 10^-digits."""
    Q = torch.linalg.qr(normal(seed, size, size)).Q
    M = Q @ torch.diag(torch.logspace(0, -digits, size, dtype=torch.float64)) @ Q.mT
    return (M + M.mT) / 2


def pairs_of(seed: int, count: int, d_in: int, d_out: int, digits: float):
    return [
        (psd(seed + k, d_in, digits), psd(seed + 7 * k + 1, d_out, digits)) for k in range(count)
    ]


def dense_solve(F: KroneckerSum, V: Tensor) -> Tensor:
    return torch.linalg.solve(F.dense(), V.flatten()).reshape(V.shape)


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


class TestKronecker:
    @given(seeds, st.integers(1, 4), sizes, sizes)
    def test_product_is_the_dense_product(self, seed, count, d_in, d_out):
        F, V = KroneckerSum(pairs_of(seed, count, d_in, d_out, 2)), normal(seed, d_out, d_in)
        torch.testing.assert_close(F.product(V).flatten(), F.dense() @ V.flatten())
        batch = torch.stack([V, 2 * V])
        torch.testing.assert_close(F.product(batch)[1], 2 * F.product(V))

    @given(seeds, st.integers(1, 2), sizes, sizes, st.floats(0, 5.5))
    def test_solve_undoes_product_as_well_as_a_dense_solve(self, seed, count, d_in, d_out, digits):
        F = KroneckerSum(pairs_of(seed, count, d_in, d_out, digits))  # condition up to 1e11
        V = normal(seed, d_out, d_in)
        b = F.product(V)
        dense = relative(dense_solve(F, b), V)
        bound = 1e-14 * float(torch.linalg.cond(F.dense()))  # what any solver may lose
        assert relative(F.inverse().solve(b), V) <= 3 * dense + bound

    @given(seeds, sizes, sizes, st.floats(1, 5.5))
    def test_order_of_the_pairs_does_not_matter(self, seed, d_in, d_out, digits):
        pairs = pairs_of(seed, 2, d_in, d_out, digits)
        F, swapped, V = KroneckerSum(pairs), KroneckerSum(pairs[::-1]), normal(seed, d_out, d_in)
        b = F.product(V)
        error, other = (relative(x.inverse().solve(b), V) for x in (F, swapped))
        bound = 1e-14 * float(torch.linalg.cond(F.dense()))
        assert max(error, other) <= 10 * min(error, other) + bound

    def test_one_huge_and_one_tiny_pair(self):
        (A1, B1), (A2, B2) = pairs_of(3, 2, 20, 15, 3)
        for scale in (1e-8, 1.0, 1e8):
            F, V = KroneckerSum([(A1 * scale, B1), (A2, B2)]), normal(4, 15, 20)
            assert relative(F.inverse().solve(F.product(V)), V) < 1e-9

    @given(seeds, sizes, sizes)
    def test_agrees_with_linear_operator(self, seed, d_in, d_out):
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
    def test_many_pairs_are_solved_to_the_tolerance(self, seed, count, d_in, d_out):
        F = KroneckerSum(pairs_of(seed, count, d_in, d_out, 1))
        V = normal(seed, d_out, d_in)
        found = F.inverse().iterate(V, 1e-12, 500)
        assert relative(found.x, dense_solve(F, V)) < 1e-9
        assert relative(F.inverse().solve(V), dense_solve(F, V)) < 1e-9

    def test_small_sums_of_many_pairs_are_solved_as_a_whole(self):
        """Where conjugate gradients would stop at their limit, or lose digits."""
        F = KroneckerSum(pairs_of(0, 3, 9, 8, 4))
        V = normal(1, 8, 9)
        b = F.product(torch.stack([V, 2 * V]))
        found, bound = F.inverse().solve(b), 1e-14 * float(torch.linalg.cond(F.dense()))
        assert relative(found[0], V) < bound
        torch.testing.assert_close(found[1], 2 * found[0])

    def test_large_sums_of_many_pairs_are_iterated(self):
        F = KroneckerSum(pairs_of(0, 3, 31, 25, 1))
        inverse, V = F.inverse(), normal(1, 25, 31)
        assert inverse.lower is None
        assert relative(inverse.solve(F.product(V), tolerance=1e-12), V) < 1e-9

    def test_many_pairs_need_few_iterations_when_two_dominate(self):
        pairs = pairs_of(0, 2, 20, 15, 4)
        small = [(1e-4 * A, B) for A, B in pairs_of(9, 2, 20, 15, 1)]
        F = KroneckerSum([pairs[0], *small])
        assert F.inverse().iterate(normal(1, 15, 20), 1e-10, 100).iterations <= 40

    def test_three_pairs_of_which_two_are_alike_are_exact_at_once(self):
        (A1, B1), (A2, B2) = pairs_of(0, 2, 9, 8, 3)
        inverse = KroneckerSum([(A2, B2), (A1, B1), (A2, 3 * B2)]).inverse()
        assert inverse.iterate(normal(1, 8, 9), 1e-9, 100).iterations <= 2

    def test_stopping_short_warns(self):
        F, V = KroneckerSum(pairs_of(0, 3, 31, 25, 6)), normal(1, 25, 31)
        with pytest.warns(UserWarning, match="3 Kronecker pairs stopped") as said:
            X = F.inverse().solve(V, iterations=2)
        left = float((F.product(X) - V).norm() / V.norm())
        assert f"relative residual {left:.1e} " in str(said[0].message)

    def test_state_is_plain_tensors(self):
        F, V, file = KroneckerSum(pairs_of(0, 3, 5, 4, 2)), normal(1, 4, 5), io.BytesIO()
        inverse = F.inverse()
        torch.save(vars(inverse), file)
        file.seek(0)
        restored = KroneckerInverse(**torch.load(file, weights_only=True))
        assert torch.equal(restored.solve(V), inverse.solve(V))

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_singular_factors_give_finite_answers(self, count):
        pairs = [(torch.ones(4, 4).double(), torch.zeros(3, 3).double())] * (count - 1)
        pairs += [(torch.ones(4, 4).double(), torch.eye(3).double())]
        solution = KroneckerSum(pairs).inverse().diagonal_solve(normal(0, 3, 4))
        assert solution.isfinite().all()

    def test_float32(self):
        pairs = [(A.float(), B.float()) for A, B in pairs_of(0, 3, 6, 5, 1)]
        F, V = KroneckerSum(pairs), normal(0, 5, 6).float()
        assert F.inverse().solve(V).dtype == torch.float32
        assert relative(F.product(F.inverse().solve(V)), V) < 1e-4

    def test_errors_name_the_fix(self):
        with pytest.raises(ValueError, match="at least one"):
            KroneckerSum([])
        with pytest.raises(ValueError, match="differ in shape"):
            KroneckerSum([(torch.eye(2), torch.eye(3)), (torch.eye(3), torch.eye(3))])


class TestDense:
    @given(seeds, sizes, st.floats(1e-6, 1))
    def test_damped_solve(self, seed, size, damping):
        M, b = psd(seed, size, 4), normal(seed, size, 3)
        expected = torch.linalg.solve(M + damping * torch.eye(size, dtype=M.dtype), b)
        torch.testing.assert_close(damped_solve(M, b, damping), expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            damped_solve(M, b[:, 0], damping), damped_solve(M, b, damping)[:, 0]
        )

    def test_without_damping_a_singular_matrix_that_cholesky_takes_is_pseudo_inverted(self):
        """Where rounding leaves a pivot of 1e-17 instead of 0, Cholesky would answer with 1e17."""
        M = torch.tensor([[1.0, 0.0], [0.0, 1e-17]], dtype=torch.float64)
        assert not torch.linalg.cholesky_ex(M).info
        b = torch.ones(2, dtype=torch.float64)
        expected = torch.tensor([1.0, 0.0], dtype=torch.float64)
        torch.testing.assert_close(damped_solve(M, b), expected)
        torch.testing.assert_close(damped_inverse(M, torch.tensor([1.0, 0.0]))(b), expected / 2)
        torch.testing.assert_close(damped_inverse(M, 0.0, rtol=1e-18)(b)[1], 1e17 * b[1])

    @given(seeds, sizes)
    def test_damping_of_each_unknown(self, seed, size):
        M, b = psd(seed, size, 2), normal(seed, size, 3)
        damping = normal(seed + 1, size).abs() + 1e-3
        expected = torch.linalg.solve(M + damping.diag(), b)
        torch.testing.assert_close(damped_inverse(M, damping)(b), expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(
            damped_inverse(M, damping)(b[:, 0]), expected[:, 0], rtol=1e-7, atol=1e-9
        )

    def test_negative_eigenvalues_count_by_their_size(self):
        values = torch.tensor([-2.0, 1e-20, 1.0, -1e-20], dtype=torch.float64)
        vectors = torch.linalg.qr(normal(0, 4, 4)).Q
        M, b = vectors * values @ vectors.mT, normal(1, 4)
        torch.testing.assert_close(pinv_solve(M, b), torch.linalg.pinv(M, hermitian=True) @ b)
        assert float(pinv_solve(M, vectors[:, 0]) @ vectors[:, 0]) == pytest.approx(-0.5)

    def test_damped_solve_of_a_singular_matrix_is_the_pseudo_inverse(self):
        z = normal(0, 6, 2)
        M = z @ z.mT - 1e-14 * torch.eye(6, dtype=torch.float64)
        expected = torch.linalg.pinv(z @ z.mT, hermitian=True, rtol=1e-10) @ z[:, 0]
        torch.testing.assert_close(damped_solve(M, z[:, 0]), expected, rtol=1e-9, atol=1e-9)

    @given(seeds, sizes, st.integers(0, 12))
    def test_pinv_solve(self, seed, size, rank):
        z, b = normal(seed, size, min(rank, size)), normal(seed + 1, size, 2)
        M = z @ z.mT
        expected = torch.linalg.pinv(M, hermitian=True, rtol=1e-9) @ b
        torch.testing.assert_close(pinv_solve(M, b, rtol=1e-9), expected, rtol=1e-6, atol=1e-6)
        assert pinv_solve(M, b[:, 0]).shape == (size,)

    @given(seeds, st.integers(1, 40), st.integers(1, 8), st.integers(1, 15))
    def test_blocked_qr_keeps_the_least_squares_problem(self, seed, rows, columns, block):
        J, r = normal(seed, rows, columns), normal(seed + 1, rows)
        R, c = reduce_rows(zip(J.split(block), r.split(block), strict=True))
        assert R.shape == (min(rows, columns), columns) and c.shape == R.shape[:1]
        torch.testing.assert_close(R.mT @ R, J.mT @ J)
        torch.testing.assert_close(R.mT @ c, J.mT @ r)

    def test_blocked_qr_keeps_small_singular_values(self):
        J = torch.linalg.qr(normal(0, 300, 20)).Q * torch.logspace(0, -12, 20, dtype=torch.float64)
        R, _ = reduce_rows((rows, rows[:, 0]) for rows in J.split(64))
        torch.testing.assert_close(
            torch.linalg.svdvals(R), torch.linalg.svdvals(J), rtol=1e-3, atol=1e-17
        )

    def test_blocked_qr_of_nothing(self):
        with pytest.raises(ValueError, match="no blocks"):
            reduce_rows([])

    @pytest.mark.parametrize("columns", [1, 7, 300])
    def test_sum_of_squares(self, columns):
        J = normal(columns, 60, columns)
        total = sum_of_squares(J.split(25))
        torch.testing.assert_close(total, J.mT @ J)
        assert torch.equal(total, total.mT)
        with pytest.raises(ValueError, match="no rows"):
            sum_of_squares([])

    @pytest.mark.parametrize("columns", [5, 600])
    def test_normal_equations(self, columns):
        J, r = normal(columns, 60, columns), normal(0, 60)
        gramian, gradient = normal_equations(zip(J.split(25), r.split(25), strict=True))
        torch.testing.assert_close(gramian, J.mT @ J)
        torch.testing.assert_close(gradient, J.mT @ r)


class TestConjugateGradients:
    @given(seeds, sizes, st.floats(0, 3))
    def test_against_a_dense_solve(self, seed, size, digits):
        M, b = psd(seed, size, digits), normal(seed, size)
        found = conjugate_gradients(lambda v: M @ v, b, (RelativeResidual(1e-12),))
        torch.testing.assert_close(found.x, torch.linalg.solve(M, b), rtol=1e-7, atol=1e-7)
        assert found.stop in (Stop.RELATIVE_RESIDUAL, Stop.SOLVED)

    @given(seeds, sizes)
    def test_history_is_true(self, seed, size):
        M, b = psd(seed, size, 2), normal(seed, size)
        found = conjugate_gradients(
            lambda v: M @ v, b, (), iterations=3, start=normal(seed + 1, size)
        )
        x = found.x
        assert math.isclose(found.model_values[-1], float(x @ M @ x / 2 - b @ x), abs_tol=1e-10)
        assert math.isclose(found.residual_norms[-1], relative(M @ x, b), abs_tol=1e-10)
        assert (torch.tensor(found.model_values).diff() <= 1e-6).all()  # phi never grows

    def test_a_perfect_preconditioner_needs_one_iteration(self):
        M, b = psd(0, 9, 6), normal(1, 9)
        found = conjugate_gradients(
            lambda v: M @ v, b, preconditioner=lambda v: torch.linalg.solve(M, v)
        )
        assert found.iterations == 1 and found.stop is Stop.RELATIVE_RESIDUAL

    def test_any_shape_and_kept_iterates(self):
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

    def test_relative_progress_is_martens_rule(self):
        M, b = psd(0, 200, 5), normal(1, 200)
        found = conjugate_gradients(lambda v: M @ v, b, (RelativeProgress(5e-4),))
        phi, i = found.model_values, found.iterations
        k = max(10, math.ceil(0.1 * i))
        assert found.stop is Stop.RELATIVE_PROGRESS
        assert (phi[i] - phi[i - k]) / phi[i] < k * 5e-4
        assert (phi[i - 1] - phi[i - 1 - k]) / phi[i - 1] >= k * 5e-4

    def test_progress_of_the_solve_does_not_mind_where_it_starts(self):
        M, b = psd(0, 200, 5), normal(1, 200)
        whole = conjugate_gradients(lambda v: M @ v, b, (), iterations=40)
        found = conjugate_gradients(
            lambda v: M @ v, b, (ProgressOfSolve(5e-3),), start=0.95 * whole.x
        )
        phi, i = found.model_values, found.iterations
        k = max(10, i // 10)
        assert found.stop is Stop.PROGRESS_OF_SOLVE and phi[0] < 0
        assert phi[i - k] - phi[i] < 5e-3 * (phi[0] - phi[i])
        before = i - 1
        assert phi[before - k] - phi[before] >= 5e-3 * (phi[0] - phi[before]) or before <= k

    def test_a_rule_of_ones_own(self):
        M, b = psd(0, 12, 3), normal(1, 12)
        rule = lambda history: Stop.RULE if history.iterations == 3 else None  # noqa: E731
        found = conjugate_gradients(lambda v: M @ v, b, (rule,))
        assert found.stop is Stop.RULE and found.iterations == 3

    def test_negative_curvature_zero_and_nan_are_named(self):
        b = normal(0, 4)
        assert conjugate_gradients(lambda v: -v, b).stop is Stop.NEGATIVE_CURVATURE
        assert conjugate_gradients(lambda v: v * math.nan, b).stop is Stop.NOT_FINITE
        assert conjugate_gradients(lambda v: v, 0 * b).stop is Stop.SOLVED
        found = conjugate_gradients(lambda v: v, b)
        assert found.stop in (Stop.SOLVED, Stop.RELATIVE_RESIDUAL)

    def test_geometric_indices(self):
        assert geometric_indices(20, 1.3) == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18]
        assert geometric_indices(1) == [1]
        with pytest.raises(ValueError, match="above 1"):
            geometric_indices(5, 1.0)


class TestSketches:
    @pytest.mark.parametrize("hashes", [1, 2, 4])
    def test_count_sketch_is_unbiased_and_a_signed_sum(self, hashes):
        generator, identity = Generator().manual_seed(0), torch.eye(10, dtype=torch.float64)
        mean = torch.zeros(10, 10, dtype=torch.float64)
        for _ in range(2000):
            S = CountSketch(10, 6, generator, hashes)(identity)
            torch.testing.assert_close(S * hashes**0.5, (S * hashes**0.5).sign())
            assert (S.count_nonzero(dim=0) == hashes).all()
            mean += S.mT @ S / 2000
        assert (mean - identity).abs().max() < 0.05  # five standard deviations of 1/sqrt(6 * 2000)

    def test_more_hashes_keep_two_heavy_rows_apart(self):
        """One hash gives two of 40 rows the same of 10 buckets in 1 of 13 draws, and loses one."""
        heavy = torch.eye(40, 2, dtype=torch.float64)

        def share_of_loss(hashes):
            draws = (CountSketch(40, 10, Generator().manual_seed(s), hashes) for s in range(400))
            return sum(float(torch.linalg.svdvals(S(heavy))[-1]) < 1e-6 for S in draws) / 400

        assert 0.04 < share_of_loss(1) < 0.12
        assert share_of_loss(4) < 0.01

    @given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), seeds)
    def test_groups_are_the_rows_that_are_added(self, rows, size, hashes, seed):
        """As evenly as they can be."""
        hashes = min(hashes, size)
        sketch = CountSketch(rows, size, Generator().manual_seed(seed), hashes)
        J, found = normal(seed, rows, 3), torch.zeros(size, 3, dtype=torch.float64)
        for place, index, sign in sketch.groups():
            found[place] = (J[index] * sign[..., None]).sum(1) / sketch.scale
            counts = sign.count_nonzero(dim=1)
            assert counts.max() - counts.min() <= 1
            assert counts.sum() == rows
        torch.testing.assert_close(found, sketch(J))

    @pytest.mark.parametrize(("size", "hashes"), [(0, 1), (3, 0), (3, 4)])
    def test_a_count_sketch_that_cannot_be(self, size, hashes):
        with pytest.raises(ValueError, match=f"of {size} rows cannot have {hashes} hashes"):
            CountSketch(5, size, Generator(), hashes)
        with pytest.raises(ValueError, match="no rows"):
            CountSketch(5, 3, Generator()).of([])

    @pytest.mark.parametrize("size", [1, 3, 7])
    def test_blocks_of_rows_are_sketched_like_the_whole(self, size):
        """From the third block on, an offset that forgets one block is wrong."""
        J, sketch = normal(0, 20, 4), CountSketch(20, 6, Generator().manual_seed(1), 2)
        torch.testing.assert_close(sketch.of(J.split(size)), sketch(J))
        whole = [
            torch.cat(parts) for parts in zip(*aligned(J.split(size), J, J[:, 0]), strict=True)
        ]
        assert all(map(torch.equal, whole, (J, J, J[:, 0])))

    def test_count_sketch_of_vectors_and_its_seed(self):
        a, b = (CountSketch(50, 9, Generator().manual_seed(3)) for _ in range(2))
        J = normal(0, 50, 4)
        assert torch.equal(a(J), b(J))
        torch.testing.assert_close(a(J)[:, 1], a(J[:, 1]))

    @given(seeds)
    def test_nystrom_error_falls_with_the_rank_and_is_below(self, seed):
        A = psd(seed, 40, 12)
        errors, ranks = [], []
        for tail in (1e-2, 1e-5, 1e-9):
            found = nystrom(lambda V: A @ V, A, tail, Generator().manual_seed(seed))
            eye = torch.eye(40, dtype=torch.float64)
            gap = A - found.product(eye)
            assert torch.linalg.eigvalsh(gap)[0] > -1e-13  # Nystrom never exceeds A
            errors.append(float(gap.norm()))
            ranks.append(len(found.eigenvalues))
        assert errors == sorted(errors, reverse=True) and ranks == sorted(ranks)
        torch.testing.assert_close(found.U.mT @ found.U, torch.eye(ranks[-1], dtype=torch.float64))

    def test_nystrom_solve_and_preconditioner(self):
        A, b, damping = psd(0, 60, 10), normal(1, 60), 1e-6
        found = nystrom(lambda V: A @ V, A, 10 * damping, Generator().manual_seed(0))
        low_rank = found.product(torch.eye(60, dtype=torch.float64))
        expected = damped_solve(low_rank, b, damping)
        torch.testing.assert_close(found.solve(b, damping), expected, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(found.solve(b[:, None], damping)[:, 0], found.solve(b, damping))
        solve = conjugate_gradients(
            lambda v: A @ v + damping * v,
            b,
            preconditioner=lambda v: found.precondition(v, damping),
        )
        plain = conjugate_gradients(lambda v: A @ v + damping * v, b)
        assert solve.iterations < 25 < plain.iterations

    def test_nystrom_reaches_full_rank(self):
        A = psd(0, 11, 1)
        found = nystrom(lambda V: A @ V, A, 0.0, Generator().manual_seed(0))
        torch.testing.assert_close(found.product(A), A @ A)


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


def test_every_seed_and_step_has_a_stream_of_its_own() -> None:
    streams = {
        float(torch.rand((), generator=generator_for(seed, step, torch.device("cpu"))))
        for seed in range(12)
        for step in range(12)
    }
    assert len(streams) == 12 * 12
