"""Self-scaled Broyden: a dense inverse Hessian, learnt from gradients alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.jacobian.slopes import slope
from kfac_pinn.linalg import SSBroyden, Update, updated
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.optimizers.reading import Reading
from kfac_pinn.search.line import Search
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.search.wolfe import StrongWolfe

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["InverseHessian", "SelfScaledBroyden"]

SSBROYDEN, WOLFE = SSBroyden(), StrongWolfe()
STUCK = Outcome.ASCENT, Outcome.NO_DECREASE


@dataclass(frozen=True)
class InverseHessian:
    """H, shape (P, P); None before the first step has shown a curvature."""

    matrix: Tensor | None = None

    def of_size(self, size: int) -> Tensor | None:
        """H, unless it is that of another number of parameters."""
        return self.matrix if self.matrix is not None and len(self.matrix) == size else None


class SelfScaledBroyden(DirectionOptimizer):
    """Quasi-Newton with a dense inverse Hessian, from the gradients of any scalar loss.

        d = -H grad L,     theta <- theta + length * lr * d,     H <- update(H, s, y), eq. (35)

    s is the step and y how it changed the gradient, both at the points of one step, so that points
    may be new in every step. Take it where the loss is no sum of squares (an energy, an action),
    for up to a few thousand parameters in float64; where there are residuals, `GaussNewton` knows
    the curvature that H has to learn in hundreds of steps. H takes P^2 numbers, a step twice that
    (150 MB at P = 3,000) and 6 P^2 operations besides the gradients.

    Args:
        params: parameters, named parameters or groups; lr may differ by group.
        lr: multiplies the direction before the search.
        update: `SSBroyden()`, `SSBFGS()` or `BFGS()`.
        search: by default to the strong Wolfe conditions; another one costs a gradient more a step.

    The closure returns residuals, as for every optimizer, or any loss of shape (), whether it calls
    `backward()` or not. A step needs a closure, for gradients at trial parameters. Where H finds no
    descent, it is forgotten and the gradient followed.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Urban, Stefanou & Pons (2025), arXiv:2405.04230; Al-Baali & Khalfan (2005).
    """

    memory: InverseHessian

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        update: Update = SSBROYDEN,
        search: Search = WOLFE,
        **common: Unpack[Common],
    ) -> None:
        if isinstance(search, OneEvaluation):
            raise TypeError(UNSEEN)
        if common.get("check") is not None:
            raise TypeError(NO_CHECK)
        super().__init__(params, {"lr": lr}, search, **common)
        self.update, self.memory = update, InverseHessian()
        check_parts(self, "update")

    def read(self, reading: Reading, objective: Objective) -> Linearization:
        """L and grad L: no residuals are needed, and no J.

        Raises:
            RuntimeError: for a step without a closure.
        """
        if not reading.repeatable:
            raise RuntimeError(NO_CLOSURE)
        found = slope(objective.closure, objective.parameters, objective.names, objective.processes)
        # Trials may add to the gradients of what others train
        found.others = [(leaf, gradient.clone()) for leaf, gradient in found.others]
        return found

    def direction(self, linearization: Linearization) -> Tensor:
        """-H grad L; before H is known a step of unit length at most."""
        g = linearization.gradient
        H = self.memory.of_size(len(g))
        return -g / max(1.0, float(g.norm())) if H is None else -(H @ g)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The search along the direction, and what H learns from where it ends."""
        step = super().propose(linearization, objective)
        if step.outcome in STUCK and self.memory.matrix is not None:
            self.memory = InverseHessian()
            step = super().propose(linearization, objective)
        if step.displacement is not None and step.is_finite:
            y = objective.slope(step.displacement).gradient - linearization.gradient
            self._learn(linearization.gradient, step.displacement, y, step.length)
        return step

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """No step without a look at trial parameters."""
        return LeastSquaresOptimizer.leap(self, linearization, objective)

    def _learn(self, g: Tensor, s: Tensor, y: Tensor, length: float) -> None:
        """H after a step s that changed the gradient g by y."""
        H, ys = self.memory.of_size(len(s)), float(y @ s)
        if H is None:
            if not ys > 0:
                return
            # The curvature of the first step for all directions: Nocedal & Wright, eq. (6.20)
            scale = ys / float(y @ y)
            H, sBs = scale * torch.eye(len(s), dtype=s.dtype, device=s.device), float(s @ s) / scale
        else:
            sBs = self._curvature(H, g, s, length)
        found = updated(H, s, y, sBs, self.update)
        self.memory = self.memory if found is None else InverseHessian(found)

    def _curvature(self, H: Tensor, g: Tensor, s: Tensor, length: float) -> float:
        """s.B s, B = H^-1."""
        rates = {float(group["lr"]) for group in self.param_groups}
        if len(rates) == 1:
            return -length * rates.pop() * float(s @ g)  # B s = -length lr g
        factor, failed = torch.linalg.cholesky_ex(H)
        if failed:
            return 0.0
        return float(s @ torch.cholesky_solve(s[:, None], factor)[:, 0])


UNSEEN = (
    "SelfScaledBroyden reads gradients at trial parameters, which search=OneEvaluation() would not "
    "look at: leave search out, or take KFACPINN or GaussNewton with it"
)
NO_CHECK = (
    "SelfScaledBroyden has no check: its gradients are autograd's own, and there is no Jacobian to "
    "compare; leave it out"
)
NO_CLOSURE = (
    "SelfScaledBroyden reads gradients at trial parameters, for which step() needs a closure: "
    "write `optimizer.step(closure)`, with one that returns the loss, or take KFACPINN or "
    "GaussNewton, which step without"
)
