"""Kernels and sketches against dense J, in batches too small to hold more than a row or two."""

from itertools import combinations
from unittest import mock

import pytest
import torch
from small_problems import small_case
from torch import Generator, nn

from kfac_pinn import (
    ENGD,
    SPRING,
    MonteCarlo,
    NystromKernel,
    PivotedKernel,
    SampleSpace,
    laplacian,
    linearize,
)
from kfac_pinn.curvature.compression import Exact, Last, Sketch, add_ridge
from kfac_pinn.curvature.preconditioners import NystromPreconditioner, gramian_product
from kfac_pinn.curvature.sample_space import (
    ExactKernel,
    kernel_columns,
    kernel_diagonal,
    kernel_product,
)
from kfac_pinn.linalg import CountSketch, rows_at_once


@pytest.fixture
def linearization():
    model, residuals = small_case(n=20)
    return linearize(residuals, list(model.parameters()))


def in_batches_of(rows, linearization):
    """Patches the memory policy; three batches and more are made of 20 points."""
    return mock.patch("kfac_pinn.linalg.memory.NUMBERS", rows * linearization.size)


def test_the_memory_policy_counts_numbers_and_allows_one_row():
    with mock.patch("kfac_pinn.linalg.memory.NUMBERS", 12):
        assert [rows_at_once(c) for c in (0, 1, 5, 12, 13)] == [12, 12, 2, 1, 1]


@pytest.mark.parametrize("rows", [1, 3])
def test_products_in_batches(linearization, rows):
    J = linearization.rows()
    U, V = torch.randn(len(J), 3, dtype=J.dtype), torch.randn(J.shape[1], 3, dtype=J.dtype)
    with in_batches_of(rows, linearization):
        assert len(list(linearization.batches())) > 5
        torch.testing.assert_close(kernel_product(linearization, U), J @ (J.mT @ U))
        torch.testing.assert_close(gramian_product(linearization, V), J.mT @ (J @ V))


def sketched_by_hand(linearization, size, hashes):
    """Of each term's rows and residual a sketch of its own."""
    generator, parts = Generator().manual_seed(5), []
    both = torch.cat([linearization.rows(), linearization.residual[:, None]], dim=1)
    for rows in linearization.split(both):
        own = round(size * len(rows) / len(both))
        parts.append(CountSketch(len(rows), own, generator, hashes)(rows))
    return torch.cat(parts).split([linearization.size, 1], dim=1)


@pytest.mark.parametrize("hashes", [1, 2])
def test_a_sketched_step_is_that_of_the_sketched_problem(linearization, hashes):
    """From the factors of layers, which never make J itself."""
    A, b = sketched_by_hand(linearization, 12, hashes)
    expected = -torch.linalg.solve(A.mT @ A + 1e-3 * torch.eye(A.shape[1], dtype=A.dtype), A.mT @ b)
    model = Sketch(12, hashes)(linearization, Generator().manual_seed(5), Last())
    assert model.sketched
    torch.testing.assert_close(model.step(1e-3), expected[:, 0], rtol=1e-7, atol=1e-9)
    g = torch.randn(linearization.size, dtype=torch.float64)
    expected = -torch.linalg.solve(A.mT @ A + 1e-3 * torch.eye(A.shape[1], dtype=A.dtype), g)
    torch.testing.assert_close(model.solver(g)(1e-3), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_term_that_mixes_points_is_sketched_in_batches(rows):
    """Its rows come from autograd, a few at once."""
    model, x = nn.Linear(2, 2).double(), torch.randn(9, 2, dtype=torch.float64)

    def mixed():
        u = model(x).tanh().sum(1)
        return u - u.mean(), model(x)[:, 0]

    found = linearize(mixed, list(model.parameters()))
    assert found.terms[0].rest is not None
    A, b = sketched_by_hand(found, 8, 1)
    with in_batches_of(rows, found):
        SJ, Sr = found.sketched(8, Generator().manual_seed(5))
    torch.testing.assert_close(SJ, A)
    torch.testing.assert_close(Sr, b[:, 0])


def test_the_rows_of_a_ridge_are_sketched_too(linearization):
    """S J + S' diag(sqrt w): one signed entry more in each column."""
    weights = torch.linspace(0, 2, linearization.size, dtype=torch.float64)
    A, _ = sketched_by_hand(linearization, 12, 1)
    change = A.clone()
    add_ridge(change, weights.sqrt(), Generator().manual_seed(0))
    change -= A
    assert (change.count_nonzero(dim=0) == (weights > 0)).all()
    torch.testing.assert_close(change.square().sum(0), weights)
    model = Sketch(12)(linearization.with_ridge(weights), Generator().manual_seed(5), Last())
    assert model.S.square().sum() > A.square().sum()


def test_exact_in_batches(linearization):
    for damping in (0.0, 1.0):  # by QR, and by the Gramian or kernel
        whole = Exact()(linearization, Generator(), Last(damping)).step(1e-2)
        with in_batches_of(3, linearization):
            batched = Exact()(linearization, Generator(), Last(damping)).step(1e-2)
        torch.testing.assert_close(batched, whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_ridge_in_batches(linearization, rows):
    """The rows sqrt(w_i) e_i, from the third batch on too."""
    weights = torch.linspace(0, 2, linearization.size, dtype=torch.float64)
    ridged = linearization.with_ridge(weights)
    damped = linearization.gramian() + weights.diag() + 1e-2 * torch.eye(len(weights)).double()
    expected = -torch.linalg.solve(damped, ridged.gradient)
    for level in (0.0, 1.0):
        with in_batches_of(rows, linearization):
            found = Exact()(ridged, Generator(), Last(level)).step(1e-2)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_random_numbers_follow_step_and_seed(linearization):
    u = linearization.residual

    def solution(seed, step):
        return NystromKernel(tail=1e3, seed=seed).factor(linearization, 1e-3, step)(u)

    assert torch.equal(solution(0, 1), solution(0, 1))
    assert not torch.equal(solution(0, 1), solution(0, 2))
    assert not torch.equal(solution(0, 1), solution(1, 1))
    draws = [
        torch.cat(MonteCarlo(seed).cotangents(linearization, step))
        for seed, step in ((0, 1), (0, 2), (1, 1), (1, 2))
    ]
    assert all(not torch.equal(a, b) for a, b in combinations(draws, 2))
    (default,) = MonteCarlo().cotangents(linearization, 1)[:1]
    assert torch.equal(default, MonteCarlo(0).cotangents(linearization, 1)[0])
    damping, v = (
        torch.full((linearization.size,), 1e-3).to(u),
        torch.randn(linearization.size).to(u),
    )

    def preconditioned(seed):
        return NystromPreconditioner(tail=1e6, seed=seed).factor(linearization, damping)(v)

    assert torch.equal(preconditioned(0), preconditioned(0))
    assert not torch.equal(preconditioned(0), preconditioned(1))


@pytest.mark.parametrize("damping", [1e-8, 1e-4, 1.0])
def test_the_rank_follows_the_damping(linearization, damping):
    """What is left out is `tail` times the damping: so is the error, whatever the damping."""
    u, K = linearization.residual, linearization.kernel()
    expected = torch.linalg.solve(K + damping * torch.eye(len(K)).to(K), u)
    found = NystromKernel(tail=1e-3).factor(linearization, damping, 0)(u)
    assert (found - expected).norm() <= 1e-2 * expected.norm()


def test_kernel_of_a_frozen_weight_with_a_trained_bias():
    torch.manual_seed(0)
    layers = nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1)
    model, x = nn.Sequential(*layers).double(), torch.rand(6, 2, dtype=torch.float64)
    model[2].weight.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = linearize(lambda: (laplacian(model, x), model(x)), trained)
    J = found.rows()
    assert J.shape[1] == sum(p.numel() for p in trained)
    for factored in (True, False):
        with mock.patch.object(type(found), "factored_is_cheaper", lambda *_, f=factored: f):
            torch.testing.assert_close(found.kernel(), J @ J.mT)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_columns_and_diagonal_of_the_kernel(linearization, rows):
    J = linearization.rows()
    K, index = J @ J.mT, torch.tensor([7, 0, 21])
    with in_batches_of(rows, linearization):
        torch.testing.assert_close(kernel_columns(linearization, index), K[:, index])
        torch.testing.assert_close(kernel_diagonal(linearization), K.diagonal())


@pytest.mark.parametrize("kernel", [NystromKernel(tail=1e-8), PivotedKernel(tail=1e-8)])
def test_approximate_kernels_with_small_tails_are_exact(linearization, kernel):
    u, damping = torch.randn(len(linearization.residual), dtype=torch.float64), 1e-4
    J = linearization.rows()
    dense = J @ J.mT + damping * torch.eye(len(J), dtype=J.dtype)
    found = kernel.factor(linearization, damping, 3)(u)
    torch.testing.assert_close(found, torch.linalg.solve(dense, u), rtol=1e-5, atol=1e-5)
    exact = ExactKernel().factor(linearization, damping, 3)(u)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", ["ENGD", "SPRING"])
def test_steps_by_pivots_are_nearly_those_of_the_exact_kernel(make):
    losses = {}
    for kernel in (ExactKernel(), NystromKernel(), PivotedKernel()):
        model, residuals = small_case(n=20)
        if make == "ENGD":
            optimizer = ENGD(model.parameters(), damping=1e-6, gramian=SampleSpace(kernel))
        else:
            optimizer = SPRING(model.parameters(), damping=1e-6, kernel=kernel)
        losses[type(kernel)] = [float(optimizer.step(residuals)) for _ in range(6)]
    assert losses[PivotedKernel][1] == pytest.approx(losses[ExactKernel][1], rel=0.2)
    assert losses[PivotedKernel][-1] < 0.1 * losses[PivotedKernel][0]
