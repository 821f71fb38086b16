"""Layers of a diffusion at the corner of start and wall, against their equations and quadrature."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kfac_pinn import CornerLayers, LevenbergMarquardt, early, relative_l2
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import PROBLEMS
from kfac_pinn.taylor_mode.operators import laplacian, taylor

DOMAIN = TimeSpace(0.5, 2.0, Box((-1.0, 0.0), (1.0, 3.0)))
ENDS = st.sampled_from([(1, 0), (1, 1), (2, 0), (2, 1)])


def layers_of(wall: tuple[int, int], diffusivity: float) -> CornerLayers:
    return CornerLayers(DOMAIN, diffusivity, [wall])


def distance(x: Tensor, wall: tuple[int, int]) -> Tensor:
    coordinate, end = wall
    box = DOMAIN.box
    return (x[:, coordinate] - (box.lower, box.upper)[end][coordinate]).abs()


def repeated_integral(z: Tensor, k: int) -> Tensor:
    """i^k erfc(z) = 2 / sqrt(pi) int_z^inf (y - z)^k / k! exp(-y^2) dy, by the trapezoidal rule."""
    y = torch.linspace(0, 8, 20001, dtype=torch.float64)
    values = y**k / math.factorial(k) * torch.exp(-((z[:, None] + y) ** 2))
    return 2 / math.sqrt(math.pi) * torch.trapezoid(values, y)


@given(ENDS, st.floats(0.01, 10.0))
def test_layers_are_repeated_integrals_of_erfc(wall: tuple[int, int], diffusivity: float) -> None:
    x = DOMAIN.interior(20, torch.Generator().manual_seed(0), torch.float64)
    found, t = layers_of(wall, diffusivity)(x), x[:, 0] - 0.5
    torch.testing.assert_close(found[:, :3], x, rtol=0, atol=0)
    for k, layer in enumerate(found[:, 3:].T, 1):
        expected = repeated_integral(distance(x, wall) / (4 * diffusivity * t).sqrt(), k)
        expected = expected * (t / 1.5) ** (k / 2)
        torch.testing.assert_close(layer, expected, rtol=1e-6, atol=1e-8)


@given(ENDS, st.floats(0.05, 2.0))
def test_layers_solve_the_equation_of_diffusion(wall: tuple[int, int], diffusivity: float) -> None:
    x = DOMAIN.interior(20, torch.Generator().manual_seed(1), torch.float64)
    x[:, 0] = x[:, 0].clamp(min=0.6)
    layers = layers_of(wall, diffusivity)
    weights = [0.0, 1.0, 1.0]
    _, slopes, second = taylor(layers, x, weights=weights)
    torch.testing.assert_close(slopes[0][:, 3:], diffusivity * second[:, 3:], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wall", [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_the_first_layer_has_a_slope_at_the_wall_from_the_start(wall: tuple[int, int]) -> None:
    """On the wall itself too, where the distance must not be an absolute value."""
    x = DOMAIN.box.face(*wall)(10, torch.Generator().manual_seed(2), torch.float64)
    _, slopes, _ = taylor(layers_of(wall, 0.25), x)
    inward = 1 - 2 * wall[1]
    expected = torch.full((10,), -inward / math.sqrt(4 * 0.25 * 1.5), dtype=torch.float64)
    torch.testing.assert_close(slopes[wall[0]][:, 3], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_start_layers_vanish_and_are_finite(dtype: torch.dtype) -> None:
    x = DOMAIN.initial(50, torch.Generator().manual_seed(0), dtype)
    x[0, 1] = 1.0  # the corner
    layers = CornerLayers(DOMAIN, 1e-4, [(1, 1), (2, 0)])
    network = nn.Sequential(layers, MLP((layers.width, 6, 1))).to(dtype)
    assert layers.width == 3 + 2 * 2
    assert layers(x)[:, 3:].abs().max() < 1e-3
    assert laplacian(network, x[1:]).isfinite().all()


def test_early_points_have_the_times_of_their_power() -> None:
    plain = DOMAIN.interior(200, torch.Generator().manual_seed(3), torch.float64)
    drawn = early(DOMAIN.interior, DOMAIN, 3.0)
    x = drawn(200, torch.Generator().manual_seed(3), torch.float64, "cpu")
    torch.testing.assert_close(x[:, 1:], plain[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close((x[:, 0] - 0.5) / 1.5, ((plain[:, 0] - 0.5) / 1.5) ** 3)


def test_a_network_with_the_layers_meets_a_start_that_contradicts_an_end() -> None:
    """Heat with a Robin end; without the layers the error stands above that."""
    torch.manual_seed(0)
    problem = PROBLEMS["robin_heat"]()
    domain = problem.domain
    assert isinstance(domain, TimeSpace)
    layers = CornerLayers(domain, 1.0, [(1, 1)])
    network = nn.Sequential(layers, MLP((layers.width, 10, 10, 1))).double()
    terms = {
        name: replace(term, points=early(term.points, domain), size=max(25, term.size // 12))
        for name, term in problem.terms.items()
    }
    batch = replace(problem, terms=terms).sample(
        torch.Generator().manual_seed(0), None, torch.float64
    )
    optimizer = LevenbergMarquardt(network.parameters())
    for _ in range(120):
        if optimizer.step(batch.residuals(network)) < 1e-7:
            break
    x = problem.held_out(torch.Generator().manual_seed(5), 500, dtype=torch.float64)
    assert relative_l2(network, problem.solution, x) < 1e-3


MISUSED = {
    "no time": (lambda: CornerLayers(Box.cube(2), 1.0, [(1, 1)]), "TimeSpace"),
    "no diffusion": (lambda: CornerLayers(DOMAIN, 0.0, [(1, 1)]), "diffusivity must be positive"),
    "no wall": (lambda: CornerLayers(DOMAIN, 1.0, []), "must hold 1 at least"),
    "time as a wall": (lambda: CornerLayers(DOMAIN, 1.0, [(0, 1)]), "coordinate of space"),
    "another end": (lambda: CornerLayers(DOMAIN, 1.0, [(1, 2)]), "an end, 0 or 1"),
    "a number for a wall": (lambda: CornerLayers(DOMAIN, 1.0, [1]), "a coordinate and an end"),
    "drawn points": (lambda: early(torch.rand(5, 3), DOMAIN), "points must be a function"),
    "late points": (lambda: early(DOMAIN.interior, DOMAIN, 0.5), "at least 1"),
}


@pytest.mark.parametrize("case", MISUSED)
def test_misuse_is_named(case: str) -> None:
    make, message = MISUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        make()
