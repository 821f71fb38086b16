"""KFACPINN: truncated Gauss-Newton, with K-FAC as the preconditioner."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from kfac_pinn.curvature.kronecker_factors import Average, Factors, TraceNormDamping
from kfac_pinn.jacobian.linearization import Block, Linearization
from kfac_pinn.linalg import Pairs, conjugate_gradients
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.kfac import KroneckerOptimizer
from kfac_pinn.search.line import Armijo, Marquardt, Objective, Step, promised

__all__ = ["KFACPINN"]


class KFACPINN(KroneckerOptimizer):
    """K-FAC with the defaults one would recommend; damping and step length adapt by themselves.

    Each step goes a few conjugate gradients into the exact damped Gauss-Newton system

        (J^T J + lambda I) d = -grad L

    from d = 0. Their preconditioner is the K-FAC inverse F^-1, corrected by the last products
    with J^T J that earlier steps have spent (`Pairs`): as J changes slowly, the iterations go on
    where they stopped. lambda follows the ratio of actual to predicted decrease, and a step that
    does not decrease the loss is shortened. Cost: a step of KFAC, `products` products with J and
    J^T, one or a few evaluations of the loss; memory: 2 `memory` vectors of length P.

    Take it for any network whose exact Gauss-Newton step (`GaussNewton`: a singular value
    decomposition of J) is too expensive, from about ten thousand parameters and points.

    Args:
        params: parameters, named parameters or groups; lr may differ by group.
        lr: multiplies the step.
        products: conjugate gradient iterations a step, at most.
        memory: products that are remembered.
        factors: of the preconditioner.

    Source: docs/notes_kfac.md has what was measured; truncated Gauss-Newton: Martens (2010);
    the correction: Morales & Nocedal (2000).
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        products: int = 10,
        memory: int = 100,
        factors: Factors | None = None,
    ) -> None:
        if products < 1 or memory < 0:
            found = f"{products} and {memory}"
            raise ValueError(f"products must be at least 1 and memory at least 0, found {found}")
        factors = factors or Factors(average=Average(start=None), rule=TraceNormDamping())
        super().__init__(params, {"lr": lr}, Armijo(0.1, 0.25, 8), factors)
        self.products, self.memory, self.control = products, memory, Marquardt()

    def direction(self, linearization: Linearization) -> Tensor:
        """d, shape (P,), from lambda as the last step left it: steps go through `propose`."""
        return self.solve(linearization, self._damping(linearization))[0]

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """Truncated solve, search along it, and the next lambda."""
        if not linearization.gradient.any():
            return Step(None, info={"reason": "the gradient is zero"})
        damping = self._damping(linearization)
        direction, predicted = self.solve(linearization, damping)
        if abs(predicted) <= torch.finfo(direction.dtype).eps * abs(linearization.loss):
            return Step(None, info={"reason": "the decrease left is below the loss's rounding"})
        scaled = direction * self.expand("lr")
        step = self.search(objective, linearization, scaled)
        if not torch.equal(scaled, direction):
            predicted = promised(linearization, scaled)
        ratio = (linearization.loss - step.loss) / predicted if predicted else math.nan
        if step.displacement is None:
            self.common.pop("pairs")  # they may be why: start again from K-FAC alone
        shortened = "reason" in step.info
        self.common["lambda"] = self.control(damping, -math.inf if shortened else ratio)
        step.info |= {"damping": damping, "ratio": ratio}
        return step

    def solve(self, linearization: Linearization, damping: float) -> tuple[Tensor, float]:
        """d, and the decrease L - 1/2 ||r + J d||^2 that it promises."""
        self.refresh(linearization)
        g = linearization.gradient
        spent: list[tuple[Tensor, Tensor]] = []

        def product(v: Tensor) -> Tensor:
            spent.append((v, linearization.vjp(linearization @ v)))
            return spent[-1][1] + damping * v

        known = self._pairs(g)
        inverse = known.correct(partial(self.precondition, linearization), damping)
        found = conjugate_gradients(
            product, -g, preconditioner=inverse, iterations=self.products, conjugate=True
        )
        self.common["pairs"] = dict(vars(known.join(spent, self.memory)))
        return found.x, 0.5 * damping * float(found.x @ found.x) - found.model_values[-1]

    def _damping(self, linearization: Linearization) -> float:
        """lambda, which begins in proportion to the curvature."""
        damping = self.common.get("lambda") or self.control.first(linearization)
        self.common["lambda"] = damping
        return float(damping)

    def _pairs(self, like: Tensor) -> Pairs:
        """What is remembered; forgotten when the set of parameters changes."""
        known = Pairs(**self.common["pairs"]) if "pairs" in self.common else Pairs.none(like)
        return known if known.S.shape[1] == len(like) else Pairs.none(like)

    def damping_of(self, block: Block) -> float:
        """The factors are damped such that F stands for J^T J + lambda I."""
        return float(self.common["lambda"])
