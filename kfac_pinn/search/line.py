"""How far to go along a direction.

A search is called as search(objective, linearization, direction) and returns a `Step`. The
objective evaluates the loss at theta + displacement by the user's closure, without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import INSIDE, POSITIVE, many, whole

__all__ = ["Armijo", "ExhaustiveGrid", "FixedStep", "GridSearch", "NormConstraint", "Search"]

PUBLISHED_GRID = tuple(2.0**-k for k in range(31))  # Mueller & Zeinhofer (2023)


class Search(Protocol):
    """Chooses a step along a direction (P,); one that evaluates no loss has evaluates = False."""

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """The step to take; `direction` (P,) is already scaled by the groups' lr."""


@dataclass(frozen=True)
class FixedStep:
    """theta <- theta + lr * direction, without looking."""

    evaluates: ClassVar[bool] = False

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """The direction as it is."""
        return Step(direction, length=1.0)


@dataclass(frozen=True)
class ExhaustiveGrid:
    """The best of the step lengths 2^0, 2^-1, ..., 2^-30, all of them evaluated, as published.

    Args:
        lengths: the grid.

    Source: Mueller & Zeinhofer (2023).
    """

    lengths: Sequence[float] = PUBLISHED_GRID

    def __post_init__(self) -> None:
        settings.check(self, lengths=many(POSITIVE))

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Evaluates the whole grid."""
        return best_of(self.lengths, len(self.lengths), objective, linearization, direction)


@dataclass(frozen=True)
class GridSearch:
    """The best of the step lengths 2^0, 2^-1, ..., found from above: a third of the evaluations.

    It stops where a length has decreased the loss and the next `patience` ones brought no more. On
    all published trajectories that is the minimum of the whole grid, after seven to ten evaluations
    instead of 31; `ExhaustiveGrid` looks at all of them.

    Args:
        lengths: the grid, from the longest.
        patience: lengths without a smaller loss after which it stops.
    """

    lengths: Sequence[float] = PUBLISHED_GRID
    patience: int = 3  # enough on all 426 published steps that were looked at

    def __post_init__(self) -> None:
        settings.check(self, lengths=many(POSITIVE), patience=whole(1))

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Evaluates lengths from above."""
        return best_of(self.lengths, self.patience, objective, linearization, direction)


def best_of(
    lengths: Sequence[float],
    patience: int,
    objective: Objective,
    linearization: Linearization,
    direction: Tensor,
) -> Step:
    """The length of least loss, looked for until `patience` more of them brought no less."""
    best, least, waited = 0.0, linearization.loss, 0
    for length in lengths:
        loss = objective(length * direction)
        # Waiting counts once the loss has decreased at all: the longest may be far too long
        waited = 0 if loss < least else waited + 1
        if loss < least:
            best, least = length, loss
        if best and waited >= patience:
            break
    # A loss that is not finite is inf (`Objective`), and never the least
    if not best:
        return Step.stay(Outcome.NO_DECREASE)
    return Step(best * direction, least, best)


@dataclass(frozen=True)
class Armijo:
    """Halve (by `factor`) until L falls by at least c times its linear prediction (Armijo 1966).

    Args:
        c: the fraction of the slope that must be realised, in (0, 1).
        factor: of one shortening, in (0, 1).
        trials: at most.
    """

    c: float = 1e-4  # Nocedal & Wright, section 3.1
    factor: float = 0.5
    trials: int = 30  # 2^-30 of a step, as far as the published grid goes

    def __post_init__(self) -> None:
        settings.check(self, c=INSIDE, factor=INSIDE, trials=whole(1))

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Backtracks from the full direction."""
        # Linear in the length by construction, so that one product serves all trials
        slope = float(linearization.gradient @ direction)
        if slope >= 0:
            return Step.stay(Outcome.ASCENT)
        length = 1.0
        for shortened in range(self.trials):
            loss = objective(length * direction)
            if loss <= linearization.loss + self.c * length * slope:
                return Step(length * direction, loss, length, shortened)
            length *= self.factor
        return Step.stay(Outcome.NO_DECREASE)


@dataclass(frozen=True)
class NormConstraint:
    """Shorten the direction so that ||lr * direction||^2 <= bound (Goldshlager et al. 2024).

    Args:
        bound: of the squared length of a step.
    """

    evaluates: ClassVar[bool] = False
    bound: float = 1e-3  # of the source

    def __post_init__(self) -> None:
        settings.check(self, bound=POSITIVE)

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        """Never evaluates the loss."""
        norm = float(direction.norm())
        # lr is in the direction already: the bound is one of the step, as in the source
        length = min(1.0, math.sqrt(self.bound) / norm) if norm else 1.0
        return Step(length * direction, length=length, shortened=int(length < 1))
