"""KFACPINN's steps taken whole, shortened and refused: what follows for damping and memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_problems import flat, relative, small_case
from torch import Tensor

from kfac_pinn import KFACPINN, Affordable, linearize
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.damping import MARQUARDT, scale_of
from kfac_pinn.search.model import predicted_decrease
from kfac_pinn.search.step import Outcome

BAD = [math.nan, math.inf, -math.inf, 1e200]


class Guarded:
    """Residuals that are spoilt further than so far from where the parameters were last."""

    def __init__(self, seed: int = 0) -> None:
        self.model, self.residuals = small_case(n=20, hidden=8, seed=seed)
        self.parameters = list(self.model.parameters())
        self.origin, self.reach, self.bad = flat(self.model), math.inf, math.nan

    def __call__(self) -> tuple[Tensor, ...]:
        far = float((flat(self.model) - self.origin).norm()) > self.reach
        return tuple(r * (self.bad if far else 1.0) for r in self.residuals())

    def here(self) -> Tensor:
        """The parameters, which are the origin from now on."""
        self.origin = flat(self.model)
        return self.origin

    def whole_step(self, optimizer: KFACPINN) -> Tensor:
        """The next step of an optimizer before any search, from a copy."""
        twin = KFACPINN(self.parameters, exact=Affordable(0))
        twin.load_state_dict(optimizer.state_dict())
        linearization = linearize(self.residuals, self.parameters)
        found = twin.solve(linearization, twin.damping(linearization))  # type: ignore[arg-type]
        assert found.displacement is not None
        return found.displacement


def trained(case: Guarded, steps: int = 3) -> KFACPINN:
    optimizer = KFACPINN(case.parameters, exact=Affordable(0))
    for _ in range(steps):
        optimizer.step(case)
        case.here()
    return optimizer


@pytest.mark.parametrize("steps", range(6))
def test_every_step_keeps_the_book(steps: int) -> None:
    """The ratio is that of the whole step's loss and of the exact model; lambda follows it by the
    law; what is taken is the whole step, or what the search leaves of it.
    """
    case = Guarded()
    optimizer = trained(case, steps)
    linearization = linearize(case, case.parameters)
    before, p = case.here(), case.whole_step(optimizer)
    damping = optimizer.memory.damping or 1e-4 * scale_of(linearization)
    objective = Objective(case, case.parameters)
    ratio = (linearization.loss - objective(p)) / predicted_decrease(linearization, p)
    objective.restore()
    optimizer.step(case)
    stats = optimizer.stats
    length = 0.25 ** int(stats["shortened"])
    assert stats["step_length"] == length and stats["reason"] == ""
    assert relative(flat(case.model) - before, length * p) <= 1e-10
    assert stats["damping"] == pytest.approx(damping)
    assert stats["ratio"] == pytest.approx(ratio, rel=1e-6)
    assert optimizer.memory.damping == MARQUARDT(float(stats["damping"]), float(stats["ratio"]))


@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_shortened(bad: float) -> None:
    """It goes on along the same direction; the whole one has failed, so lambda rises; what the
    solve has learned is kept.
    """
    case = Guarded()
    optimizer = trained(case)
    before, p, damping = case.here(), case.whole_step(optimizer), optimizer.memory.damping
    case.reach, case.bad = 0.3 * float(p.norm()), bad
    assert damping is not None
    optimizer.step(case)
    assert relative(flat(case.model) - before, 0.25 * p) <= 1e-10
    stats = optimizer.stats
    assert (stats["step_length"], stats["shortened"], stats["reason"]) == (0.25, 1, "")
    assert stats["ratio"] == -math.inf and stats["damping"] == damping
    assert optimizer.memory.damping == 3 * damping
    assert optimizer.memory.pairs is not None and len(optimizer.memory.pairs.S) > 10
    assert float(stats["new_loss"]) < float(stats["loss"])


def test_a_promise_is_made_for_the_whole_step_only() -> None:
    """What a search leaves of it was not looked at by the model."""
    case = Guarded()
    optimizer = trained(case)
    linearization = linearize(case, case.parameters)
    for reach, shortened in ((math.inf, 0), (0.3 * float(case.whole_step(optimizer).norm()), 1)):
        case.reach = reach
        objective = Objective(case, case.parameters)
        step = optimizer.propose(linearization, objective)
        objective.restore()
        assert step.shortened == shortened
        if shortened:
            assert math.isnan(step.predicted)
        else:
            expected = predicted_decrease(linearization, step.displacement)  # type: ignore[arg-type]
            assert step.predicted == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_refused(bad: float) -> None:
    """Parameters stay, lambda rises, and K-FAC alone preconditions the next step."""
    case = Guarded()
    optimizer = trained(case)
    before, damping = case.here(), optimizer.memory.damping
    case.reach, case.bad = 0.0, bad
    assert damping is not None
    optimizer.step(case)
    assert torch.equal(flat(case.model), before)
    stats = optimizer.stats
    assert stats["reason"] == Outcome.NO_DECREASE.value
    assert (stats["step_length"], stats["step_norm"]) == (0.0, 0.0)
    assert optimizer.memory.damping == 3 * damping and optimizer.memory.pairs is None
    case.reach = math.inf
    first = float(optimizer.step(case))
    assert float(optimizer.step(case)) < first


class Overflowing(KFACPINN):
    """Its solve gives no numbers."""

    def solve(self, linearization: Any, damping: float) -> Any:
        found = super().solve(linearization, damping)
        return type(found)(found.displacement * math.nan, predicted=math.nan)


def test_a_solve_that_overflows() -> None:
    case = Guarded()
    optimizer = Overflowing(case.parameters, exact=Affordable(0))
    before = case.here()
    for k in range(3):
        optimizer.step(case)
        assert torch.equal(flat(case.model), before)
        assert optimizer.stats["reason"] == Outcome.NOT_FINITE.value
        assert optimizer.memory.pairs is None
        assert optimizer.memory.damping == pytest.approx(float(optimizer.stats["damping"]) * 3)
        assert optimizer.steps == k + 1
