"""Gauss-Newton with the damping chosen by the decrease that it achieves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Generator

from kfac_pinn.curvature.compression import Compression, Last, Sketch
from kfac_pinn.curvature.decomposition import Decomposition
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import flatten
from kfac_pinn.optimizers.arguments import Common, check_parts, only_unseen
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.damped import ModelOptimizer, tried
from kfac_pinn.optimizers.remarks import JUMP, Subject
from kfac_pinn.search.damping import DampingLaw
from kfac_pinn.search.model import DampedModel, QuadraticModel, Trial
from kfac_pinn.search.one_evaluation import OneEvaluation, standard_error
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.search.trust_region import RatioControl, Stage, TakenStep, TargetSchedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GaussNewton"]

# Generalised cross-validation expects loss / (1 - share)^2 on other points: a hundred times the
# loss where this share of the rows is fitted freely.
FREE_SHARE = 0.9
FIRST = Last(damping=1.0, free=0.0)  # the first step begins with large dampings
BEGINNING = Stage()
FIRST_STEPS = 10  # while the damping still comes down, the share says nothing yet


@dataclass(frozen=True)
class Memory:
    """What is remembered of the steps before.

    Attributes:
        radius: of the last step; of a failed one: the shortest that was tried.
        last: its damping, and how many parameters it fitted freely.
        stage: which target holds.
        taken: the last step, if one was taken, for new points to judge it.
        began: the loss that the last step began with; 0 before the first.
    """

    radius: float | None = None
    last: Last = FIRST
    stage: Stage = BEGINNING
    taken: TakenStep | None = None
    began: float = 0.0

    def begin(self, linearization: Linearization, decomposition: Decomposition) -> float:
        """Where the search begins: the last radius; in the first step, ||D theta||."""
        theta = flatten(p.detach() for p in linearization.parameters)
        length = float((decomposition.units * theta).norm()) or 1.0
        # A step below the rounding of theta moves nothing: the radius must be able to grow again
        rounding = torch.finfo(linearization.residual.dtype).eps * length
        return max(length if self.radius is None else self.radius, rounding)

    def renewed(self, loss: float) -> Memory:
        """Nothing, where the loss is a hundred times what the last step began with.

        No single step raises it so much on other points: the problem itself is another, and the
        minimum of the damping that was passed was not its own.
        """
        return Memory() if 0 < JUMP * self.began < loss else self

    def longest(self, linearization: Linearization) -> float:
        """The bound of the radius, if the points are new; inf if they are not."""
        if self.taken is None:
            return math.inf
        # Sums in another order agree to more than a quarter of the digits, new points to less
        rounding = torch.finfo(linearization.residual.dtype).eps ** 0.25
        noise = standard_error(linearization)
        return self.taken.longest(linearization.loss, noise, rounding)

    def followed(self, trial: Trial, decomposition: Decomposition) -> Memory:
        """With the radius, and what the next compression asks of this step."""
        damping = float(trial.damping)
        # In units of sigma_1^2, which no scaling of the residuals changes
        largest = max(float(decomposition.S[0]) ** 2, torch.finfo(torch.float64).tiny)
        last = Last(damping / largest, decomposition.effective_parameters(damping))
        return Memory(trial.radius, last, self.stage)

    def learnt(self, law: DampingLaw, ratio: float) -> Memory:
        """With the radius that follows, the reciprocal of a damping."""
        if self.radius is None:
            return self
        return replace(self, radius=1 / law(1 / self.radius, ratio))


class GaussNewton(ModelOptimizer):
    """The longest damped Gauss-Newton step that still achieves a target share of its prediction.

        theta <- theta + p(lambda),    p(lambda) = -(J^T J + lambda D^2)^-1 J^T r,

    lambda such that (decrease of the loss) / (decrease of the model) hits the target. Nothing is to
    be tuned. D is 1 for layers; a number or tensor of its own (an unknown of the equation) has the
    unit that its columns of J tell. The step comes from the singular values of J itself, since J^T
    J has only half of their digits (it serves while lambda is large). The target is low at first,
    and lower where the damping does not fall (long steps, under which it falls by many orders of
    magnitude), high once the damping has passed its minimum, and low again where the loss falls
    slower than before. Where the points of a step are new, they judge the one before: it is no
    longer than twice, or half, that one.

    A step costs O(R P min(R, P)) operations for R rows (points of all residuals) and P parameters:
    a second or less up to about a thousand of either. Above, m ~ 1000 random sums of the rows stand
    for them, O(m^2 P + m^3), the step being the best combination of two that they know
    (`sketched_model`). Given minutes it ends the most accurate here by orders of magnitude, up to
    about ten thousand parameters; in seconds, from about a thousand on, truncated steps are ahead.

    A network that is trained already, on a problem of the same kind, needs no such long steps: one
    ratio, `schedule=TargetSchedule(low=0.5, least=0.5)`, is quicker by far (docs/howto).

    Args:
        params: as for any torch optimizer.
        lr: scales the steps of a group; 1 unless a group is to move less.
        compression: how J is made small: `Sketch()`, which keeps all of J where that is cheap,
            with a number of rows of your own, or all of J (`Exact()`).
        control: how the target is hit.
        schedule: which target holds when.
        search: `OneEvaluation()` instead of the control.

    `stats` adds to the usual entries: damping, ratio, target, radius, and effective_parameters, the
    number of residuals that the step fits freely. Where that is most of them the points are being
    interpolated, whatever the equation says between them: a warning says so, once. Use more points,
    and hold some out.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: DSGNAR (2607.02194); what was measured here: docs/design_notes.md.
    """

    memory: Memory

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        compression: Compression | None = None,
        control: RatioControl | None = None,
        schedule: TargetSchedule | None = None,
        search: OneEvaluation | None = None,
        **common: Unpack[Common],
    ) -> None:
        only_unseen(type(self), search)
        super().__init__(params, {"lr": lr}, search, **common)
        self.memory = Memory()
        self.compression = Sketch() if compression is None else compression
        self.control = RatioControl() if control is None else control
        self.schedule = TargetSchedule() if schedule is None else schedule
        check_parts(self, "compression", "control", "schedule")

    @property
    def method(self) -> DecomposedSteps:
        """How its steps are found."""
        return DecomposedSteps(self.compression, self.control, self.schedule)

    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        """p(lambda) from the singular values of J."""
        return damped_model(linearization, self.decompose(linearization))

    def decompose(self, linearization: Linearization) -> Decomposition:
        """J of this step, decomposed."""
        return self.method.decompose(linearization, self.steps, self.memory.last)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The longest step that hits the target, if it decreases the loss."""
        if not linearization.gradient.any():
            return Step.stay(Outcome.NO_GRADIENT)
        step, self.memory = self.method.propose(self, self.memory, linearization, objective)
        return step

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """The step of the radius that the ratios so far allow."""
        step, self.memory = self.method.leap(self, self.memory, linearization)
        return step

    def learn(self, law: DampingLaw, ratio: float) -> None:
        """The radius is the reciprocal of a damping."""
        self.memory = self.memory.learnt(law, ratio)


@dataclass(frozen=True)
class DecomposedSteps:
    """How `GaussNewton` finds its steps. Settings only: what is remembered goes in and comes out.

    Attributes:
        compression, control, schedule: as of `GaussNewton`.
    """

    compression: Compression
    control: RatioControl
    schedule: TargetSchedule

    def decompose(self, linearization: Linearization, number: int, last: Last) -> Decomposition:
        """J of a step, decomposed."""
        # By the number of the step, so that a resumed run draws the same rows
        return self.compression(linearization, Generator().manual_seed(number), last)

    def propose(
        self,
        optimizer: ModelOptimizer,
        memory: Memory,
        linearization: Linearization,
        objective: Objective,
    ) -> tuple[Step, Memory]:
        """The longest step that hits the target, if it decreases the loss."""
        memory = memory.renewed(linearization.loss)
        decomposition = self.decompose(linearization, optimizer.steps, memory.last)
        model, longest = damped_model(linearization, decomposition), memory.longest(linearization)
        target = self.schedule.target(memory.stage)

        def attempt(radius: float) -> Trial:
            damping = decomposition.damping(min(radius, longest))
            trial = tried(optimizer.aim(model, damping), damping, linearization, objective)
            return replace(trial, radius=length_of(decomposition, damping))

        # Trials share the decomposition: each costs little more than an evaluation of the loss
        trial = self.control(attempt, memory.begin(linearization, decomposition), target)
        before = linearization.loss
        # Any decrease: how much is the target's business
        accepted = trial.step.loss < before
        after = trial.step.loss if accepted else before
        memory = memory.followed(trial, decomposition)
        stage = self.schedule.after(memory.stage, memory.last.damping, before, after)
        taken = TakenStep(trial.radius, trial.step.predicted, before, after) if accepted else None
        free = memory.last.free
        warn_of_interpolation(optimizer, free, len(linearization.residual))
        step = trial.step if accepted else Step.stay(Outcome.NO_DECREASE)
        noted = step.noting(
            damping=float(trial.damping),
            ratio=trial.ratio,
            target=target,
            radius=trial.radius,
            effective_parameters=free,
        )
        return noted, replace(memory, stage=stage, taken=taken, began=before)

    def leap(
        self, optimizer: ModelOptimizer, memory: Memory, linearization: Linearization
    ) -> tuple[Step, Memory]:
        """The step of the radius that the ratios so far allow."""
        decomposition = self.decompose(linearization, optimizer.steps, memory.last)
        damping = decomposition.damping(memory.begin(linearization, decomposition))
        step = optimizer.aim(damped_model(linearization, decomposition), damping)
        # The step's own, not the one asked for: the damping may have met its lower bound
        radius = length_of(decomposition, damping)
        # Taken on trust; the next loss judges it, and `learnt` shortens what it finds too long
        memory = memory.followed(Trial(step, damping, math.nan, radius), decomposition)
        return step.noting(damping=damping, radius=radius), memory


def length_of(decomposition: Decomposition, damping: float) -> float:
    """||D p(lambda)||."""
    return float(decomposition.norm(decomposition.S.new_tensor(damping)))


def warn_of_interpolation(optimizer: ModelOptimizer, free: float, rows: int) -> None:
    """Once, when nearly all rows are fitted freely."""
    if optimizer.steps < FIRST_STEPS or free <= FREE_SHARE * rows:
        return
    optimizer.remark(
        Subject.INTERPOLATED,
        f"{type(optimizer).__name__} fits {free:.0f} of {rows} residuals freely: it interpolates "
        "the points, whatever the equation says between them; use more points (about ten residuals "
        "a parameter) or a smaller network, and hold some points out to see the error",
    )


def damped_model(linearization: Linearization, decomposition: Decomposition) -> DampedModel:
    """The model of a step, diagonal in the singular basis, or the one of a sketch."""
    if decomposition.sketched:
        return sketched_model(linearization, decomposition)

    def solve(damping: float) -> Step:
        p = decomposition.step(damping).to(linearization.residual)
        return Step(p, predicted=decomposition.decrease(damping))

    return DampedModel(linearization, solve)


def sketched_model(linearization: Linearization, decomposition: Decomposition) -> DampedModel:
    """The exact model of a step on the span of two that a sketch knows, eq. (31).

        p(lambda) = c_1 p_1 + c_2 p_2,    p_1 = -(J_S^T J_S + lambda D^2)^-1 J_S^T r_S,
                                          p_2 = -(J_S^T J_S + lambda D^2)^-1 J^T r,    J_S = S J.

    p_1 solves the sketched problem. That is nearly all of it once J can fit r, while the part of r
    that no step removes enters as noise. p_2 has the exact gradient, is free of that noise, and bad
    where S misses curvature. The exact model, two products with J, weighs them.
    """
    other = decomposition.solver(linearization.gradient.double())

    def solve(damping: float) -> Step:
        pair = torch.stack([decomposition.step(damping), other(damping)])
        # At small dampings p_2 is long, and its square beyond float32: unit lengths span the same
        pair = torch.nn.functional.normalize(pair, dim=1, eps=torch.finfo(pair.dtype).tiny)
        ridge = (damping * decomposition.units.square()).to(linearization.residual)
        model = QuadraticModel(linearization, pair.to(linearization.residual), ridge)
        c = model.minimiser()
        return Step(c @ model.directions, predicted=model.decrease(c))

    return DampedModel(linearization, solve)
