"""Several processes take the step of one, to rounding: every optimizer, whatever the shards."""

from __future__ import annotations

import numpy as np
import pytest

from tests.distributed.cases import OPTIMIZERS, by_default, sampled_factors, trained

SHARDS = {2: ([1, 3], [2, 1]), 3: ([1, 2, 4], [3, 1, 1])}
# Fewer rows of the sketch than parameters: two orders of the sums differ by 5e-10 after 20 steps
# Steps on trust: no trial corrects what rounding has moved (1.6e-9 found)
# Pivots: what is left of the diagonal cancels, and is divided by (5.6e-9 found)
TOLERANCE = {
    "GaussNewton sketch": 1e-8,
    "GaussNewton one evaluation": 1e-7,
    "ENGD pivots": 1e-7,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_after_twenty_steps(pools, name):
    (one,) = pools(1)(trained, name)
    assert not isinstance(one, Exception), one
    counts = [3] if " " in name else [2, 3]  # variants of an optimizer: three
    for count, shares in ((count, SHARDS[count]) for count in counts):
        found = pools(count)(trained, name, "residuals", 20, *shares)
        for each in found:
            assert not isinstance(each, Exception), each
            np.testing.assert_allclose(each[0], one[0], rtol=0, atol=TOLERANCE.get(name, 1e-10))
            np.testing.assert_allclose(each[1], one[1], rtol=1e-8)
            assert (each[0] == found[0][0]).all()  # bit by bit among the ranks


@pytest.mark.parametrize("count", [2, 3])
def test_random_signs_do_not_depend_on_the_processes(pools, count):
    """Factors of a term that mixes points are sampled: with the same signs however it is cut."""
    (one,) = pools(1)(sampled_factors)
    assert len(one) >= 6
    for found in pools(count)(sampled_factors):
        for pair, expected in zip(found, one, strict=True):
            for matrix, known in zip(pair, expected, strict=True):
                np.testing.assert_allclose(matrix, known, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if " " not in n])
def test_at_default_settings_they_differ_as_orders_of_the_points_do(pools, name):
    """Where a step amplifies rounding, by little damping say, no two orders of a sum agree."""
    (one,) = pools(1)(by_default, name)
    orders = [abs(pools(1)(by_default, name, k)[0] - one).max() for k in (1, 2)]
    found = pools(3)(by_default, name)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert abs(found[0] - one).max() <= 100 * max(*orders, 1e-14)  # 0.06 to 2 times were seen
