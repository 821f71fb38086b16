"""How many rows of a problem are decomposed, and what the choice costs."""

from __future__ import annotations

import math

import pytest
import torch
from small_problems import network, points
from torch import nn

from kfac_pinn import linearize
from kfac_pinn.curvature.compression import affordable, needed, units_of


@pytest.mark.parametrize(
    ("rows", "columns", "free", "expected"),
    [
        (2000, 600, 1.0, 150),  # few directions are free: few rows
        (2000, 1000, 60.0, 240),
        (2000, 1000, 63.0, 2000),  # a quarter of a small J: all of it
        (2000, 600, 40.0, 2000),
        (2000, 299, 1.0, 2000),
        (900, 10**6, math.inf, 900),
        (100, 40, 0.0, 100),
        (4700, 3401, 100.0, 400),
        (4700, 3401, math.inf, 969),
    ],
)
def test_rows_follow_what_the_last_step_fitted(rows, columns, free, expected):
    assert needed(rows, columns, free) == expected


@pytest.mark.parametrize(("rows", "columns"), [(4700, 3401), (10**5, 10**6), (10**6, 2000)])
def test_a_sketch_costs_about_what_its_problem_does(rows, columns):
    """m^2 P for the kernel, some m^3 for its eigenvectors; one more row is too many."""
    m, budget = affordable(rows, columns), 200 * rows * columns
    costs = lambda m: (m**2 * columns, m**3 / 0.3)  # noqa: E731
    assert max(costs(m)) <= budget < max(costs(m + 1))


def test_what_is_affordable_grows_slower_than_the_problem():
    assert 500 < affordable(4700, 3401) < 1500
    assert affordable(10**5, 10**6) < 10**4
    assert affordable(10, 10**6) == 10


def test_units_are_the_sizes_of_columns_beside_those_of_layers():
    """Columns by autograd: of a number and of a tensor, each as one, by those of the layers."""
    model, x = network(2, 3, 1), points(9)
    number = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))
    tensor = nn.Parameter(torch.linspace(1, 2, 4, dtype=torch.float64))
    parameters = [number, *model.parameters(), tensor]

    def closure():
        return number * model(x)[:, 0] + 100 * (tensor * x[:, :1]).sin().sum(1)

    linearization = linearize(closure, parameters)
    scale = units_of(linearization)
    rows = [torch.autograd.grad(r, parameters, retain_graph=True) for r in closure()]
    squares = [torch.stack(list(of)).square().sum(0) for of in zip(*rows, strict=True)]
    layers = torch.cat([s.reshape(-1) for s in squares[1:-1]]).mean()
    expected = [torch.ones_like(s) for s in squares]
    expected[0], expected[-1] = (
        (squares[0] / layers).sqrt(),
        (squares[-1].mean() / layers).sqrt() * expected[-1],
    )
    found = scale(linearization.rows().square().sum(0) / linearization.terms[0].scale ** 2)
    torch.testing.assert_close(found, torch.cat([e.reshape(-1) for e in expected]))
    assert units_of(linearize(lambda: model(x), list(model.parameters()))) is None
