"""The least optimizer there can be: what every optimizer inherits, tested without the rest."""

from __future__ import annotations

from torch import Tensor

from kfac_pinn.jacobian.closure import Linearization
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.search.line import FixedStep, Search


class Steepest(DirectionOptimizer):
    """theta <- theta - lr grad L."""

    def __init__(self, params: Parameters, lr: float = 0.1, search: Search | None = None) -> None:
        super().__init__(params, {"lr": lr}, search or FixedStep())

    def direction(self, linearization: Linearization) -> Tensor:
        return -linearization.gradient
