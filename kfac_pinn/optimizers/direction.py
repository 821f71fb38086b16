"""The first kind of optimizer: a direction, and a search for how far to go along it."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.optimizers.arguments import Common
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.line import Search
from kfac_pinn.search.step import Objective, Outcome, Step

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

    def __init__(self, params: Parameters, defaults: dict[str, Any], search: Search) -> None:
        super().__init__(params, defaults)
        self.search = search

    @abstractmethod
    def direction(self, linearization: Linearization) -> Tensor:
        """d, shape (P,), before lr and search."""

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The search along the direction, scaled by each group's lr."""
        whole = Step(self.direction(linearization) * self.expand("lr"))
        if whole.displacement is None or not whole.is_finite:
            return Step(whole.displacement, outcome=Outcome.NOT_FINITE)
        return self.search(objective, linearization, whole.displacement)
