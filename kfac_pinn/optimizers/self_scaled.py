"""Self-scaled Broyden: a dense inverse Hessian, learnt from gradients alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_pinn.jacobian.capture.data import same_data
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import SSBroyden, Update, updated
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.optimizers.reading import Reading
from kfac_pinn.search.line import Search
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.search.wolfe import StrongWolfe

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["InverseHessian", "SelfScaledBroyden"]

SSBROYDEN, WOLFE = SSBroyden(), StrongWolfe()
STUCK = Outcome.ASCENT, Outcome.NO_DECREASE


@dataclass(frozen=True)
class InverseHessian:
    """What is known of the curvature.

    Attributes:
        matrix: H, shape (P, P); None before the first step has shown a curvature.
        gradient: that before a step which the next one judges, (P,).
    """

    matrix: Tensor | None = None
    gradient: Tensor | None = None


class SelfScaledBroyden(DirectionOptimizer):
    """Quasi-Newton with a dense inverse Hessian, from the gradients of any scalar loss.

        d = -H grad L,     theta <- theta + length * lr * d,     H <- update(H, s, y), eq. (36)

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
    `backward()` or not. Where H finds no descent, it is forgotten and the gradient followed. There
    is no Jacobian that `check` could compare: gradients are autograd's own.

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
        super().__init__(params, {"lr": lr}, search, **common)
        self.update, self.memory = update, InverseHessian()
        check_parts(self, "update")

    def read(self, reading: Reading, objective: Objective) -> Linearization:
        """L and grad L: no residuals are needed, and no J."""
        found = reading.slope(objective.parameters, objective.names)
        # Trials may add to the gradients of what others train
        found.others = [(leaf, gradient.clone()) for leaf, gradient in found.others]
        return found

    def direction(self, linearization: Linearization) -> Tensor:
        """-H grad L."""
        return -self._times_inverse(linearization.gradient)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The search along the direction, and what H learns from where it ends."""
        step = super().propose(linearization, objective)
        if step.outcome in STUCK and self.memory.matrix is not None:
            self.memory = InverseHessian()
            step = super().propose(linearization, objective)
        if step.displacement is not None and step.is_finite:
            there = objective.slope(step.displacement).gradient
            self._learn(linearization.gradient, there, step.displacement)
        return step

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """As far as the quadratic model with B = H^-1 goes down, within reach of the last steps.

        H learns from the last step first, if that was judged at the same points.
        """
        self._look_back(linearization)
        g = linearization.gradient
        self.memory = InverseHessian(self.memory.matrix, g)
        direction = self.direction(linearization) * self.expand("lr")
        slope = float(g @ direction)
        if not slope < 0:
            self.memory = InverseHessian()
            return Step.stay(Outcome.ASCENT if math.isfinite(slope) else Outcome.NOT_FINITE)
        curvature = self._curvature(g, direction)
        length = min(self.unseen.reach, -slope / curvature if curvature > 0 else math.inf)
        promised = -length * (slope + 0.5 * length * curvature)
        return Step(length * direction, length=length, predicted=promised)

    def _look_back(self, there: Linearization) -> None:
        """What H learns from a step that was taken unseen, and has been judged by now."""
        trial, before = self.unseen.trial, self.memory.gradient
        if trial is None or before is None or len(before) != there.size:
            return
        if trial.data is None or there.data is None or same_data(trial.data, there.data):
            self._learn(before, there.gradient, trial.displacement)

    def _learn(self, before: Tensor, after: Tensor, s: Tensor) -> None:
        """H after a step s that changed the gradient."""
        y, H = after - before, self._matrix(len(s))
        if H is None and float(y @ s) > 0:
            # The curvature of the first step in all directions: Nocedal & Wright, eq. (6.20)
            H = float(y @ s / (y @ y)) * torch.eye(len(s), dtype=s.dtype, device=s.device)
            self.memory = InverseHessian(H)
        if H is not None:
            found = updated(H, s, y, self._curvature(before, s), self.update)
            self.memory = self.memory if found is None else InverseHessian(found)

    def _matrix(self, size: int) -> Tensor | None:
        """H, unless it is that of another number of parameters."""
        H = self.memory.matrix
        return H if H is not None and len(H) == size else None

    def _times_inverse(self, g: Tensor) -> Tensor:
        """H g; before H is known a step of unit length at most."""
        H = self._matrix(len(g))
        return g / max(1.0, float(g.norm())) if H is None else H @ g

    def _curvature(self, g: Tensor, s: Tensor) -> float:
        """s.B s of a step s that follows from the gradient g, B = H^-1."""
        H = self._matrix(len(g))
        if H is None or len({float(group["lr"]) for group in self.param_groups}) == 1:
            # B s is parallel to g where s is parallel to H g
            return float((s @ g) ** 2 / (g @ self._times_inverse(g)))
        factor, failed = torch.linalg.cholesky_ex(H)
        return 0.0 if failed else float(s @ torch.cholesky_solve(s[:, None], factor)[:, 0])
