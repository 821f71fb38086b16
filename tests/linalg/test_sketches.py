"""Sketches against their means and dense oracles; every seed has a stream of its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_matrices import normal, psd, seeds
from torch import Generator

from kfac_pinn.linalg import (
    CountSketch,
    aligned,
    conjugate_gradients,
    damped_solve,
    generator_for,
    nystrom,
    pivoted,
)


@pytest.mark.parametrize("hashes", [1, 2, 4])
def test_count_sketch_is_unbiased_and_a_signed_sum(hashes):
    generator, identity = Generator().manual_seed(0), torch.eye(10, dtype=torch.float64)
    mean = torch.zeros(10, 10, dtype=torch.float64)
    for _ in range(2000):
        S = CountSketch(10, 6, generator, hashes)(identity)
        torch.testing.assert_close(S * hashes**0.5, (S * hashes**0.5).sign())
        assert (S.count_nonzero(dim=0) == hashes).all()
        mean += S.mT @ S / 2000
    assert (mean - identity).abs().max() < 0.05  # five standard deviations of 1/sqrt(6 * 2000)


def test_more_hashes_keep_two_heavy_rows_apart():
    """One hash gives two of 40 rows the same of 10 buckets in 1 of 13 draws, and loses one."""
    heavy = torch.eye(40, 2, dtype=torch.float64)

    def share_of_loss(hashes):
        draws = (CountSketch(40, 10, Generator().manual_seed(s), hashes) for s in range(400))
        return sum(float(torch.linalg.svdvals(S(heavy))[-1]) < 1e-6 for S in draws) / 400

    assert 0.04 < share_of_loss(1) < 0.12
    assert share_of_loss(4) < 0.01


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 3), seeds)
def test_groups_are_the_rows_that_are_added(rows, size, hashes, seed):
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
def test_a_count_sketch_that_cannot_be(size, hashes):
    with pytest.raises(ValueError, match=f"of {size} rows cannot have {hashes} hashes"):
        CountSketch(5, size, Generator(), hashes)
    with pytest.raises(ValueError, match="no rows"):
        CountSketch(5, 3, Generator()).of([])


@pytest.mark.parametrize("size", [1, 3, 7])
def test_blocks_of_rows_are_sketched_like_the_whole(size):
    """From the third block on, an offset that forgets one block is wrong."""
    J, sketch = normal(0, 20, 4), CountSketch(20, 6, Generator().manual_seed(1), 2)
    torch.testing.assert_close(sketch.of(J.split(size)), sketch(J))
    whole = [torch.cat(parts) for parts in zip(*aligned(J.split(size), J, J[:, 0]), strict=True)]
    assert all(map(torch.equal, whole, (J, J, J[:, 0])))


def test_count_sketch_of_vectors_and_its_seed():
    a, b = (CountSketch(50, 9, Generator().manual_seed(3)) for _ in range(2))
    J = normal(0, 50, 4)
    assert torch.equal(a(J), b(J))
    torch.testing.assert_close(a(J)[:, 1], a(J[:, 1]))


@given(seeds)
def test_nystrom_error_falls_with_the_rank_and_is_below(seed):
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


def test_nystrom_solve_and_preconditioner():
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


def test_nystrom_reaches_full_rank():
    A = psd(0, 11, 1)
    found = nystrom(lambda V: A @ V, A, 0.0, Generator().manual_seed(0))
    torch.testing.assert_close(found.product(A), A @ A)


def test_every_seed_and_step_has_a_stream_of_its_own() -> None:
    streams = {
        float(torch.rand((), generator=generator_for(seed, step, torch.device("cpu"))))
        for seed in range(12)
        for step in range(12)
    }
    assert len(streams) == 12 * 12


@pytest.mark.parametrize("decay", [0.5, 0.8])
def test_pivoted_cholesky_is_below_and_within_its_bound(decay):
    """What is left of A is positive semi-definite, and in the mean as small as was proved."""
    size, rank, eps = 60, 8, 1.0
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    values = decay ** torch.arange(size, dtype=torch.float64)
    A = (basis * values) @ basis.mT
    beyond = float(values[rank:].sum())
    # Theorem 5.1: so many columns for (1 + eps) of the best rank-8 approximation and eta of all
    enough = rank / eps + rank * math.log(float(values.sum()) / (0.1 * beyond))
    left = []
    for seed in range(40):
        counted = []

        def columns(index, counted=counted):
            counted.append(len(index))
            return A[:, index]

        found = pivoted(columns, A.diagonal(), 1.1 * (1 + eps) * beyond, generator_for(seed, 0))
        rest = A - found.product(torch.eye(size, dtype=torch.float64))
        assert torch.linalg.eigvalsh(rest).min() > -1e-12
        assert rest.trace() <= 1.1 * (1 + eps) * beyond
        left.append(sum(counted))
    # Blocks double, and may overshoot by a factor of two
    assert sum(left) / len(left) <= 2 * enough


def test_pivoted_cholesky_reaches_full_rank_and_solves():
    A = torch.randn(30, 12, dtype=torch.float64)
    A = A @ A.mT
    found = pivoted(lambda i: A[:, i], A.diagonal(), 0.0, generator_for(0, 0))
    torch.testing.assert_close(found.product(torch.eye(30, dtype=torch.float64)), A)
    v = torch.randn(30, dtype=torch.float64)
    expected = torch.linalg.solve(A + 1e-3 * torch.eye(30, dtype=torch.float64), v)
    torch.testing.assert_close(found.solve(v, 1e-3), expected, rtol=1e-7, atol=1e-7)


def test_pivots_are_where_most_is_left():
    """Two heavy rows are found whatever the seed; nothing is drawn twice."""
    A = torch.diag(torch.tensor([1e-9] * 20 + [5.0, 3.0], dtype=torch.float64))
    for seed in range(20):
        found = pivoted(lambda i: A[:, i], A.diagonal(), 1e-6, generator_for(seed, 0))
        assert found.eigenvalues[:2].tolist() == pytest.approx([5.0, 3.0])


def test_pivoted_cholesky_of_nothing_is_of_rank_zero():
    found = pivoted(lambda i: torch.zeros(5, len(i)), torch.zeros(5), 0.0, generator_for(0, 0))
    assert found.U.shape == (5, 0)
    assert found.solve(torch.ones(5), 0.5).tolist() == [2.0] * 5
