"""What a step leaves behind: its statistics, and gradients for code that reads `.grad`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.search.step import Outcome, Statistics, Step

__all__ = ["OVERFLOW", "hand_out_gradients", "loss_before", "moves", "statistics_of"]


def loss_before(step: Step, linearization: Linearization | None) -> float:
    """L before a step: inf where it was not finite, nan where the closure gave none."""
    if linearization is not None:
        return linearization.loss
    return math.nan if step.outcome is Outcome.NOTHING else math.inf


def moves(step: Step) -> bool:
    """Whether any parameter is another after it."""
    return step.displacement is not None and bool(step.displacement.any())


def statistics_of(
    step: Step, objective: Objective, linearization: Linearization | None
) -> dict[str, float | int | str]:
    """`optimizer.stats` of a step; the linearisation is None where its loss is not finite."""
    before, p = loss_before(step, linearization), step.displacement
    every: Statistics = {
        "loss": before,
        "new_loss": before if p is None else step.loss,
        "evaluations": objective.evaluations,
        "gradient_norm": math.nan
        if linearization is None
        else float(linearization.gradient.norm()),
        "step_norm": 0.0 if p is None else float(p.norm()),
        "step_length": 0.0 if p is None else step.length,
        "shortened": step.shortened,
        "reason": step.outcome.value,
    }
    return {**every, **step.info}


def hand_out_gradients(linearization: Linearization, parameters: Sequence[Tensor]) -> None:
    """Write grad L into `.grad` of the parameters, and what others train gets of it, too."""
    parts = linearization.unflatten(linearization.gradient)
    for p, g in zip(parameters, parts, strict=True):
        # Copies: the parts are views of one vector, and users change .grad in place
        p.grad = g.clone()
    for leaf, g in linearization.others:
        leaf.grad = g  # trial evaluations may have zeroed it


OVERFLOW = (
    "residuals or their derivatives are so large that their squares are no finite numbers. Scale "
    "the equations, the data or the weights of the terms"
)
