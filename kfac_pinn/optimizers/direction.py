"""The first kind of optimizer: a direction, and a search for how far to go along it."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.damping import DampingLaw
from kfac_pinn.search.line import Search
from kfac_pinn.search.model import squared_length
from kfac_pinn.search.step import Outcome, Step

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["DirectionOptimizer"]


class DirectionOptimizer(LeastSquaresOptimizer):
    """theta <- theta + length * lr * d: a subclass says the direction d, the search the length.

    Args:
        params: parameters, named parameters or groups.
        defaults: hyper-parameters of the groups, with at least "lr".
        search: the step length.
    """

    search: Search

    def __init__(
        self,
        params: Parameters,
        defaults: dict[str, Any],
        search: Search,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, defaults, search, **common)
        check_parts(self, "search")

    @abstractmethod
    def direction(self, linearization: Linearization) -> Tensor:
        """d, shape (P,), before lr and search."""

    @property
    def evaluates(self) -> bool:
        """If the search does; third parties' searches are taken to."""
        return getattr(self.search, "evaluates", True)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The search along the direction, scaled by each group's lr."""
        direction = self.direction(linearization) * self.expand("lr")
        if not torch.isfinite(direction).all():
            return Step(direction, outcome=Outcome.NOT_FINITE)
        return self.search(objective, linearization, direction)

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """As far along the direction as the model goes down, within reach of the steps before."""
        direction = self.direction(linearization) * self.expand("lr")
        if not torch.isfinite(direction).all():
            return Step(direction, outcome=Outcome.NOT_FINITE)
        slope = float(linearization.gradient @ direction)
        if slope >= 0:
            return Step.stay(Outcome.ASCENT)
        curvature = float(squared_length(linearization, direction))
        # The minimum of the exact model on the line; a flat line has none
        length = min(self.unseen.reach, -slope / curvature if curvature > 0 else math.inf)
        promised = -length * (slope + 0.5 * length * curvature)
        return Step(length * direction, length=length, predicted=promised)

    def learn(self, law: DampingLaw, ratio: float) -> None:
        """The reach is the reciprocal of a damping, and never beyond the whole direction."""
        reach = min(1.0, 1 / law(1 / self.unseen.reach, ratio))
        self.unseen = replace(self.unseen, reach=reach)
