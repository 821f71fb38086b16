"""Combined shapes: what is drawn lies where it should, evenly, with normals that point outward."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Generator

from kfac_pinn.pinn.domains import Ball, Box, Polygon, TimeSpace, grid, sobol, uniform

F64 = torch.float64
L_CORNERS = [(-1, -1), (0, -1), (0, 0), (1, 0), (1, 1), (-1, 1)]
L = Box((-1.0, -1.0), (1.0, 1.0)) - Box((0.0, -1.0), (1.0, 0.0))
L_AS_TWO = Box((-1.0, -1.0), (0.0, 1.0)) | Box((0.0, 0.0), (1.0, 1.0))
L_AS_POLYGON = Polygon(L_CORNERS)
PLATE = Box.cube(2, -1.0, 1.0) - (Ball((0.5, 0.5), 0.2) | Ball((-0.4, -0.3), 0.4))
LENS = Ball((0.0, 0.0)) & Ball((1.0, 0.0))
CUT = Box.cube(3) - Ball((0.0, 0.0, 0.0), 0.7)


def draw(sampler, n=400, seed=0, dtype=F64):
    return sampler(n, Generator().manual_seed(seed), dtype)


corner = st.floats(-1, 1).map(lambda v: round(v, 3))
width = st.floats(0.2, 1.0).map(lambda v: round(v, 3))


@st.composite
def pieces(draw_from):
    x, y, w, h = (draw_from(s) for s in (corner, corner, width, width))
    fill = draw_from(st.sampled_from([uniform, sobol]))
    kind = draw_from(st.integers(0, 2))
    if kind == 0:
        return Box((x, y), (x + w, y + h), fill)
    if kind == 1:
        return Ball((x, y), w, fill)
    return Polygon([(x, y), (x + w, y + h / 3), (x + w / 2, y + h)], fill)


@st.composite
def shapes(draw_from):
    a, b, c = (draw_from(pieces()) for _ in range(3))
    how = draw_from(st.integers(0, 4))
    return [a | b, a - b, a & b, (a | b) - c, a | (b & c)][how]


def set_of(shape):
    """Membership written out anew, from the pieces' formulas."""
    if isinstance(shape, Box):
        low, up = torch.tensor(shape.lower, dtype=F64), torch.tensor(shape.upper, dtype=F64)
        return lambda x: ((x >= low) & (x <= up)).all(1)
    if isinstance(shape, Ball):
        return lambda x: (
            (x - torch.tensor(shape.center, dtype=F64)).square().sum(1) <= shape.radius**2
        )
    if isinstance(shape, Polygon):  # convex: to the left of every side
        c = torch.tensor(shape.corners, dtype=F64)
        way = c.roll(-1, 0) - c
        return lambda x: torch.stack(
            [
                v[0] * (x[:, 1] - p[1]) - v[1] * (x[:, 0] - p[0]) >= 0
                for p, v in zip(c, way, strict=True)
            ]
        ).all(0)
    one, other = set_of(shape.first), set_of(shape.second)
    kind = type(shape).__name__
    if kind == "Union":
        return lambda x: one(x) | other(x)
    if kind == "Intersection":
        return lambda x: one(x) & other(x)
    return lambda x: one(x) & ~other(x)


def thick(shape):
    """Enough of it to draw from."""
    x = draw(Box(shape.lower, shape.upper).interior, 4000)
    return bool(set_of(shape)(x).double().mean() > 0.02)


@settings(max_examples=20)
@given(shapes())
def test_points_lie_in_the_set_and_are_as_many_as_asked(shape):
    assume(all(low < up for low, up in zip(shape.lower, shape.upper, strict=True)) and thick(shape))
    x = draw(shape.interior)
    assert x.shape == (400, 2) and set_of(shape)(x).all()
    assert torch.equal(x, draw(shape.interior))
    assert draw(shape.interior, 7, dtype=torch.float32).dtype == torch.float32
    tried = draw(Box(shape.lower, shape.upper, sobol).interior, 2**14)
    inside = set_of(shape)(tried)
    assert torch.equal(shape.contains(tried), inside)
    volume = math.prod(up - low for low, up in zip(shape.lower, shape.upper, strict=True))
    assert shape.measure == pytest.approx(volume * inside.double().mean().item(), rel=0.05)


@settings(max_examples=20)
@given(shapes())
def test_the_set_ends_at_boundary_points_along_their_normals(shape):
    assume(thick(shape))
    inside = set_of(shape)
    for dtype, step in ((F64, 1e-6), (torch.float32, 2e-3)):
        x = draw(shape.boundary, 200, dtype=dtype)
        n = shape.normal(x)
        assert x.shape == n.shape == (200, 2) and n.dtype == dtype
        torch.testing.assert_close(n.norm(dim=1), torch.ones(200, dtype=dtype))
        wrong = ~inside((x - step * n).double()) | inside((x + step * n).double())
        assert wrong.double().mean() <= (0 if dtype is F64 else 0.05)  # corners, thin parts


@given(pieces())
def test_normals_are_gradients_of_the_distance(piece):
    x = draw(piece.boundary, 50)
    away = (x + 1e-3 * piece.normal(x)).requires_grad_()
    (slope,) = torch.autograd.grad(piece.distance(away).sum(), away)
    torch.testing.assert_close(slope, piece.normal(x), rtol=0, atol=1e-9)
    assert piece.distance(x).abs().max() < 1e-12
    torch.testing.assert_close(piece.distance(away), torch.full((50,), 1e-3, dtype=F64))


@given(pieces())
def test_a_distance_is_that_to_the_nearest_of_many_boundary_points(piece):
    x = draw(Box.cube(2, -2.0, 2.0).interior, 50)
    nearest = torch.cdist(x, draw(piece.surface, 20_000)).amin(1)
    assert (piece.distance(x).abs() - nearest).abs().max() < 5e-3
    assert torch.equal(piece.distance(x) < 0, set_of(piece)(x))


@pytest.mark.parametrize("shape", [L, L_AS_TWO, L_AS_POLYGON], ids=["A - B", "A | B", "Polygon"])
def test_an_l_is_the_same_however_it_is_written(shape):
    x, b = draw(shape.interior, 20_000), draw(shape.boundary, 20_000)
    assert not ((x[:, 0] > 0) & (x[:, 1] < 0)).any()
    # three squares with centres (-1/2, -1/2), (-1/2, 1/2), (1/2, 1/2)
    torch.testing.assert_close(
        x.mean(0), torch.tensor([-1 / 6, 1 / 6], dtype=F64), rtol=0, atol=0.02
    )
    torch.testing.assert_close(
        x.square().mean(0), torch.full((2,), 1 / 3, dtype=F64), rtol=0, atol=0.012
    )
    assert shape.measure == pytest.approx(3, rel=2e-3)
    assert shape.boundary_measure == pytest.approx(8, rel=2e-3)
    corners = torch.tensor(L_CORNERS, dtype=F64)
    near = Polygon(L_CORNERS)._to_sides(b)
    assert near.amin(1).max() < 1e-12  # nowhere else: the seam of two boxes is inside
    ways = [(q - p).norm() for p, q in pairwise([*corners, corners[0]])]
    share = torch.bincount(near.argmin(1), minlength=6) / 20_000
    assert (share - torch.stack(ways) / 8).abs().max() < 0.015


def test_a_plate_with_holes():
    x, b = draw(PLATE.interior, 20_000), draw(PLATE.boundary, 20_000)
    holes = [((0.5, 0.5), 0.2), ((-0.4, -0.3), 0.4)]
    for center, radius in holes:
        c = torch.tensor(center, dtype=F64)
        assert ((x - c).norm(dim=1) >= radius).all()
        rim = ((b - c).norm(dim=1) - radius).abs() < 1e-9
        assert rim.double().mean() == pytest.approx(
            2 * math.pi * radius / (8 + 1.2 * math.pi), abs=0.015
        )
        torch.testing.assert_close(PLATE.normal(b)[rim], (c - b[rim]) / radius)  # into the hole
    assert PLATE.measure == pytest.approx(4 - 0.2 * math.pi, rel=2e-3)
    assert PLATE.boundary_measure == pytest.approx(8 + 1.2 * math.pi, rel=2e-3)
    walls = draw(PLATE.boundary.where(lambda x: x.abs().amax(1) == 1), 500)
    assert (walls.abs().amax(1) == 1).all()


def test_a_lens_and_a_cut_cube():
    area = 2 * math.pi / 3 - math.sqrt(3) / 2
    assert LENS.measure == pytest.approx(area, rel=2e-3)
    assert LENS.boundary_measure == pytest.approx(4 * math.pi / 3, rel=2e-3)
    assert draw(LENS.interior, 20_000).mean(0)[0] == pytest.approx(0.5, abs=0.01)
    assert CUT.measure == pytest.approx(1 - math.pi * 0.7**3 / 6, rel=2e-3)
    gone = math.pi * 0.7**2
    assert CUT.boundary_measure == pytest.approx(6 - 3 * gone / 4 + gone / 2, rel=2e-3)
    b = draw(CUT.boundary, 2000)
    assert not (b.norm(dim=1) < 0.7 - 1e-9).any()


def test_the_boundary_of_a_union_leaves_out_what_lies_inside_the_other():
    both = Box.cube(2) | Box((0.5, 0.25), (2.0, 0.75))
    b = draw(both.boundary, 4000)
    within = [
        ((b > low + 1e-9) & (b < up - 1e-9)).all(1)
        for low, up in (
            (torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)),
            (torch.tensor([0.5, 0.25], dtype=F64), torch.tensor([2.0, 0.75], dtype=F64)),
        )
    ]
    assert not torch.stack(within).any()
    assert both.boundary_measure == pytest.approx(4 - 0.5 + 2.5, rel=2e-3)


def test_shared_walls_are_drawn_once():
    same = Box.cube(2) | Box((0.0, 0.0), (0.5, 1.0))  # the second lies in the first, at three walls
    assert same.boundary_measure == pytest.approx(4, rel=2e-3)
    left = (draw(same.boundary, 20_000)[:, 0] < 1e-9).double().mean()
    assert left == pytest.approx(1 / 4, abs=0.015)
    filled = (Box.cube(2) - Ball((0.5, 0.5), 0.2)) | Ball((0.5, 0.5), 0.2)
    assert filled.boundary_measure == pytest.approx(4, rel=2e-3)  # the rim is inside
    assert filled.measure == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_measures_of_boxes_and_balls(dim):
    ball, box = Ball((0.0,) * dim, 2.0), Box((0.0,) * dim, tuple(range(1, dim + 1)))
    exact = {1: (4, 2), 2: (4 * math.pi, 4 * math.pi), 3: (32 / 3 * math.pi, 16 * math.pi)}
    if dim in exact:
        assert (ball.measure, ball.boundary_measure) == pytest.approx(exact[dim])
    assert box.measure == math.factorial(dim)
    x = draw(Box(ball.lower, ball.upper, sobol).interior, 2**16)
    share = (x.norm(dim=1) < 2).double().mean().item()
    assert ball.measure == pytest.approx(4.0**dim * share, rel=0.02)
    b = draw(box.surface, 40_000)
    for i in range(dim):
        for end in (box.lower[i], box.upper[i]):
            share = box.measure / (box.upper[i] - box.lower[i]) / box.boundary_measure
            assert (b[:, i] == end).double().mean() == pytest.approx(share, abs=0.015)


def test_in_one_dimension_a_boundary_is_counted():
    gap = Box((0.0,), (3.0,)) - Box((1.0,), (2.0,))
    assert gap.boundary_measure == pytest.approx(4) and gap.measure == pytest.approx(2, rel=1e-3)
    b = draw(gap.boundary, 400)
    assert set(b[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0}
    outward = gap.normal(torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=F64))
    assert outward[:, 0].tolist() == [-1, 1, -1, 1]


def test_sobol_points_stay_more_even_than_chance():
    def spread(fill):
        shape = Box.cube(2, -1.0, 1.0, fill) - Ball((0.0, 0.0), 0.5)
        return torch.stack([draw(shape.interior, 512, s).square().mean(0) for s in range(32)]).std(
            0
        )

    assert (spread(sobol) < 0.4 * spread(uniform)).all()


def test_shapes_in_time():
    domain = TimeSpace(0.0, 2.0, PLATE)
    x, b, first = (draw(s) for s in (domain.interior, domain.boundary, domain.initial))
    assert domain.dim == 3 and PLATE.contains(x[:, 1:]).all() and PLATE.contains(first[:, 1:]).all()
    assert x[:, 0].std() > 0.4 and (first[:, 0] == 0).all()
    assert torch.equal(domain.normal(b)[:, 1:], PLATE.normal(b[:, 1:]))
    assert (domain.normal(b)[:, 0] == 0).all() and b[:, 0].std() > 0.4


def test_either_direction_round_is_the_same_polygon():
    assert Polygon(L_CORNERS[::-1]).measure == L_AS_POLYGON.measure == 3
    x = draw(Polygon(L_CORNERS[::-1]).boundary)
    assert L.distance(x).abs().max() < 1e-12
    inward = L.contains(x - 1e-6 * Polygon(L_CORNERS[::-1]).normal(x))
    assert inward.all()


MISUSED = {
    "no shape": (lambda: Box.cube(2) - 3.0, TypeError, "unsupported operand"),
    "time": (lambda: Box.cube(2) | TimeSpace(0.0, 1.0, Box.cube(1)), TypeError, "unsupported"),
    "dimensions": (lambda: Box.cube(2) - Ball((0.0,)), ValueError, "of 2 and of 1 dimensions"),
    "a grid": (
        lambda: (Box.cube(2, fill=grid) - Ball((0.0, 0.0))).interior(9),
        ValueError,
        "sobol",
    ),
    "nothing left": (
        lambda: (Box.cube(2) - Ball((0.0, 0.0), 3.0)).interior(9),
        ValueError,
        "empty",
    ),
    "two corners": (lambda: Polygon([(0, 0), (1, 1)]), ValueError, "three corners"),
    "in space": (lambda: Polygon([(0, 0, 0), (1, 1, 0), (1, 0, 0)]), ValueError, "three corners"),
    "a bow": (lambda: Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), ValueError, "must not cross"),
    "a spike": (lambda: Polygon([(0, 0), (2, 0), (1, 0), (1, 1)]), ValueError, "must not cross"),
    "twice": (lambda: Polygon([(0, 0), (0, 0), (1, 0), (1, 1)]), ValueError, "must not cross"),
    "numbers": (lambda: Polygon([0, 1, 2]), TypeError, "a Polygon's corner must hold"),
    "a bad condition": (
        lambda: Box.cube(2).boundary.where(lambda x: x[:, :1] > 0)(5),
        ValueError,
        "one truth value a point",
    ),
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_is_named(name):
    call, kind, message = MISUSED[name]
    with pytest.raises(kind, match=message):
        call()
