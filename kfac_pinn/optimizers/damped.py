"""The second kind of optimizer: damped steps p(lambda), and how lambda follows."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.damping import DampingLaw, scale_of
from kfac_pinn.search.line import Search
from kfac_pinn.search.model import DampedModel, Trial, decrease_ratio
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import POSITIVE

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["LEAST", "DampedOptimizer", "Damping", "ModelOptimizer", "tried"]


class ModelOptimizer(LeastSquaresOptimizer):
    """theta <- theta + lr * p(lambda), p(lambda) ~ -(C + lambda I)^-1 grad L.

    A subclass says its `model`: the damped steps at the current parameters, and the decrease that
    they promise. How lambda is chosen is the business of `propose`.
    """

    @abstractmethod
    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        """p(lambda) and the decrease it promises, at the current parameters."""

    def aim(self, model: DampedModel, damping: float | Tensor) -> Step:
        """p(lambda) scaled by each group's lr, and the decrease that so much of it promises."""
        step = model.step(damping)
        if step.displacement is None:
            return step
        # Groups that differ in lr turn the step, so that what it promises is evaluated anew
        displacement = step.displacement * self.expand("lr")
        if torch.equal(displacement, step.displacement):
            return step
        if math.isinf(step.predicted):  # a failure in any case
            return replace(step, displacement=displacement)
        return replace(step, displacement=displacement, predicted=model.decrease(displacement))


def tried(
    step: Step, damping: float | Tensor, linearization: Linearization, objective: Objective
) -> Trial:
    """The loss at a step and its decrease ratio; a step that is not finite has failed."""
    finite = step.displacement is not None and step.is_finite
    loss = objective(step.displacement) if finite else math.inf  # type: ignore[arg-type]
    ratio = decrease_ratio(linearization.loss, loss, step.predicted)
    return Trial(replace(step, loss=loss), damping, ratio)


# Of the first lambda, which has the units of the curvature: far below the rounding of J^T J
LEAST = 1e-16


@dataclass(frozen=True)
class Damping:
    """What is remembered: lambda of the next step, None before the first; its lower bound."""

    damping: float | None = None
    least: float = 0.0

    def followed(self, used: float, by: float) -> Self:
        """By this lambda, after a step with the other one."""
        least = self.least or LEAST * used
        return replace(self, damping=max(by, least), least=least)


class DampedOptimizer(ModelOptimizer):
    """Damped steps whose lambda follows from the decrease that they achieve, by a law.

    The whole step is tried; the ratio of its actual to its predicted decrease gives the next
    lambda; and where it decreases the loss too little, the search shortens it.

    Args:
        params: parameters, named parameters or groups.
        defaults: hyper-parameters of the groups, with at least "lr".
        law: (lambda, ratio) -> next lambda.
        search: the length, from the whole step down.
        start: the first lambda, in units of the curvature along the gradient.

    `stats` adds `damping` (of this step; the largest, where groups differ) and `ratio`.
    """

    memory: Damping
    search: Search

    def __init__(
        self,
        params: Parameters,
        defaults: dict[str, Any],
        law: DampingLaw,
        search: Search,
        # Measured (docs/design_notes.md): from 1e-6 on as good, and 1e-4 loses fewer first steps
        start: float = 1e-4,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, defaults, search, **common)
        self.law, self.start = law, start
        check_parts(self, "law", "search")
        settings.check(self, start=POSITIVE)
        self.memory = Damping()

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The whole damped step, or what the search leaves of it; and the next lambda."""
        if not linearization.gradient.any():
            return Step.stay(Outcome.NO_GRADIENT)
        damping = self.damping(linearization)
        whole = self.aim(self.model(linearization, objective), damping)
        # Ratios of smaller differences are rounding, and would drive lambda anywhere
        if abs(whole.predicted) <= rounding(linearization):
            return Step.stay(Outcome.NO_DECREASE_LEFT, **whole.info)
        trial = tried(whole, damping, linearization, objective)
        self.adapt(damping, trial.ratio, self.law)
        # In float64: as_tensor would round a number to float32
        level = float(torch.as_tensor(damping, dtype=torch.float64).max())
        # The law judges the whole step: it is the damping's, not the search's
        step = self._shortened(whole, linearization, objective)
        return step.noting(**whole.info, damping=level, ratio=trial.ratio)

    def damping(self, linearization: Linearization) -> float | Tensor:
        """lambda of this step: as the last one left it, or the first one."""
        return self.memory.damping or self.start * scale_of(linearization)

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """The whole damped step."""
        damping = self.damping(linearization)
        if not isinstance(damping, Tensor):
            self.memory = replace(self.memory, damping=damping)
        step = self.aim(self.model(linearization, objective), damping)
        if abs(step.predicted) <= rounding(linearization):
            return Step.stay(Outcome.NO_DECREASE_LEFT, **step.info)
        return step.noting(damping=float(torch.as_tensor(damping, dtype=torch.float64).max()))

    def learn(self, law: DampingLaw, ratio: float) -> None:
        """lambda follows the ratio of the step before."""
        self.adapt(self.memory.damping or 0.0, ratio, law)

    def adapt(self, damping: float | Tensor, ratio: float, law: DampingLaw) -> None:
        """lambda of the next step, by a law."""
        self.memory = self.memory.followed(float(damping), law(float(damping), ratio))

    def _shortened(self, whole: Step, linearization: Linearization, objective: Objective) -> Step:
        if whole.displacement is None or not whole.is_finite:
            return Step.stay(Outcome.NOT_FINITE)
        step = self.search(objective, linearization, whole.displacement)
        # The promise was made for the whole step only
        return replace(step, predicted=whole.predicted if step.length == 1 else step.predicted)


def rounding(linearization: Linearization) -> float:
    """Of the loss: a smaller decrease cannot be seen."""
    return torch.finfo(linearization.residual.dtype).eps * abs(linearization.loss)
