"""Gauss-Newton with the damping chosen by the decrease that it achieves."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from kfac_pinn.curvature.compression import Compression, Exact
from kfac_pinn.curvature.decomposition import Decomposition
from kfac_pinn.jacobian.closure import Linearization
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.line import FixedStep, Objective, Step, promised
from kfac_pinn.search.trust_region import RatioControl, TargetSchedule, Trial

__all__ = ["GaussNewton"]

# Generalised cross-validation expects loss / (1 - share)^2 on other points: a hundred times the
# loss where this share of the rows is fitted freely.
FREE_SHARE = 0.9
FIRST_STEPS = 10  # while the damping still comes down, the share says nothing yet


class GaussNewton(LeastSquaresOptimizer):
    """The longest damped Gauss-Newton step that still achieves a target share of its prediction.

        theta <- theta + p(lambda),    p(lambda) = -(J^T J + lambda I)^-1 J^T r,

    lambda such that (decrease of the loss) / (decrease of the model) hits the target. Nothing is to
    be tuned. The step comes from the singular values of J itself, since J^T J has only half of
    their digits (it serves while lambda is large). The target is low at first, and lower where the
    damping does not fall (long steps, under which it falls by many orders of magnitude), high once
    the damping has passed its minimum.

    Take it where J's decomposition is affordable: it is the most accurate optimizer here by orders
    of magnitude. On one CPU core in float64 that means all of J up to about a thousand parameters,
    and a thousand sketched rows (`Sketch(rows=1300)`, of ten thousand points or more) up to about
    ten thousand. Take `KFACPINN` for larger networks. A step costs O(R P min(R, P)) operations and
    O(min(R, P) P) numbers of memory, R rows (points of all residuals) and P parameters.

    Args:
        params: as for any torch optimizer.
        lr: scales the steps of a group; 1 unless a group is to move less.
        compression: how J is made small enough: all of it (`Exact()`) or a `Sketch(rows)`.
        control: how the target is hit.
        schedule: which target holds when.

    `stats` adds to the usual entries: damping, ratio, target, radius, and effective_parameters, the
    number of residuals that the step fits freely. Where that is most of them the points are being
    interpolated, whatever the equation says between them: a warning says so, once. Use more points,
    and hold some out.

    Source: DSGNAR (2607.02194); what was measured here: docs/notes_gauss_newton.md.
    """

    _warned = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        compression: Compression | None = None,
        control: RatioControl | None = None,
        schedule: TargetSchedule | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr}, FixedStep())
        self.compression = compression or Exact()
        self.control = control or RatioControl()
        self.schedule = schedule or TargetSchedule()

    def direction(self, linearization: Linearization) -> Tensor:
        """p(lambda) as long as the last step was."""
        model = self.decompose(linearization)
        return model.step(model.damping(self._radius(linearization))).to(linearization.residual)

    def decompose(self, linearization: Linearization) -> Decomposition:
        """The quadratic model of this step."""
        generator = Generator().manual_seed(self.common.get("step", 0))
        return self.compression(linearization, generator, self.common.get("damping", 1.0))

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The longest step that hits the target, if it decreases the loss."""
        if not linearization.gradient.any():
            return Step(None, info={"reason": "the gradient is zero"})
        model = self.decompose(linearization)
        attempt = _Attempt(model, objective, linearization, self.expand("lr"))
        radius, target = self._radius(linearization), self._target
        trial = self.control(attempt, radius, target)
        accepted = trial.loss < linearization.loss
        self._remember(trial, model, accepted)
        info: dict[str, float | int | str] = {
            "damping": trial.damping,
            "ratio": trial.ratio,
            "target": target,
            "radius": trial.radius,
            "effective_parameters": model.effective_parameters(trial.damping),
        }
        self._warn(float(info["effective_parameters"]), len(linearization.residual))
        if accepted:
            return Step(trial.displacement, trial.loss, info)
        return Step(None, info={**info, "reason": "no radius within reach decreases the loss"})

    @property
    def _target(self) -> float:
        if self.common.get("second_stage", False):
            return self.schedule.high
        return float(self.common.get("low_target", self.schedule.low))

    def _radius(self, linearization: Linearization) -> float:
        """Where the search begins: the last radius; in the first step, ||theta||."""
        squares = sum(float(p.detach().square().sum()) for p in linearization.parameters)
        length = math.sqrt(squares) or 1.0
        rounding = torch.finfo(linearization.residual.dtype).eps * length
        return max(float(self.common.get("radius", length)), rounding)

    def _remember(self, trial: Trial, model: Decomposition, accepted: bool) -> None:
        """The radius and target for the next step, and whether the damping passed its minimum."""
        common, schedule = self.common, self.schedule
        step, lowest = common.get("step", 0) + 1, common.get("lowest_damping", math.inf)
        largest = max(float(model.S[0]) ** 2, torch.finfo(torch.float64).tiny)
        relative = common["damping"] = trial.damping / largest
        progressed = accepted and relative < lowest / 1.5  # less than a factor of 2/3 is none
        if progressed:
            common["lowest_damping"], common["lowest_step"] = relative, step
        waited = step - common.get("lowest_step", 0)
        if schedule.passed(common.get("lowest_damping", math.inf), waited):
            common["second_stage"] = True
        common["low_target"] = schedule.following(
            common.get("low_target", schedule.low), progressed
        )
        common["step"] = step
        common["radius"] = trial.radius  # of a failed step: the shortest that was tried

    def _warn(self, free: float, rows: int) -> None:
        """Once, when nearly all rows are fitted freely."""
        if self._warned or self.common["step"] <= FIRST_STEPS or free <= FREE_SHARE * rows:
            return
        self._warned = True
        warnings.warn(
            f"GaussNewton fits {free:.0f} of {rows} residuals freely: it interpolates the points, "
            "whatever the equation says between them; use more points (about ten residuals a "
            "parameter) or a smaller network, and hold some points out to see the error",
            stacklevel=6,  # the line that calls `step`
        )


@dataclass(frozen=True)
class _Attempt:
    """radius -> Trial, on the model and the loss of one step."""

    model: Decomposition
    objective: Objective
    linearization: Linearization
    lr: Tensor

    def __call__(self, radius: float) -> Trial:
        damping = self.model.damping(radius)
        step = self.model.step(damping).to(self.lr)
        displacement = self.lr * step
        loss = self.objective(displacement)
        predicted = max(
            self._promised(step, displacement, damping), torch.finfo(torch.float64).tiny
        )
        ratio = (self.linearization.loss - loss) / predicted
        length = float(self.model.norm(self.model.S.new_tensor(damping)))
        return Trial(displacement, damping, length, loss, ratio)

    def _promised(self, step: Tensor, displacement: Tensor, damping: float) -> float:
        """The model's decrease, of the whole step or of what lr leaves of it."""
        if torch.equal(step, displacement):
            return self.model.decrease(damping)
        return promised(self.linearization, displacement)
