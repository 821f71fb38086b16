"""Whatever the shards: numbers of points by chance, for two and three processes."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.distributed.cases import trained

NAMES = ("KFACPINN", "KFAC", "GaussNewton", "SPRING", "ENGD per layer")
SHARES = st.integers(min_value=1, max_value=9)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_step_does_not_depend_on_the_shards(pools, data):
    count, name = data.draw(st.sampled_from([2, 3])), data.draw(st.sampled_from(NAMES))
    shares = st.lists(SHARES, min_size=count, max_size=count)
    sizes = data.draw(st.tuples(st.integers(40, 60), st.integers(6, 24)))
    (one,) = pools(1)(trained, name, "residuals", 2, (), (), sizes)
    drawn = data.draw(shares), data.draw(shares)
    for each in pools(count)(trained, name, "residuals", 2, *drawn, sizes):
        np.testing.assert_allclose(each[0], one[0], rtol=0, atol=1e-10)
