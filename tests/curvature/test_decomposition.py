"""The decomposed model of a step against dense solves, however it was decomposed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from kfac_pinn.curvature.decomposition import (
    Decomposition,
    GramianDecomposition,
    KernelDecomposition,
)

shapes = st.sampled_from([(12, 5), (5, 12), (7, 7), (1, 4), (6, 1)])
seeds = st.integers(0, 2**16)
dampings = st.floats(-8, 2).map(lambda x: 10.0**x)
flags = st.booleans()


def draw(shape, seed, with_excess):
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    J, r = normal(*shape), normal(shape[0])
    return J, r, normal(shape[1]) if with_excess else None


def dense_step(J, r, linear_term, damping):
    """The minimiser of 1/2 ||J p + r||^2 + e.p + lambda/2 ||p||^2, by the normal equations."""
    gradient = J.mT @ r + (0 if linear_term is None else linear_term)
    return -torch.linalg.solve(J.mT @ J + damping * torch.eye(J.shape[1]).to(J), gradient)


def model(J, r, linear_term, p):
    """m(p) - m(0)."""
    linear = 0 if linear_term is None else linear_term @ p
    return 0.5 * (J @ p + r).square().sum() - 0.5 * r.square().sum() + linear


@given(shapes, seeds, dampings, flags)
def test_step_is_the_dense_damped_solve(shape, seed, damping, with_excess):
    J, r, linear_term = draw(shape, seed, with_excess)
    expected = dense_step(J, r, linear_term, damping)
    found = Decomposition(J, r, linear_term).step(damping)
    condition = torch.linalg.matrix_norm(J, 2) ** 2 / damping + 1
    assert (found - expected).norm() <= 1e-14 * condition * expected.norm()


@given(st.sampled_from([(12, 5), (7, 7), (4, 9)]), seeds, st.floats(-3, 1), flags)
def test_units_of_parameters_are_those_of_the_damping(shape, seed, exponent, with_excess):
    """The minimiser of 1/2 ||J p + r||^2 + e.p + lambda/2 ||D p||^2, by dense algebra."""
    J, r, e = draw(shape, seed, with_excess)
    units = torch.linspace(0.1, 3, shape[1], dtype=torch.float64)
    gradient, damping = J.mT @ r + (0 if e is None else e), 10**exponent
    expected = -torch.linalg.solve(J.mT @ J + damping * units.square().diag(), gradient)
    kinds = [Decomposition(J, r, e, lambda squares: units)]
    if shape[0] < shape[1]:
        kinds.append(KernelDecomposition(J, r, e, lambda squares: units))
    else:
        kinds.append(GramianDecomposition(J.mT @ J, gradient, lambda squares: units))
    for found in kinds:
        torch.testing.assert_close(found.step(damping), expected)
        torch.testing.assert_close(found.solver(gradient)(damping), expected)
        length = float((units * expected).norm())
        assert float(found.norm(torch.tensor(damping))) == pytest.approx(length)
        assert found.damping(length) == pytest.approx(damping, rel=1e-6)
        assert found.decrease(damping) == pytest.approx(-float(model(J, r, e, expected)))


@given(st.sampled_from([(12, 5), (7, 7), (6, 1)]), seeds, st.floats(-6, 2), flags)
def test_the_gramian_serves_while_the_damping_is_large(shape, seed, exponent, with_excess):
    J, r, linear_term = draw(shape, seed, with_excess)
    direct = Decomposition(J, r, linear_term)
    gramian = GramianDecomposition(J.mT @ J, J.mT @ r + (0 if linear_term is None else linear_term))
    damping = 10**exponent * float(direct.S[0]) ** 2
    step = direct.step(damping)
    assert (gramian.step(damping) - step).norm() <= 1e-14 / 10**exponent * step.norm() + 1e-14
    assert gramian.decrease(damping) == pytest.approx(direct.decrease(damping), rel=1e-8)
    radius = float(step.norm())
    assert gramian.damping(radius) == pytest.approx(damping, rel=1e-6)
    assert gramian.damping(1e30 * radius) >= 1e-12 * float(gramian.S[0]) ** 2


@given(st.sampled_from([(5, 12), (7, 7), (1, 4)]), seeds, st.floats(-6, 2), flags)
@example((7, 7), 559, 0.0, True)  # S_1 / S_7 = 2500
def test_the_kernel_serves_while_the_damping_is_large(shape, seed, exponent, with_excess):
    J, r, linear_term = draw(shape, seed, with_excess)
    direct, kernel = Decomposition(J, r, linear_term), KernelDecomposition(J, r, linear_term)
    damping = 10**exponent * float(direct.S[0]) ** 2
    step = direct.step(damping)
    bound = step.norm() / 10**exponent + 1
    if with_excess:  # V = J^T U / S: rounding of S_1 divided by the smallest
        bound += direct.S[0] / direct.S[-1] * linear_term.norm() / damping
    assert (kernel.step(damping) - step).norm() <= 1e-14 * bound
    assert kernel.decrease(damping) == pytest.approx(direct.decrease(damping), rel=1e-8)
    assert kernel.damping(float(step.norm())) == pytest.approx(damping, rel=1e-6)


@given(seeds, flags)
def test_the_kernel_serves_where_rows_depend_on_each_other(seed, with_excess):
    J, r, linear_term = draw((4, 12), seed, with_excess)
    J, r = J.repeat(2, 1), r.repeat(2)
    damping = 1e-6 * float(torch.linalg.matrix_norm(J, 2)) ** 2
    expected = dense_step(J, r, linear_term, damping)
    found = KernelDecomposition(J, r, linear_term).step(damping)
    assert (found - expected).norm() <= 1e-7 * expected.norm()


@given(shapes, seeds, dampings, flags)
def test_decrease_is_that_of_the_quadratic_model(shape, seed, damping, with_excess):
    J, r, linear_term = draw(shape, seed, with_excess)
    decomposition = Decomposition(J, r, linear_term)
    p = decomposition.step(damping)
    scale = r.square().sum() + (J @ p).square().sum() + p.norm() * 10
    assert abs(decomposition.decrease(damping) + model(J, r, linear_term, p)) <= 1e-13 * scale


@given(shapes, seeds, dampings, flags)
def test_norm_is_the_length_of_the_step(shape, seed, damping, with_excess):
    decomposition = Decomposition(*draw(shape, seed, with_excess))
    length = decomposition.norm(torch.tensor(damping, dtype=torch.float64))
    torch.testing.assert_close(length, decomposition.step(damping).norm(), rtol=1e-10, atol=0)


@given(shapes, seeds, dampings)
def test_effective_parameters_are_the_trace_of_the_hat_matrix(shape, seed, damping):
    J, r, _ = draw(shape, seed, False)
    hat = J @ torch.linalg.solve(J.mT @ J + damping * torch.eye(J.shape[1]).to(J), J.mT)
    found = Decomposition(J, r).effective_parameters(damping)
    assert found == pytest.approx(float(hat.trace()), rel=1e-5)


@given(shapes, seeds, st.floats(-6, 0).map(lambda x: 10.0**x), flags)
def test_radius_is_met(shape, seed, fraction, with_excess):
    decomposition = Decomposition(*draw(shape, seed, with_excess))
    radius = fraction * float(decomposition.step(1e-6).norm())
    length = decomposition.step(decomposition.damping(radius)).norm()
    assert float(length) == pytest.approx(radius, rel=1e-8)


def test_a_radius_beyond_the_gauss_newton_step_gives_that_step():
    J, r, _ = draw((12, 5), 0, False)
    decomposition = Decomposition(J, r)
    step = decomposition.step(decomposition.damping(1e6))
    torch.testing.assert_close(step, -torch.linalg.lstsq(J, r[:, None]).solution[:, 0])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_damping_ends_where_the_decomposition_has_no_digits(scale):
    """In units of sigma_1^2: J as it is has twice the digits of J^T J."""
    J, r, _ = draw((12, 5), 0, False)
    J = scale * J
    square = float(torch.linalg.matrix_norm(J, 2)) ** 2
    eps = torch.finfo(torch.float64).eps
    for decomposition, unit in (
        (Decomposition(J, r), eps**2),
        (GramianDecomposition(J.mT @ J, J.mT @ r), 1e4 * eps),
        (KernelDecomposition(J.mT, r[:5]), 1e4 * eps),
    ):
        assert decomposition.damping(1e9 / scale) == pytest.approx(unit * square, rel=1e-9)


def test_digits_that_the_normal_equations_lose():
    """Condition 1e10: J^T J has lost everything below 1e-8, J has not."""
    J, _, _ = draw((40, 20), 1, False)
    U, _, Vt = torch.linalg.svd(J, full_matrices=False)
    S = torch.logspace(0, -10, 20, dtype=torch.float64)
    p = Decomposition(U * S @ Vt, U @ (S * 1.0)).step(1e-30)
    torch.testing.assert_close(p, -Vt.mT @ torch.ones_like(S), rtol=1e-4, atol=1e-5)
