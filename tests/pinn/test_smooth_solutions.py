"""No solution has a kink: points miss it, and every term is satisfied on either side of it."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from kfac_pinn.pinn.problems import PROBLEMS

F64 = torch.float64
FINE = 5e-4  # of the domain's size
#: Where a solution is meant to be rough: elsewhere these hold
AWAY = {
    "l_shape": lambda x: x.norm(dim=1) > 0.1,  # its corner
    "robin_heat": lambda x: x[:, 0] > 0.05,  # its incompatible start
}


def bend(name: str, step: float) -> float:
    """The largest |u(x + h) - 2 u(x) + u(x - h)| over random points and directions."""
    problem, draw = PROBLEMS[name](), Generator().manual_seed(0)
    x = problem.held_out(draw, 3000, dtype=F64)
    if name in AWAY:
        x = x[AWAY[name](x)]
    h = torch.randn(x.shape, generator=draw, dtype=F64)
    h *= step * (x.amax(0) - x.amin(0)).max() / h.norm(dim=1, keepdim=True)
    bent = problem.solution(x + h) - 2 * problem.solution(x) + problem.solution(x - h)
    return float(bent[bent.isfinite().all(1)].abs().max())


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_quarter_of_the_step_bends_a_sixteenth(name: str) -> None:
    """Across a kink it is a quarter, across a jump all of it."""
    assert bend(name, 4 * FINE) > 10 * bend(name, FINE)
