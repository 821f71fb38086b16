"""What an optimizer proposes: a step, where and how far, what it promises and what became of it.

A search asks an `Objective` for the loss at trial steps and answers a `Step`; the step loop moves
there, or stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn.jacobian.check import names_of, refuse_changes
from kfac_pinn.jacobian.closure import evaluate
from kfac_pinn.jacobian.losses import Residuals

__all__ = ["Objective", "Outcome", "Statistics", "Step"]

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


class Objective:
    """L(theta + displacement) by the user's closure; counts its evaluations.

    Args:
        closure: returns residuals.
        parameters: moved for an evaluation, put back by `restore`.
        names: of the parameters, for errors.
        ridge: w (P,) of a term 1/2 sum_i w_i theta_i^2 beside the closure's loss.

    Raises (when called):
        RuntimeError: for a closure that changes a parameter.
    """

    def __init__(
        self,
        closure: Callable[[], Residuals],
        parameters: Sequence[Tensor],
        names: Sequence[str] | None = None,
        ridge: Tensor | None = None,
    ) -> None:
        self.closure, self.parameters, self.ridge = closure, list(parameters), ridge
        self.names = names_of(self.parameters, names)
        self.repeatable = True  # whether the closure may be evaluated at other parameters
        self.origin = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self.evaluations = 0
        self.gradients = False  # whether the closure calls autograd itself
        self._last: tuple[Tensor, float] | None = None

    def __call__(self, displacement: Tensor) -> float:
        """The loss there; inf where it is not finite. Leaves the parameters there.

        A displacement that is asked for twice in a row is evaluated once.
        """
        self.move(displacement)
        if self._last is None or not torch.equal(self._last[0], displacement):
            self._last = displacement, self._evaluate(displacement)
        return self._last[1]

    def move(self, displacement: Tensor) -> None:
        """theta <- origin + displacement."""
        self._write(self.origin + displacement)

    def restore(self) -> None:
        """theta <- origin, bit by bit."""
        self._write(self.origin)

    def _evaluate(self, displacement: Tensor) -> float:
        there = [p.detach().clone() for p in self.parameters]
        self.evaluations += 1
        loss = float(evaluate(self.closure, self.gradients))
        refuse_changes(dict(zip(self.parameters, self.names, strict=True)), there)
        if self.ridge is not None:
            loss += 0.5 * float(self.ridge @ (self.origin + displacement).square())
        return loss if math.isfinite(loss) else math.inf

    @torch.no_grad()
    def _write(self, flat: Tensor) -> None:
        parts = flat.split([p.numel() for p in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            # .data: graphs that the linearisation keeps do not mind (`AutogradJacobian`)
            parameter.data.copy_(part.view_as(parameter))
