"""Updates of an inverse Hessian: scipy's, the sources' formulas in dense matrices, the secant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kfac_pinn.linalg import BFGS, SSBFGS, SSBroyden, Update, updated
from kfac_pinn.linalg.quasi_newton import Pair

MEMBERS = [BFGS(), SSBFGS(), SSBroyden()]
members = pytest.mark.parametrize("update", MEMBERS, ids=lambda u: type(u).__name__)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """H, s and y with y.s > 0 that are not those of a quadratic."""
    n, seed = draw(st.integers(2, 8)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=torch.float64)
    H = root @ root.mT + 10 ** draw(st.floats(-4, 1)) * torch.eye(n, dtype=torch.float64)
    s, y = torch.randn(2, n, generator=generator, dtype=torch.float64)
    y = y * torch.sign(y @ s) * 10 ** draw(st.floats(-3, 3))
    return H, s, y


def bound(H: Tensor, s: Tensor, y: Tensor) -> float:
    """What rounding may do to a product with the new H."""
    return 1e-11 * float(torch.linalg.cond(H) * (s.norm() * y.norm() / (y @ s)) ** 2)


@members
@given(case=pairs())
def test_the_secant_equation(update: Update, case: tuple[Tensor, Tensor, Tensor]) -> None:
    H, s, y = case
    found = updated(H, s, y, float(s @ torch.linalg.solve(H, s)), update)
    assert found is not None
    # Where y.s nearly vanishes H is huge, and so is the rounding of any product with it
    rounding = 1e-14 * float(found.norm() * y.norm())
    assert (found @ y - s).norm() <= bound(H, s, y) * s.norm() + rounding
    assert (found - found.mT).abs().max() <= 1e-13 * found.abs().max()


@members
@given(case=pairs())
def test_it_stays_positive_definite(update: Update, case: tuple[Tensor, Tensor, Tensor]) -> None:
    H, s, y = case
    found = updated(H, s, y, float(s @ torch.linalg.solve(H, s)), update)
    assert found is not None
    lowest, highest = torch.linalg.eigvalsh(found).aminmax()
    assert lowest > -1e-12 * highest
    if bound(H, s, y) < 1e-6:
        assert lowest > 0


@members
@given(case=pairs())
def test_it_is_the_formula_of_the_family(
    update: Update, case: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Eq. (36) term by term, in extended precision."""
    H, s, y = (each.numpy().astype(np.longdouble) for each in case)
    sBs = float(case[1] @ torch.linalg.solve(case[0], case[1]))
    ys, Hy = y @ s, H @ y
    yHy = y @ Hy
    phi, tau = update.weights(Pair(float(sBs / ys), float(yHy / ys), len(s)))
    v = np.sqrt(yHy) * (s / ys - Hy / yHy)
    expected = (H - np.outer(Hy, Hy) / yHy + phi * np.outer(v, v)) / tau + np.outer(s, s) / ys
    found = updated(*case, sBs, update)
    assert found is not None
    error = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    assert error <= bound(*case)


@given(case=pairs())
def test_bfgs_is_scipys(case: tuple[Tensor, Tensor, Tensor]) -> None:
    H, s, y = case
    theirs = scipy.optimize.BFGS()
    theirs.initialize(len(s), "inv_hess")
    theirs.H = H.numpy().copy()
    theirs.first_iteration = False
    theirs._update_implementation(s.numpy(), y.numpy())
    found = updated(H, s, y, float(s @ torch.linalg.solve(H, s)), BFGS())
    assert found is not None
    expected = torch.from_numpy(np.tril(theirs.H) + np.tril(theirs.H, -1).T)
    upper = torch.from_numpy(np.triu(theirs.H) + np.triu(theirs.H, 1).T)
    error = min(float((found - each).norm()) for each in (expected, upper))
    assert error <= bound(H, s, y) * found.norm()


@dataclass(frozen=True)
class OfTheHessian:
    """The sources' own parameters, theta and tau of the update of B = H^-1."""

    theta: float
    tau: float

    def matrix(self, B: Tensor, s: Tensor, y: Tensor) -> Tensor:
        Bs = B @ s
        sBs, ys = s @ Bs, y @ s
        w = sBs.sqrt() * (y / ys - Bs / sBs)
        scaled = B - torch.outer(Bs, Bs) / sBs + self.theta * torch.outer(w, w)
        return self.tau * scaled + torch.outer(y, y) / ys


@given(case=pairs())
def test_self_scaled_broyden_is_the_update_of_the_hessian(
    case: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Al-Baali & Khalfan say it for B: its inverse is ours."""
    H, s, y = case
    B = torch.linalg.inv(H)
    b, h = float(s @ B @ s / (y @ s)), float(y @ H @ y / (y @ s))
    a = b * h - 1
    if a < 1e-8:
        return
    minus = min(1.0, h * (1 - (a / (1 + a)) ** 0.5))
    theta = max((minus - 1) / a, min(1 / minus, (1 - b) / b))
    sigma, plus = 1 + theta * a, min(1.0, 1 / b)
    power = sigma ** (-1 / (len(s) - 1))
    tau = plus * min(power, 1 / theta) if theta > 0 else min(plus * power, sigma)
    expected = OfTheHessian(theta, tau).matrix(B, s, y)
    found = updated(H, s, y, float(s @ B @ s), SSBroyden())
    assert found is not None
    identity = torch.eye(len(s), dtype=s.dtype)
    size = float(found.norm() * expected.norm())
    assert (found @ expected - identity).norm() <= 1e-12 * size + bound(H, s, y)


def test_self_scaling_enlarges_and_never_shrinks() -> None:
    for b in (0.01, 0.5, 1.0, 3.0, 1e4):
        for excess in (0.0, 1e-3, 1.0, 1e3):
            for update in (SSBFGS(), SSBroyden()):
                assert 0 < update.weights(Pair(b, (1 + excess) / b, 20))[1] <= 1


@members
def test_a_pair_without_positive_curvature_is_of_no_use(update: Update) -> None:
    H, s = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert updated(H, s, -s, 3.0, update) is None
    assert updated(H, s, 0 * s, 3.0, update) is None
    assert updated(H, s, torch.tensor([1.0, -1.0, 1e-17], dtype=torch.float64), 3.0, update) is None
    assert updated(H, s, s, 0.0, update) is None
    assert torch.equal(H, torch.eye(3, dtype=torch.float64))


@members
def test_one_parameter(update: Update) -> None:
    """H is the inverse of the slope's slope."""
    one = torch.ones(1, dtype=torch.float64)
    found = updated(2 * one[:, None], one, 4 * one, 0.5, update)
    assert found is not None
    torch.testing.assert_close(found, 0.25 * one[:, None])
