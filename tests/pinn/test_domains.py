"""Points lie where they should, are spread as they should be, and follow seed, dtype and device."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from kfac_pinn.pinn.domains import Ball, Box, TimeSpace, grid, sobol, uniform

fills = st.sampled_from([uniform, sobol])
seeds = st.integers(0, 10**6)


def draw(sampler, n=200, seed=0):
    return sampler(n, Generator().manual_seed(seed), torch.float64)


def domains(fill):
    box = Box((-1.0, 2.0, 0.0), (1.0, 2.5, 7.0), fill)
    ball = Ball((1.0, -2.0), 0.5, fill)
    return [box, ball, TimeSpace(0.0, 2.0, box), TimeSpace(1.0, 3.0, ball)]


@given(fills, seeds, st.integers(1, 50))
def test_every_sampler_gives_n_points_in_the_dtype_asked_for(fill, seed, n):
    for domain in domains(fill):
        for sampler in (domain.interior, domain.boundary):
            for dtype in (torch.float32, torch.float64):
                x = sampler(n, Generator().manual_seed(seed), dtype, "cpu")
                again = sampler(n, Generator().manual_seed(seed), dtype, "cpu")
                assert x.shape == (n, domain.dim) and x.dtype == dtype
                assert torch.equal(x, again) and x.isfinite().all()


@given(fills, seeds)
def test_points_of_a_box(fill, seed):
    lower, upper = torch.tensor([-1.0, 2, 0]).double(), torch.tensor([1, 2.5, 7]).double()
    box = Box(tuple(lower.tolist()), tuple(upper.tolist()), fill)
    x, b = draw(box.interior, seed=seed), draw(box.boundary, seed=seed)
    assert ((lower <= x) & (x <= upper)).all() and ((lower <= b) & (b <= upper)).all()
    on_wall = (b == lower) | (b == upper)
    assert (on_wall.sum(1) == 1).all()
    up = draw(box.face(1, 1), seed=seed)
    assert (up[:, 1] == 2.5).all() and ((up[:, 0] > -1) & (up[:, 0] < 1)).all()
    assert (draw(box.face(0, 0))[:, 0] == -1).all()


def test_faces_are_equally_likely():
    b = draw(Box.cube(4).boundary, 80_000)
    shares = torch.cat([(b == end).double().mean(0) for end in (0, 1)])
    assert (shares - 1 / 8).abs().max() < 0.006  # five standard deviations


def test_uniform_points_have_all_the_bits_of_their_dtype():
    x = draw(Box.cube(1).interior, 100)
    assert (x != x.float().double()).all()


@given(fills, seeds)
def test_points_of_a_ball(fill, seed):
    ball = Ball((1.0, -2.0, 0.5), 0.5, fill)
    center = torch.tensor(ball.center, dtype=torch.float64)
    radius = (draw(ball.interior, seed=seed) - center).norm(dim=1)
    assert (radius <= 0.5).all()
    on_sphere = (draw(ball.boundary, seed=seed) - center).norm(dim=1)
    torch.testing.assert_close(on_sphere, torch.full_like(on_sphere, 0.5))


def test_balls_are_filled_evenly():
    x = draw(Ball((0.0, 0.0), 1.0).interior, 40_000)
    assert abs((x.norm(dim=1) < 0.5).double().mean() - 0.25) < 0.011
    assert x.mean(0).abs().max() < 0.0125
    assert abs((x[:, 0] * x[:, 1] > 0).double().mean() - 0.5) < 0.0125


@given(fills, seeds)
def test_time_and_space(fill, seed):
    domain = TimeSpace(1.0, 3.0, Box.cube(2, -1, 1, fill))
    x, b = draw(domain.interior, seed=seed), draw(domain.boundary, seed=seed)
    assert ((x[:, 0] >= 1) & (x[:, 0] <= 3)).all() and x[:, 0].unique().numel() > 100
    assert (b[:, 1:].abs().amax(1) == 1).all() and b[:, 0].unique().numel() > 100
    assert (draw(domain.initial)[:, 0] == 1).all() and (draw(domain.at(2.5))[:, 0] == 2.5).all()
    assert draw(domain.initial)[:, 1:].abs().max() <= 1


def test_sobol_points_are_more_even_than_chance():
    def mean_error(fill):  # of a smooth integral, 64 seeds
        box = Box.cube(3, fill=fill)
        means = [draw(box.interior, 256, seed).exp().prod(1).mean() for seed in range(64)]
        return (torch.stack(means) - (math.e - 1) ** 3).square().mean().sqrt()

    assert mean_error(sobol) < 0.1 * mean_error(uniform)


def test_grid_is_the_midpoint_rule():
    x = draw(Box((0.0, -1.0), (1.0, 1.0), grid).interior, 9)
    assert torch.equal(x[:, 0].unique(), (torch.arange(3).double() + 0.5) / 3)
    assert torch.equal(x[:3, 1], 2 * ((torch.arange(3).double() + 0.5) / 3) - 1)
    with pytest.raises(ValueError, match="ask for 9"):
        draw(Box.cube(2, fill=grid).interior, 10)


def test_without_a_generator_the_global_one_is_used():
    torch.manual_seed(5)
    x = Box.cube(2).interior(4)
    torch.manual_seed(5)
    assert torch.equal(x, torch.rand(4, 2, dtype=x.dtype))


@pytest.mark.parametrize("fill", [uniform, sobol])
def test_every_draw_is_new(fill):
    """From one generator, from generators with other seeds, and from the global one."""
    sampler, generator = Box.cube(2, fill=fill).interior, Generator().manual_seed(0)
    draws = [sampler(16, generator) for _ in range(3)]
    draws += [sampler(16, Generator().manual_seed(seed)) for seed in (1, 2)]
    torch.manual_seed(7)
    draws += [sampler(16) for _ in range(2)]
    torch.manual_seed(8)
    draws.append(sampler(16))
    for i, first in enumerate(draws):
        assert not any(torch.equal(first, other) for other in draws[:i])
    torch.manual_seed(8)
    assert torch.equal(draws[-1], sampler(16))


def test_corners_are_numbers():
    box = Box(torch.zeros(2), [1, 2])
    assert box == Box((0.0, 0.0), (1.0, 2.0)) and hash(box) == hash(Box([0, 0], [1, 2]))


MISUSED = {
    "numbers": (lambda: Box(0.0, 1.0), r"in one dimension write \(0.0,\), for a cube Box.cube"),
    "a 0-d tensor": (lambda: Box(torch.tensor(0.0), torch.tensor(1.0)), "Box.cube"),
    "names": (lambda: Box("a", "b"), "one number a dimension, found 'a'"),
    "pairs": (lambda: Box([(0.0, 1.0)], [(0.0, 1.0)]), "one number a dimension"),
    "None": (lambda: Box(None, None), "one number a dimension, found None"),
    "nothing": (lambda: Box((), ()), "finite numbers"),
    "nan": (lambda: Box((math.nan,), (1.0,)), "finite numbers"),
    "infinite": (lambda: Box((0.0,), (math.inf,)), "finite numbers"),
    "a fill by name": (lambda: Box((0.0,), (1.0,), "sobol"), "uniform, sobol or grid, not 'sobol'"),
    "a center": (lambda: Ball(0.0), "one number a dimension"),
    "a radius": (lambda: Ball((0.0,), 0.0), "radius > 0"),
    "no space": (lambda: TimeSpace(0.0, 1.0, (0.0, 1.0)), r"found \(0.0, 1.0\): TimeSpace"),
    "time runs back": (lambda: TimeSpace(1.0, 0.0, Box.cube(1)), "start < end"),
    "negative": (lambda: Box.cube(2).interior(-3), "Sampler: n must be .* at least 0, found -3"),
    "a fraction": (
        lambda: Box.cube(2).boundary(2.5),
        "n must be a whole number, .* found 2.5",
    ),
    "text": (lambda: Box.cube(2).interior("5"), "n must be a whole number, .* found '5'"),
    "nothing asked": (
        lambda: Ball((0.0,)).interior(None),
        "n must be a whole number, .* found None",
    ),
    "true": (
        lambda: TimeSpace(0.0, 1.0, Box.cube(1)).initial(True),
        "n must be a whole number, .* found True",
    ),
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_is_named(name):
    call, message = MISUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_box_needs_ordered_corners():
    with pytest.raises(ValueError, match="lower < upper"):
        Box((0.0, 1.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="lower < upper"):
        Box((0.0,), (1.0, 1.0))


@pytest.mark.parametrize("face", [(2, 0), (-1, 1), (0, 2)])
def test_a_face_is_one_of_the_box(face):
    with pytest.raises(ValueError, match=r"0 \.\. 1 and an end, 0 or 1"):
        Box.cube(2).face(*face)
