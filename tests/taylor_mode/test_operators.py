"""Operators against nested autograd, estimators against their means, errors against their words."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kfac_pinn.taylor_mode.operators import (
    bilaplacian,
    divergence,
    gradient,
    hessian,
    homogeneous,
    laplacian,
    partial,
    taylor,
)
from kfac_pinn.taylor_mode.polarisation import directions_of
from kfac_pinn.taylor_mode.stochastic import (
    gaussian,
    hutchinson_laplacian,
    rademacher,
    stochastic_bilaplacian,
    subsampled_laplacian,
)

f64 = torch.float64
N, d = 4, 3


def network(d_in=d, d_out=1):
    return nn.Sequential(
        nn.Linear(d_in, 6), nn.Tanh(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, d_out)
    ).to(f64)


def points(seed=0, count=N, dim=d):
    return torch.rand(count, dim, generator=torch.Generator().manual_seed(seed), dtype=f64) * 2 - 1


def randn(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def nested_partial(u, x, axes):
    """d_a1 ... d_ak u, one reverse pass an axis and a component."""
    x = x.clone().requires_grad_()
    y = u(x)
    y = y[:, None] if y.ndim == 1 else y
    columns = []
    for component in y.unbind(1):
        for axis in axes:
            (component,) = torch.autograd.grad(component.sum(), x, create_graph=True)
            component = component[:, axis]
        columns.append(component)
    return torch.stack(columns, 1)


def close(found, expected, tolerance=1e-11):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("outputs", [1, 2])
def test_gradient_and_hessian(outputs):
    u, x = network(d_out=outputs), points()
    first = torch.stack([nested_partial(u, x, (i,)) for i in range(d)], -1)
    second = [[nested_partial(u, x, (i, j)) for j in range(d)] for i in range(d)]
    second = torch.stack([torch.stack(row, -1) for row in second], -2)
    close(gradient(u, x), first.squeeze(1))
    close(hessian(u, x), second.squeeze(1))


def test_shapes_of_scalar_fields():
    u, x = network(), points()
    flat = lambda x: u(x)[:, 0]  # noqa: E731
    for operator in (laplacian, bilaplacian, lambda u, x: partial(u, x, (0, 1))):
        assert operator(u, x).shape == (N, 1) and operator(flat, x).shape == (N,)
    assert gradient(flat, x).shape == (N, d) and hessian(flat, x).shape == (N, d, d)
    close(hessian(flat, x), hessian(u, x))
    assert hessian(network(1), x[:, :1]).shape == (N, 1, 1)


def test_the_heat_residual_of_the_documentation():
    u, x = network(2), points(dim=2)
    value, (u_t, u_x), u_xx = taylor(u, x, weights=[0.0, 1.0])
    close(value, u(x))
    close(u_t, nested_partial(u, x, (0,)))
    close(u_x, nested_partial(u, x, (1,)))
    close(u_xx, nested_partial(u, x, (1, 1)))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("shape", [None, (d,), (N, d), (d, d), (N, d, d)])
@pytest.mark.parametrize("trained", [False, True])
def test_laplacian_with_any_weights(shape, outputs, trained):
    u, x = network(d_out=outputs), points()
    w = None if shape is None else randn(*shape).requires_grad_(trained)
    A = (
        torch.eye(d, dtype=f64)
        if w is None
        else torch.diag_embed(w)
        if shape in ((d,), (N, d))
        else w
    )
    expected = (A.expand(N, d, d)[:, None] * hessian(u, x).reshape(N, -1, d, d)).sum((-2, -1))
    found = laplacian(u, x, w)
    close(found, expected)
    if trained and w is not None:
        gradients = [torch.autograd.grad(each.square().sum(), w)[0] for each in (found, expected)]
        close(*gradients)


def test_trained_numbers_among_the_weights():
    """Coefficients of the equation to be found, where numbers stand too."""
    u, x = network(), points()
    c = torch.tensor(0.7, dtype=f64, requires_grad=True)
    second = taylor(u, x)[-1].detach()
    operators = {
        "laplacian": (lambda: laplacian(u, x, [1.0, c, 0.0]), second[1]),
        "taylor": (lambda: taylor(u, x, weights=[[c, 0, 1.0], [0, 0, 2]])[-1][0], second[0]),
        "homogeneous": (
            lambda: homogeneous(u, x, {(0, 0): 1.0, (2, 2): -(c**2)}),
            -2 * c * second[2],
        ),
    }
    for operator, slope in operators.values():
        (found,) = torch.autograd.grad(operator().sum(), c)
        close(found, slope.sum())


def test_definite_weights_need_d_directions_only():
    x, seen = points(), []
    spy = lambda z: seen.append(z.basis.count) or z.sum(1)  # noqa: E731
    for w in (randn(N, d).abs(), torch.eye(d, dtype=f64), -torch.eye(d, dtype=f64).expand(N, d, d)):
        laplacian(spy, x, w)
    laplacian(spy, x, torch.zeros(N, d, dtype=f64))
    assert seen == [d] * 4


def test_the_laplacian_of_a_vector_field_and_of_time_dependent_points():
    u, x = network(d_out=2), points().requires_grad_()
    close(laplacian(u, x)[:, 1], sum(nested_partial(u, x, (i, i)) for i in range(d))[:, 1])
    assert laplacian(u, x).requires_grad
    (found,) = torch.autograd.grad(laplacian(u, x).sum(), x)
    expected = [sum(nested_partial(u, x, (i, i, j)).sum(1) for i in range(d)) for j in range(d)]
    close(found, torch.stack(expected, 1))


def test_divergence():
    u, x = network(d_out=d), points()
    expected = sum(nested_partial(u, x, (i,))[:, i] for i in range(d))
    close(divergence(u, x), expected)
    close(divergence(lambda z: z * (z * z).sum(1, keepdim=True), x), 5 * (x * x).sum(1))


@given(st.lists(st.integers(0, d - 1), min_size=1, max_size=4))
def test_any_partial_derivative(axes):
    torch.manual_seed(1)
    u, x = network(d_out=2), points()
    close(partial(u, x, axes), nested_partial(u, x, axes), 1e-10)


def test_bilaplacian():
    u, x = network(), points()
    expected = sum(nested_partial(u, x, (i, i, j, j)) for i in range(d) for j in range(d))
    close(bilaplacian(u, x), expected, 1e-10)
    assert len(directions_of({(i, i, j, j): 1.0 for i in range(d) for j in range(d)}, d)) == d * d


terms = st.integers(1, 5).flatmap(
    lambda k: st.dictionaries(
        st.tuples(*[st.integers(0, d - 1)] * k), st.floats(-3, 3), min_size=1, max_size=5
    )
)


@given(terms)
def test_directions_reproduce_the_symbol(terms):
    """sum_v w_v (v . xi)^k is the polynomial of the operator, at random xi."""
    (k,) = {len(axes) for axes in terms}
    xi = randn(6, d)
    expected = sum(c * torch.stack([xi[:, a] for a in axes]).prod(0) for axes, c in terms.items())
    found = sum(
        w * (xi @ torch.tensor(v, dtype=f64)) ** k for v, w in directions_of(terms, d).items()
    )
    close(found, expected + 0 * xi[:, 0], 1e-9)


def test_wave_operator_and_cancelling_terms():
    u, x = network(), points()
    wave = homogeneous(u, x, {(0, 0): 1.0, (1, 1): -4.0})
    close(wave, nested_partial(u, x, (0, 0)) - 4 * nested_partial(u, x, (1, 1)))
    close(homogeneous(u, x, {(0, 1): 1.0, (1, 0): -1.0}), 0 * u(x))


def test_what_is_said_to_be_constant_has_no_derivatives():
    x, constant = points(), torch.ones(N, 1, dtype=f64, requires_grad=True)
    for u in (lambda z: torch.full_like(z[:, :1], 3.0), lambda z: constant + 0 * z[:, :1]):
        close(laplacian(u, x), torch.zeros(N, 1, dtype=f64))
        close(gradient(u, x), torch.zeros(N, d, dtype=f64))


# --- estimators -------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def standardized_error(draw, expected, repeats=64):
    """|mean - expected| in standard errors of the mean, the largest over points."""
    samples = torch.stack([draw() for _ in range(repeats)]).detach()
    spread = samples.std(0) / repeats**0.5 + 1e-12
    return ((samples.mean(0) - expected.detach()).abs() / spread).max()


INDEFINITE = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 0.5], [0.0, 0.0, 0.3]], dtype=f64)


@pytest.mark.parametrize("draw", [rademacher, gaussian])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, -2.0], dtype=f64), INDEFINITE])
def test_hutchinson_is_unbiased(draw, weights):
    u, x, g = network(), points(), generator()
    expected = laplacian(u, x, weights)
    estimate = lambda: hutchinson_laplacian(u, x, 8, weights, draw, g)  # noqa: E731
    assert estimate().shape == expected.shape
    assert standardized_error(estimate, expected) < 4.5


def test_rademacher_is_exact_for_diagonal_hessians():
    x = points()
    found = hutchinson_laplacian(lambda z: torch.sin(z).sum(1), x, 1, generator=generator())
    close(found, -torch.sin(x).sum(1))


def test_subsampled_axes_average_to_the_laplacian():
    """Exactly: over all subsets each axis is met equally often."""
    u, x, w = network(), points(), randn(d)
    seen = {}
    for seed, count in product(range(40), (1, 2)):
        found = subsampled_laplacian(u, x, count, w, generator(seed))
        axes = tuple(sorted(torch.randperm(d, generator=generator(seed))[:count].tolist()))
        seen[axes] = found
    for count in (1, 2):
        subsets = [found for axes, found in seen.items() if len(axes) == count]
        assert len(subsets) == 3
        close(sum(subsets) / 3, laplacian(u, x, w))
    close(subsampled_laplacian(u, x, d, w), laplacian(u, x, w))


def test_stochastic_bilaplacian_is_unbiased():
    u, x, g = network(), points(), generator()
    estimate = lambda: stochastic_bilaplacian(u, x, 40, g)  # noqa: E731
    assert standardized_error(estimate, bilaplacian(u, x)) < 4.5


def test_a_generator_makes_estimates_repeatable():
    u, x = network(), points()
    for estimate in (
        lambda g: hutchinson_laplacian(u, x, 2, generator=g),
        lambda g: subsampled_laplacian(u, x, 1, generator=g),
        lambda g: stochastic_bilaplacian(u, x, 2, g),
    ):
        assert torch.equal(estimate(generator(3)), estimate(generator(3)))


# --- errors -----------------------------------------------------------------------------------

ERRORS = {
    "one point": (lambda u, x: laplacian(u, x[0]), r"x\[:, None\]"),
    "too many axes": (lambda u, x: gradient(u, x[None]), "flatten"),
    "integers": (lambda u, x: laplacian(u, torch.ones(N, d, dtype=torch.long)), "int64"),
    "a list": (lambda u, x: taylor(u, [[0.0]]), "list"),
    "nested operators": (lambda u, x: laplacian(lambda z: laplacian(u, z), x), "bilaplacian"),
    "nested gradients": (lambda u, x: divergence(lambda z: gradient(u, z), x), "homogeneous"),
    "two outputs": (lambda u, x: laplacian(lambda z: (u(z), z), x), r"u\(x\)\[0\]"),
    "directions": (lambda u, x: taylor(u, x, 2, torch.ones(2, d + 1)), r"\(D, 3\)"),
    "weights of taylor": (lambda u, x: taylor(u, x, weights=[1.0]), r"\(3,\) or \(C, 3\)"),
    "weights": (lambda u, x: laplacian(u, x, [1.0]), r"\(4, 3, 3\), found \(1,\)"),
    "ambiguous weights": (lambda u, x: laplacian(u, x[:d], torch.eye(d)), "diag_embed"),
    "no field": (divergence, "divergence needs"),
    "orders": (lambda u, x: homogeneous(u, x, {(0,): 1.0, (0, 0): 1.0}), "one order"),
    "no order": (lambda u, x: partial(u, x, ()), "one order"),
    "axis": (lambda u, x: partial(u, x, (0, d)), "0 .. 2"),
    "negative axis": (lambda u, x: partial(u, x, (-1,)), "0 .. 2"),
    "one axis": (lambda u, x: partial(u, x, 0), r"\(0,\), not 0"),
    "order zero": (lambda u, x: taylor(u, x, 0), "order >= 1"),
    "weights to estimate": (lambda u, x: hutchinson_laplacian(u, x, weights=x), r"\(3, 3\)"),
    "no axes": (lambda u, x: subsampled_laplacian(u, x, 0), "1 .. 3"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_found_and_the_fix(name):
    call, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call(network(), points())
