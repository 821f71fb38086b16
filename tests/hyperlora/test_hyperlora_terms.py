"""Every term of every shipped family: where its points lie, and what it asks for there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.family import Family
from hyperlora_ext.problems import burgers1d, burgers1d_published, burgers2d, kovasznay
from hyperlora_ext.problems.scalar_burgers import heat_flow

F64 = torch.float64


def drawn(family: Family, n: int = 2000) -> tuple[Tensor, dict[str, Tensor]]:
    """A task, and points of every condition, (n, d) by name."""
    tasks = family.space.sample(1, Generator().manual_seed(0))
    sizes = dict.fromkeys(family.conditions, n)
    points = family.sample(tasks, Generator().manual_seed(1), sizes)
    return tasks, {name: x[0] for name, x in points.items()}


def faces(x: Tensor, coordinates: range) -> set[tuple[int, int]]:
    """Of the unit cube: those that hold points all over them, none of which is inside."""
    walls = {(i, end): x[:, i] == end for i in coordinates for end in (0, 1)}
    assert torch.stack([*walls.values()]).any(0).all()
    for (i, _), on in walls.items():
        spread = [x[on, j].max() - x[on, j].min() for j in range(x.shape[1]) if j != i]
        assert not on.any() or min(spread) > 0.9
    return {face for face, on in walls.items() if on.any()}


def test_the_square_of_kovasznay_flow() -> None:
    _, points = drawn(kovasznay())
    inside, edge = points["interior"], points["boundary"]
    assert ((inside > 0) & (inside < 1)).all()
    assert faces(edge, range(2)) == {(i, end) for i in (0, 1) for end in (0, 1)}


def test_the_square_of_burgers_in_two_dimensions() -> None:
    _, points = drawn(burgers2d())
    start, edge = points["initial"], points["boundary"]
    assert (start[:, 0] == 0).all() and start[:, 1:].max() > 0.9 and start[:, 1:].min() < 0.1
    assert faces(edge, range(1, 3)) == {(i, end) for i in (1, 2) for end in (0, 1)}
    assert points["interior"][:, 0].max() > 0.9 > 0.1 > points["interior"][:, 0].min()


@pytest.mark.parametrize("family", [kovasznay(), burgers2d()], ids=lambda f: f.name)
def test_every_field_is_given_on_the_faces_with_the_weight_of_the_docstring(family: Family) -> None:
    tasks, points = drawn(family, 40)
    count = family.reference(tasks).shape[1]
    given = [name for name in points if name != "interior"]
    for field in range(count):
        shift = torch.zeros(count, dtype=F64)
        shift[field] = 0.5
        one = {name: points[name][None] for name in given}
        u = lambda x, s=shift: family.solution(x, tasks[0]) + s  # noqa: E731
        for name, r in family.residuals(u, tasks, one).items():
            expected = math.sqrt(10) * 0.5 if name.endswith(str(field)) else 0.0
            torch.testing.assert_close(r, torch.full_like(r, expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "weight"), [(burgers1d(), 100.0), (burgers1d_published(), 10.0)]
)
def test_the_start_of_burgers_in_one_dimension(family: Family, weight: float) -> None:
    tasks, points = drawn(family, 64)
    x = points["initial"]
    assert (x[:, 0] == 0).all() and x[:, 1].max() - x[:, 1].min() > 0.95
    for shift in (0.0, 0.5):
        exact = heat_flow(tasks.expand(len(x), -1), x, 0.01)[0]  # at t = 0: the values themselves
        rest = torch.zeros_like(exact) if family.known else exact
        network = lambda _, s=shift, r=rest: r + s  # noqa: E731
        (r,) = family.residuals(network, tasks, {"initial": x[None]}).values()
        torch.testing.assert_close(
            r, torch.full_like(r, math.sqrt(weight) * shift), rtol=0, atol=1e-11
        )


def test_the_equation_and_the_ends_of_burgers_as_published() -> None:
    """By nested autograd, at any u."""
    family = burgers1d_published()
    tasks, points = drawn(family, 50)
    torch.manual_seed(0)
    u = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, u_t, u_x, u_xx."""
        x = x.clone().requires_grad_()
        value = u(x)
        (d,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        (dd,) = torch.autograd.grad(d[:, 1].sum(), x)
        return value[:, 0], d[:, 0], d[:, 1], dd[:, 1]

    found = family.residuals(u, tasks, {name: x[None] for name, x in points.items()})
    value, u_t, u_x, u_xx = slopes(points["interior"])
    torch.testing.assert_close(found["interior"], u_t + value * u_x - 0.01 * u_xx)
    left = points["periodic"]
    assert (left[:, 1] == 0).all() and left[:, 0].max() - left[:, 0].min() > 0.9
    here, there = slopes(left), slopes(left + torch.tensor([0.0, 1.0]))
    root = math.sqrt(10)
    torch.testing.assert_close(found["periodic 0"], root * (here[0] - there[0]))
    torch.testing.assert_close(found["periodic 1"], root * (here[2] - there[2]))
