"""`fit` in several processes: the run of one, with one file, one bar and one end."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import kfac_pinn as kp
from kfac_pinn import RAD, GaussNewton
from tests.distributed.fits import SIZES, differing, fitted, shares, stored, told


@pytest.mark.parametrize("count", [2, 3])
def test_same_run_on_any_number_of_processes(pools, count):
    (one,) = pools(1)(fitted)
    for theta, rows in pools(count)(fitted):
        np.testing.assert_allclose(theta, one[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(rows, one[1], rtol=1e-8)


def test_points_chosen_by_residuals_are_the_same(pools):
    sampling = RAD(every=2, sizes=SIZES)
    (one,) = pools(1)(fitted, GaussNewton, sampling, 4)
    for theta, rows in pools(2)(fitted, GaussNewton, sampling, 4):
        np.testing.assert_allclose(theta, one[0], rtol=0, atol=1e-8)
        np.testing.assert_allclose(rows, one[1], rtol=1e-6)


def test_one_process_is_as_without(pools):
    """A group of one, and no group: the same numbers, with the reference computed apart."""
    ((theta, rows),) = pools(1)(fitted)
    model = kp.MLP((2, 8, 1)).double()
    with_values = iter(theta)
    for p in model.parameters():
        p.data.copy_(p.data.new_tensor([next(with_values) for _ in range(p.numel())]).view_as(p))
    problem = kp.poisson_2d()
    import torch

    generator = torch.Generator().manual_seed(5)
    held_out = problem.sample(generator, dtype=torch.float64)
    places = problem.held_out(generator, dtype=torch.float64)
    expected = kp.relative_l2(model, problem.solution, places)
    assert math.isclose(rows[-1][3], expected, rel_tol=1e-12)
    loss = kp.total_loss(held_out.residuals(model)()).item()
    assert math.isclose(rows[-1][2], loss, rel_tol=1e-12)


def test_every_point_is_trained_on_once(pools):
    for count in (2, 3):
        found = pools(count)(shares)
        parts, wholes = zip(*found, strict=True)
        np.testing.assert_array_equal(np.concatenate(parts), wholes[0])
        assert {len(part) for part in parts} <= {7 // count, 7 // count + 1}


def test_callbacks_of_the_first_process_alone(pools, tmp_path):
    path = tmp_path / "told"
    assert pools(2)(told, str(path), 3, 0) == [("rank 0 has seen enough", 3)] * 2
    assert path.read_text() == "0 0 0 "


def test_a_callback_that_fails_ends_all(pools, tmp_path):
    for error in pools(2)(told, str(tmp_path / "told"), 0, 2):
        assert "OSError: rank 0: the disk is full" in str(error)


def test_a_checkpoint_goes_on_in_another_number_of_processes(pools, tmp_path):
    path = str(tmp_path / "run.pt")
    (whole,) = pools(1)(stored, str(tmp_path / "whole.pt"), 6)
    pools(2)(stored, path, 4)
    assert [each.name for each in Path(tmp_path).iterdir() if "run" in each.name] == ["run.pt"]
    for each in pools(3)(stored, path, 6):
        np.testing.assert_allclose(each, whole, rtol=0, atol=1e-10)


def test_a_damaged_checkpoint_is_everybodys_error(pools, tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"")
    for error in pools(2)(stored, str(path), 4):
        assert "run.pt" in str(error) and "rank 0" in str(error)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("points", "the term 'boundary' has 1 points for 2 processes"),
        ("seed", "ranks 0 and 1 differ: fit was called with other arguments there"),
    ],
)
def test_processes_that_do_not_fit_together(pools, what, says):
    for error in pools(2)(differing, what):
        assert says in str(error), error
