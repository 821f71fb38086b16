"""KFACPINN: K-FAC with damping and step length that adapt by themselves."""

from __future__ import annotations

import torch

from kfac_pinn.factors import Factors
from kfac_pinn.linearize import Linearization
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.kfac import KFACStar
from kfac_pinn.search import Objective, QuadraticModel, Step

__all__ = ["KFACPINN"]


class KFACPINN(KFACStar):
    """K-FAC* whose damping follows the decrease ratio: the optimizer to start with."""

    def __init__(self, params: Parameters, factors: Factors | None = None) -> None:
        super().__init__(params, lr=1.0, damping=1e-3, factors=factors)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """One evaluation of the loss."""
        directions = torch.stack([self.direction(linearization), self.gather("step")])
        model = QuadraticModel(linearization, directions, self.expand("damping"))
        coefficients = model.minimiser()
        step = coefficients @ directions
        loss = objective(step)
        ratio = (linearization.loss - loss) / model.decrease(coefficients)
        factor = 0.5 if ratio > 0.75 else 1.0 if ratio > 0.25 else 4.0
        for group in self.param_groups:
            group["damping"] = min(max(group["damping"] * factor, 1e-16), 1e4)
        if not loss < linearization.loss:
            return Step(None, info={"reason": "the loss would rise; damping raised"})
        self.scatter("step", step)
        info = {"damping": self.param_groups[0]["damping"], "ratio": ratio}
        return Step(step, loss, info)
