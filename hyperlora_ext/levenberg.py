"""Levenberg-Marquardt for few parameters or few rows, with a veto of points not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.closure import Linearization
from kfac_pinn.linalg import damped_inverse
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.geodesic import Geodesic
from kfac_pinn.search.line import FixedStep, Objective, Step

__all__ = ["LevenbergMarquardt"]


class LevenbergMarquardt(LeastSquaresOptimizer):
    """p = -(J^T J + mu I)^-1 J^T r, bent, with mu from the decrease that was achieved.

    The product B A makes the valley curved: steps follow it to second order (`Geodesic`), which
    allows a damping fifty times smaller on adapters for one more closure call and one more solve.
    Solved with J^T J (P, P) or with J J^T (R, R), whichever is smaller, by Cholesky: a few times
    cheaper than `GaussNewton`, which decomposes J, and less accurate where J is nearly singular.
    Adapters have few parameters and hypernetworks few rows: both are cheap here.

    A few hundred residuals can be fitted without solving the equation. So a step is accepted only
    if it lowers the loss on its points and does not raise that on `held_out` by more than
    `slack`: a veto, no more, for a fixed sample that chose every step would be fitted in its turn.
    After a veto the point set is exhausted (`vetoed`), and it is time for new points.

    Args:
        params: to be trained.
        lr: multiplies the step.
        held_out: a second closure, of other points; None: no veto.
        damping: mu of the first trial, as a fraction of the mean diagonal of J^T J.
        trials: dampings tried in a step: 1, 2, 8, 64, ... times the first (Nielsen).
        slack: of the veto, as a fraction of the held-out loss.

    Source: Levenberg (1944), Marquardt (1963); Nielsen (1999) on damping; Transtrum & Sethna
    (2012) on acceleration.
    """

    acceleration = Geodesic(h=1e-3)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        held_out: Callable[[], Any] | None = None,
        damping: float = 1e-6,
        trials: int = 6,
        slack: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr}, FixedStep())
        self.held_out, self.damping = held_out, damping
        self.trials, self.slack = trials, slack

    @property
    def vetoed(self) -> bool:
        """Whether the last step was refused for the held-out points' sake."""
        return bool(self.common.get("vetoed"))

    def direction(self, linearization: Linearization) -> Tensor:
        """The step at the present damping."""
        return Solver(linearization).step(self.common["damping"])

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The first of the trials that descends and is not vetoed."""
        solver, judge = Solver(linearization), self._judge(objective)
        first = damping = self.common.get("damping", self.damping * solver.mean_diagonal)
        vetoed = False
        for trial in range(self.trials):
            step, ratio = self._attempt(solver, damping, objective)
            moved = step.displacement
            vetoed = ratio > 0 and moved is not None and not judge(moved)
            if ratio > 0 and not vetoed:
                relaxed = damping * factor(ratio) if trial == 0 else damping
                self.common.update(damping=relaxed, vetoed=False)
                return step
            damping *= 2.0 ** (trial + 1)
        self.common.update(damping=first if vetoed else damping, vetoed=vetoed)
        reason = "the held-out loss rises" if vetoed else "no damping lowers the loss"
        return Step(None, info={"reason": reason, "damping": damping, "vetoed": int(vetoed)})

    def _attempt(self, solver: Solver, damping: float, objective: Objective) -> tuple[Step, float]:
        """The bent step at a damping, and which part of the promised decrease it keeps."""
        linearization, pull_back = solver.linearization, solver.pull_back(damping)
        velocity = -self.expand("lr") * pull_back(linearization.residual)
        path = objective, linearization
        step = self.acceleration.search(whole, path, velocity, pull_back)
        promised = max(solver.decrease(velocity, damping), 1e-300)
        ratio = (linearization.loss - step.loss) / promised
        step.info |= {"damping": damping, "ratio": ratio, "vetoed": 0}
        return step, ratio

    def _judge(self, objective: Objective) -> Callable[[Tensor], bool]:
        """Whether a displacement is acceptable on the held-out points."""
        if self.held_out is None:
            return lambda step: True
        held_out = Objective(self.held_out, objective.parameters)
        bound = (1 + self.slack) * held_out(torch.zeros_like(held_out.origin))
        return lambda step: held_out(step) <= bound


class Solver:
    """Damped steps of one linearisation, on its smaller side."""

    def __init__(self, linearization: Linearization) -> None:
        self.linearization = linearization
        self.tall = linearization.size <= len(linearization.residual)
        self.matrix = linearization.gramian() if self.tall else linearization.kernel()

    @property
    def mean_diagonal(self) -> float:
        """tr(J^T J) / P = tr(J J^T) / P."""
        return float(self.matrix.trace()) / self.linearization.size

    def pull_back(self, damping: float) -> Callable[[Tensor], Tensor]:
        """u -> (J^T J + mu)^-1 J^T u = J^T (J J^T + mu)^-1 u, factored once."""
        J, inverse = self.linearization, damped_inverse(self.matrix, damping)
        if self.tall:
            return lambda u: inverse(J.vjp(u))
        return lambda u: J.vjp(inverse(u))

    def step(self, damping: float) -> Tensor:
        """-(J^T J + mu)^-1 J^T r, shape (P,)."""
        return -self.pull_back(damping)(self.linearization.residual)

    def decrease(self, step: Tensor, damping: float) -> float:
        """m(0) - m(p) of m(p) = 1/2 ||J p + r||^2: with (J^T J + mu) p = -g, (mu p - g) . p / 2."""
        return float(((damping * step - self.linearization.gradient) * step).sum()) / 2


def factor(ratio: float) -> float:
    """What multiplies the damping after a step that kept so much of its promise."""
    return 1 / 3 if ratio > 0.75 else 1.0 if ratio > 0.25 else 2.0


def whole(objective: Objective, linearization: Linearization, direction: Tensor) -> Step:
    """The search that takes the whole step, and says what it brought."""
    return Step(direction, objective(direction))
