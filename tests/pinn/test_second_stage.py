"""A second network for the error of the first: its scale, and what training it gains."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from kfac_pinn import MLP, SIREN, Box, ConvexLoss, GaussNewton, Normalized, laplacian, relative_l2
from kfac_pinn.pinn.stages import Corrected, corrected

F64 = torch.float64
BOX = Box.cube(1)


def networks(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    first, second = MLP((1, 4, 1)), nn.Sequential(Normalized(BOX), SIREN((1, 10, 10, 1), 6.0))
    return first.double(), second.double()


def solution(x):
    return torch.exp(x) * torch.sin(3 * x)


def poisson(unit: float = 1.0):
    x = torch.linspace(0, 1, 60, dtype=F64)[:, None]
    ends = torch.tensor([[0.0], [1.0]], dtype=F64)
    f = laplacian(solution, x).detach()

    def residuals(u):
        return lambda: (unit * (laplacian(u, x) - f), unit * 10 * (u(ends) - solution(ends)))

    return residuals


@given(st.integers(0, 100), st.floats(-8, 8))
@settings(max_examples=20)
def test_the_scale_moves_linear_residuals_by_their_size(seed: int, exponent: float) -> None:
    """Against r(v) - r(0) of the second network alone; in any unit of the residuals."""
    first, second = networks(seed)
    residuals = poisson(10**exponent)

    def size(found):
        return math.sqrt(sum(float(r.detach().square().mean()) for r in found))

    zero = residuals(lambda x: 0 * x)()
    slope = size([a - b for a, b in zip(residuals(second)(), zero, strict=True)])
    expected = size(residuals(first)()) / slope
    assert corrected(first, second, residuals).scale == pytest.approx(expected, rel=1e-9)


def test_of_a_nonlinear_equation_it_is_the_slope_at_the_solution_that_counts() -> None:
    """u^3 = 1 with u nearly 1: r changes by 3 e v, whatever v^3 is."""
    near = nn.Linear(1, 1, dtype=F64)
    with torch.no_grad():
        near.weight.zero_()
        near.bias.fill_(1 + 1e-6)
    far = nn.Linear(1, 1, dtype=F64)
    x = torch.linspace(0, 1, 20, dtype=F64)[:, None]
    found = corrected(near, far, lambda u: lambda: u(x) ** 3 - 1)
    expected = 3e-6 / (3 * float(far(x).square().mean().sqrt()))
    assert found.scale == pytest.approx(expected, rel=1e-4)


def test_a_second_stage_goes_on_where_the_first_ended() -> None:
    first, second = networks()
    residuals, x = poisson(), torch.rand(500, 1, dtype=F64)

    def train(u, parameters, steps):
        optimizer = GaussNewton(parameters)
        for _ in range(steps):
            optimizer.step(residuals(u))
        return relative_l2(u, solution, x)

    before = train(first, first.parameters(), 120)
    u = corrected(first, second, residuals)
    assert [p for p in u.parameters() if p.requires_grad] == list(second.parameters())
    after = train(u, second.parameters(), 120)
    assert after < before / 100 and after < 1e-12


@pytest.mark.parametrize(
    "output", [lambda u: u.sum(), lambda u: ConvexLoss((u[:, 0],), torch.cosh)]
)
def test_losses_are_refused(output) -> None:
    first, second = networks()
    with pytest.raises(TypeError, match="must return residuals"):
        corrected(first, second, lambda u: lambda: output(u(torch.rand(5, 1, dtype=F64))))


def test_what_cannot_be_scaled_is_named() -> None:
    first, second = networks()
    x = torch.rand(5, 1, dtype=F64)
    with pytest.raises(ValueError, match="moves them by 0"):
        corrected(first, second, lambda u: lambda: first(x) - 1)
    with pytest.raises(ValueError, match="have length 0"):
        corrected(first, second, lambda u: lambda: u(x) - first(x))
    assert all(p.requires_grad for p in first.parameters())
    with pytest.raises(TypeError, match="corrected: second"):
        corrected(first, 3, poisson())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Corrected: scale"):
        Corrected(first, second, -1.0)
