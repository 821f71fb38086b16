"""Checkpoints on other numbers of ranks, models in DistributedDataParallel, other losses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distributed.cases import resumed, trained, wrapped


@pytest.mark.parametrize("closure", ["mean_loss", "with_prior", "convex"])
@pytest.mark.parametrize("name", ["KFACPINN", "GaussNewton"])
def test_other_losses(pools, closure, name):
    (one,) = pools(1)(trained, name, closure, 5)
    for each in pools(2)(trained, name, closure, 5, [1, 3], [2, 1]):
        np.testing.assert_allclose(each[0], one[0], rtol=0, atol=1e-10)


def test_resumed_on_another_number_of_ranks(pools, tmp_path):
    path = str(tmp_path / "run.pt")
    (whole,) = pools(1)(resumed, path, 8, False)
    pools(2)(resumed, path, 4, False)
    for each in pools(3)(resumed, path, 4, True):
        np.testing.assert_allclose(each, whole, rtol=0, atol=1e-10)


def test_wrapped_models(pools):
    for same, norm in pools(2)(wrapped):
        assert same
        assert norm > 0
