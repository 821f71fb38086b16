"""How many rows of a problem are decomposed, and what the choice costs."""

from __future__ import annotations

import math

import pytest

from kfac_pinn.curvature.compression import affordable, needed


@pytest.mark.parametrize(
    ("rows", "columns", "free", "expected"),
    [
        (2000, 600, 1.0, 150),  # few directions are free: few rows
        (2000, 600, 60.0, 240),
        (2000, 600, 90.0, 2000),  # half of a small J: all of it
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
