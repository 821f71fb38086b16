"""What an optimizer proposes: a step, where and how far, what it promises and what became of it.

A search asks an `Objective` for the loss at trial steps and answers a `Step`; the step loop moves
there, or stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Outcome", "Statistics", "Step"]

Statistics: TypeAlias = Mapping[str, "float | int | str"]


class Outcome(Enum):
    """What became of a step; the text is for `optimizer.stats["reason"]` and steers nothing."""

    MOVED = ""
    NO_GRADIENT = "the gradient is zero"
    NO_DECREASE_LEFT = "the decrease left is below the loss's rounding"
    NO_DECREASE = "no step that was tried decreases the loss"
    ASCENT = "the direction does not descend"
    NOT_FINITE = "the step is not finite"
    VETOED = "the held-out loss rises"
    NOTHING = "the closure returned nothing, and called zero_grad() without backward()"
    WENT_BACK = "the step before raised the loss: it was taken back, or part of it"


@dataclass(frozen=True)
class Step:
    """What an optimizer proposes.

    Attributes:
        displacement: theta_new - theta, shape (P,); None: stay.
        loss: at the new parameters, nan where it was not evaluated.
        length: how far along the direction, nan where there is none.
        shortened: how often the step was shortened before it was taken.
        predicted: the decrease of the loss that the model promises, nan where none was made.
        outcome: MOVED, or why not.
        info: further entries for `optimizer.stats`.

    Raises:
        ValueError: for a step that stays and does not say why.
    """

    displacement: Tensor | None
    loss: float = math.nan
    length: float = math.nan
    shortened: int = 0
    predicted: float = math.nan
    outcome: Outcome = Outcome.MOVED
    info: Statistics = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.displacement is None and self.outcome is Outcome.MOVED:
            raise ValueError(
                "a step that stays says why: write e.g. Step.stay(Outcome.NO_DECREASE)"
            )

    @classmethod
    def stay(cls, outcome: Outcome, **info: float | int | str) -> Step:
        """No step, and why."""
        return cls(None, outcome=outcome, info=info)

    def noting(self, **info: float | int | str) -> Step:
        """The same with further statistics."""
        return replace(self, info={**self.info, **info})

    @property
    def is_finite(self) -> bool:
        """Whether there is a displacement, and all of it is finite."""
        return self.displacement is not None and bool(torch.isfinite(self.displacement).all())
