"""Levenberg-Marquardt for few parameters or few rows, with a veto of points not fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.curvature.sample_space import NaturalGradient, natural_gradient
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import damped_inverse
from kfac_pinn.optimizers.arguments import (
    PART,
    Common,
    check_parts,
    only_unseen,
)
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.damped import Damping, ModelOptimizer, tried
from kfac_pinn.search.damping import NIELSEN, DampingLaw
from kfac_pinn.search.geodesic import Geodesic
from kfac_pinn.search.model import DampedModel, Trial
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import NOT_NEGATIVE, POSITIVE, optional, whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LevenbergMarquardt", "Solver"]

# Rounding is 2e-10 |r| at this h, 6e-6 |r| at the default, eps^(1/3): r_vv of a short step is small
# beside r.
BENT = Geodesic(h=1e-3)


@dataclass(frozen=True)
class Memory(Damping):
    """mu, and whether the last step was vetoed."""

    vetoed: bool = False


class LevenbergMarquardt(ModelOptimizer):
    """p = -(J^T J + mu I)^-1 J^T r, bent, with mu from the decrease that was achieved.

    Where the valley is curved (low-rank adapters: the product B A), steps follow it to second order
    (`Geodesic`), which allows a damping fifty times smaller on adapters for one more closure call
    and one more solve. Solved with J^T J (P, P) or with J J^T (R, R), whichever is smaller, by
    Cholesky: a few times cheaper than `GaussNewton`, which decomposes J, and less accurate where J
    is nearly singular. Take it for few parameters or few rows: adapters have few parameters,
    hypernetworks few rows.

    A few hundred residuals can be fitted without solving the equation. So a step is accepted only
    if it lowers the loss on its points and does not raise that on `held_out` by more than
    `slack`: a veto, no more, for a fixed sample that chose every step would be fitted in its turn.
    After a veto the point set is exhausted (`vetoed`), and it is time for new points.

    Args:
        params: parameters, named parameters or groups; lr may differ by group.
        lr: multiplies the step.
        held_out: a second closure, of other points; None: no veto.
        damping: mu of the first trial, as a fraction of the mean diagonal of J^T J.
        trials: dampings tried in a step: 1, 2, 8, 64, ... times the first (Nielsen). Six where a
            veto is to come early: what is damped enough passes it, and hardly moves.
        slack: of the veto, as a fraction of the held-out loss.
        law: how mu follows the decrease ratio of a first trial.
        acceleration: bends the step; None: straight, as convex losses need it.
        search: `OneEvaluation()` instead of trials; steps are then straight.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Levenberg (1944), Marquardt (1963); Nielsen (1999) on damping; Transtrum & Sethna
    (2012) on acceleration.
    """

    memory: Memory

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        held_out: Callable[[], Any] | None = None,
        damping: float = 1e-6,
        trials: int = 8,
        slack: float = 0.1,
        law: DampingLaw = NIELSEN,
        acceleration: Geodesic | None = BENT,
        search: OneEvaluation | None = None,
        **common: Unpack[Common],
    ) -> None:
        only_unseen(type(self), search)
        POSITIVE("LevenbergMarquardt: damping", damping)
        super().__init__(params, {"lr": lr}, search, **common)
        self.held_out, self.fraction, self.law = held_out, damping, law
        self.trials = whole_number("LevenbergMarquardt: trials", trials)
        self.slack, self.acceleration, self.memory = slack, acceleration, Memory()
        check_parts(self, "law")
        optional_parts = {n: optional(PART[n]) for n in ("acceleration", "held_out")}
        settings.check(self, slack=NOT_NEGATIVE, **optional_parts)

    @property
    def vetoed(self) -> bool:
        """Whether the last step was refused for the held-out points' sake."""
        return self.memory.vetoed

    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        """p(mu), straight, on the smaller side."""
        return DampedModel(linearization, Solver(linearization).step)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The first of the trials that descends and is not vetoed."""
        if not linearization.gradient.any():
            return Step.stay(Outcome.NO_GRADIENT)
        solver, acceptable = Solver(linearization), self._judge(objective)
        first = damping = self.memory.damping or self.fraction * solver.mean_diagonal
        vetoed = False
        for number in range(self.trials):  # by 2, 4, 8, ...: what fails often is far off
            trial = self._attempt(solver, damping, objective)
            vetoed = trial.ratio > 0 and not acceptable(trial.step)
            if trial.ratio > 0 and not vetoed:
                # A damping that had to be raised is right: nothing says yet that it may fall
                following = damping if number else self.law(damping, trial.ratio)
                self.memory = replace(self.memory.followed(first, following), vetoed=False)
                return trial.step.noting(damping=damping, ratio=trial.ratio, vetoed=0)
            damping *= 2.0 ** (number + 1)
        following = first if vetoed else damping
        self.memory = replace(self.memory.followed(first, following), vetoed=vetoed)
        outcome = Outcome.VETOED if vetoed else Outcome.NO_DECREASE
        return Step.stay(outcome, damping=damping, ratio=trial.ratio, vetoed=int(vetoed))

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """The straight step; no held-out loss is there to veto it.

        Raises:
            ValueError: if there is a `held_out`.
        """
        if self.held_out is not None:
            raise ValueError(
                "LevenbergMarquardt(held_out=...) evaluates losses before it takes a step: hand "
                "`step` a closure and leave out search=OneEvaluation(), or leave out held_out"
            )
        solver = Solver(linearization)
        damping = self.memory.damping or self.fraction * solver.mean_diagonal
        self.memory = replace(self.memory, damping=damping)
        return self.aim(DampedModel(linearization, solver.step), damping).noting(damping=damping)

    def learn(self, law: DampingLaw, ratio: float) -> None:
        """mu follows the ratio of the step before."""
        if self.memory.damping is not None:
            used = self.memory.damping
            self.memory = self.memory.followed(used, law(used, ratio))

    def _attempt(self, solver: Solver, damping: float, objective: Objective) -> Trial:
        """The bent step at a damping, and how much of the promised decrease it keeps."""
        solve, linearization = solver.natural_gradient(damping), solver.linearization
        v = -solve(linearization.residual, linearization.linear_term)
        step = self.aim(DampedModel(linearization, lambda damping: v), damping)
        if self.acceleration is not None and step.displacement is not None:
            pull_back = lambda u: solve(u, None)  # noqa: E731
            a, strength = self.acceleration(objective, linearization, v, pull_back)
            # The acceleration is of second order in the step, and so is its lr
            bent = step.displacement + 0.5 * self.expand("lr").square() * a
            step = replace(step, displacement=bent).noting(acceleration=strength)
        return tried(step, damping, linearization, objective)

    def _judge(self, objective: Objective) -> Callable[[Step], bool]:
        """Whether a step is acceptable on the held-out points."""
        if self.held_out is None:
            return lambda step: True
        held_out = Objective(self.held_out, objective.parameters, processes=objective.processes)
        held_out.gradients = objective.gradients
        # Once a step: all trials are compared with the loss at its beginning
        bound = (1 + self.slack) * held_out(torch.zeros_like(held_out.origin))
        return lambda step: step.displacement is not None and held_out(step.displacement) <= bound


class Solver:
    """Damped steps of one linearisation, on its smaller side."""

    def __init__(self, linearization: Linearization) -> None:
        self.linearization = linearization
        uneven = isinstance(linearization.damped(0.0), Tensor)  # one kernel has one damping
        self.tall = uneven or linearization.size <= len(linearization.residual)
        # Formed once: trials differ in the damping of the diagonal alone
        self.matrix = linearization.gramian() if self.tall else linearization.kernel()

    @property
    def mean_diagonal(self) -> float:
        """tr(J^T J) / P = tr(J J^T) / P."""
        return float(self.matrix.trace()) / self.linearization.size

    def natural_gradient(self, damping: float) -> NaturalGradient:
        """(u, e) -> (J^T J + mu I)^-1 (J^T u + e), factored once."""
        J, shift = self.linearization, self.linearization.damped(damping)
        inverse = damped_inverse(self.matrix, shift)
        if not self.tall:
            return natural_gradient(J, inverse, float(shift))
        return lambda u, e: inverse(J.vjp(u) if e is None else J.vjp(u) + e)

    def step(self, damping: float) -> Tensor:
        """-(J^T J + mu I)^-1 grad L, shape (P,)."""
        J = self.linearization
        return -self.natural_gradient(damping)(J.residual, J.linear_term)
