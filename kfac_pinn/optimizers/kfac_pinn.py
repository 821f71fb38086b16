"""KFACPINN: truncated Gauss-Newton, with K-FAC as the preconditioner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_pinn.curvature.factor_damping import TraceNormDamping
from kfac_pinn.curvature.kronecker_factors import Average, Factors
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import Pairs, conjugate_gradients
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.damped import DampedOptimizer, Damping
from kfac_pinn.optimizers.kfac import STORED, refreshed
from kfac_pinn.search.damping import MARQUARDT, DampingLaw
from kfac_pinn.search.line import Armijo, Search
from kfac_pinn.search.model import DampedModel, decrease_of_solution
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KFACPINN"]


@dataclass(frozen=True)
class Memory(Damping):
    """lambda, and the products that correct the preconditioner."""

    pairs: Pairs | None = None


class KFACPINN(DampedOptimizer):
    """Truncated Gauss-Newton: conjugate gradients preconditioned by K-FAC.

    Take `GaussNewton` for networks of up to about 1,000 parameters and `KFACPINN` for larger ones,
    in float64; neither has anything to tune.

    Each step takes a few conjugate gradient iterations in the exact damped Gauss-Newton system

        (J^T J + lambda I) d = -grad L

    from d = 0. The preconditioner is the K-FAC inverse F^-1, corrected by the last products with
    J^T J that earlier steps computed (`Pairs`): as J changes slowly, the iterations continue where
    they stopped. lambda follows the ratio of actual to predicted decrease, and a step that does
    not decrease the loss is shortened. Cost: a step of KFAC, `products` products with J and J^T,
    one or a few evaluations of the loss; memory: 2 `memory` vectors of length P.

    Args:
        params: parameters, named parameters or groups; lr may differ by group.
        lr: multiplies the step.
        products: conjugate gradient iterations a step, at most.
        memory: products that are remembered.
        factors: of the preconditioner.
        law: how the damping follows the decrease ratio.
        search: what is left of a step that decreases the loss too little.

    Raises:
        TypeError, ValueError: for parameters or settings that cannot be trained with, each named.

    Source: docs/design_notes.md has what was measured; truncated Gauss-Newton: Martens (2010);
    the correction: Morales & Nocedal (2000).
    """

    kinds = STORED
    memory: Memory

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        # Measured (docs/design_notes.md): 5 are slower on the heat equation, 20 on both at first
        products: int = 10,
        memory: int = 100,
        factors: Factors | None = None,
        law: DampingLaw = MARQUARDT,
        search: Search | None = None,
        **common: Unpack[Common],
    ) -> None:
        self.products = whole_number("KFACPINN: products", products)
        self.limit = whole_number("KFACPINN: memory", memory, least=0)
        # A tenth of the slope's promise, or a quarter of the step: a trial costs an evaluation, and
        # 4^-7 of a step is none
        search = Armijo(0.1, 0.25, 8) if search is None else search
        super().__init__(params, {"lr": lr}, law, search, **common)
        # The first factors themselves, not averaged with the identity: F is a preconditioner from
        # the first step on, and A and B share the damping by their traces
        if factors is None:
            factors = Factors(average=Average(start=None), rule=TraceNormDamping())
        self.factors, self.memory = factors, Memory()
        check_parts(self, "factors")

    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        """Its steps are a few conjugate gradients long."""
        return DampedModel(linearization, partial(self.solve, linearization))

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The damped step; where none decreases the loss, K-FAC alone preconditions the next."""
        step = super().propose(linearization, objective)
        if step.outcome in (Outcome.NO_DECREASE, Outcome.ASCENT, Outcome.NOT_FINITE):
            self.memory = replace(self.memory, pairs=None)  # they may be why
        return step

    def solve(self, linearization: Linearization, damping: float) -> Step:
        """d, and the decrease L - 1/2 ||r + J d||^2 that it promises."""
        # F stands for J^T J + lambda I and the ridge, so its factors are damped by as much
        level = float(torch.as_tensor(linearization.damped(damping)).mean())
        curvature = refreshed(self, self.factors, linearization, lambda block: level)
        g = linearization.gradient
        spent: list[tuple[Tensor, Tensor]] = []

        def product(v: Tensor) -> Tensor:
            spent.append((v, linearization.curvature(v)))
            return spent[-1][1] + damping * v

        known = self._pairs(g)
        inverse = known.correct(curvature.inverse, damping)
        # Conjugate to all former directions: ten are few, and `Pairs` inverts on their span only so
        found = conjugate_gradients(
            product, -g, preconditioner=inverse, iterations=self.products, conjugate=True
        )
        # Without the damping, so that the next lambda can be added to them
        self.memory = replace(self.memory, pairs=known.join(spent, self.limit))
        value = found.model_values[-1]
        return Step(found.x, predicted=decrease_of_solution(found.x, damping, value))

    def _pairs(self, like: Tensor) -> Pairs:
        """What is remembered; forgotten when the set of parameters changes."""
        known = self.memory.pairs
        return known if known is not None and known.S.shape[1] == len(like) else Pairs.none(like)
