"""The only step loop: linearise, propose, move, write down."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from kfac_pinn import settings
from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.jacobian.closure import NothingReturnedError
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import dimension
from kfac_pinn.optimizers.arguments import (
    PART,
    Common,
    check_group,
    checked,
    grouped,
    natural_lr,
    refuse_unknown,
)
from kfac_pinn.optimizers.flat import Parameters
from kfac_pinn.optimizers.precision import (
    Precision,
    refuse_inference,
    refuse_scaler,
    refuse_untrainable,
)
from kfac_pinn.optimizers.reading import Reading
from kfac_pinn.optimizers.record import (
    OVERFLOW,
    hand_out_gradients,
    loss_before,
    moves,
    statistics_of,
)
from kfac_pinn.optimizers.remarks import (
    Remarks,
    Subject,
    refuse_accumulated,
    without_hooks,
)
from kfac_pinn.optimizers.source import NO_DEFAULT, Source
from kfac_pinn.optimizers.stateful import Snapshot, StatefulOptimizer
from kfac_pinn.search.damping import DampingLaw
from kfac_pinn.search.one_evaluation import OneEvaluation, Trial
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.settings import optional, whole_number
from kfac_pinn.threads import THREADS, Stopwatch

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LeastSquaresOptimizer", "Parameters"]

ONE_EVALUATION = OneEvaluation()


class LeastSquaresOptimizer(StatefulOptimizer, ABC):
    """An optimizer of L(theta) = sum_k 1/2 mean r_k^2: a subclass says which step it proposes.

    Most are of one of two kinds: a `DirectionOptimizer` (a direction and a search) or a
    `DampedOptimizer` (damped steps and a damping law).

    Args:
        params: parameters, named parameters or groups.
        defaults: numbers of the groups, with at least "lr".
        search: how far to go; None where the optimizer says so itself.

    Attributes:
        positive: the groups' numbers that must not be zero.
        search: as given; `OneEvaluation()`: as the next loss will judge.
        check: when the Jacobian is compared with autograd's; True: at every step, False: never.
        processes: that step together, each with points of its own.
        stats: of the last step: loss, new_loss, evaluations, step_length, shortened, reason, ...
            The reason is empty unless nothing moved.
    """

    positive: ClassVar[frozenset[str]] = frozenset({"lr"})
    _left: float = math.nan  # the loss after the last step
    _step_supports_amp_scaling = True  # so that a GradScaler shows itself, and is refused

    def __init__(
        self,
        params: Parameters,
        defaults: dict[str, Any],
        search: Any = None,
        /,
        **common: Unpack[Common],
    ) -> None:
        rest: dict[str, Any] = dict(common)
        decay, self.max_iter = rest.pop("weight_decay", 0.0), rest.pop("max_iter", 1)
        self.check = checked(rest.pop("check", CheckSchedule()))
        self.processes = grouped(rest.pop("processes", None))
        refuse_unknown(type(self), rest)
        self.max_iter = whole_number(f"{type(self).__name__}: max_iter", self.max_iter)
        self._source = Source()
        super().__init__(params, {**defaults, "weight_decay": decay})
        self.search = search
        settings.check(self, search=optional(PART["search"]))
        self.stats: dict[str, float | int | str] = {}
        self._remarks = Remarks()
        if (natural_lr(type(self)) == 1 and self.evaluates) or isinstance(search, OneEvaluation):
            self._remarks.small_lr(float(defaults["lr"]))

    @abstractmethod
    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """Where to go, how far, and what is predicted; lr is included."""

    def read(self, reading: Reading, objective: Objective) -> Linearization:
        """What a step is proposed from: r and J at the current parameters."""
        return reading.linearize(objective.parameters, self.check, objective.names)

    @property
    def evaluates(self) -> bool:
        """Whether `propose` evaluates the loss at trial parameters."""
        return not isinstance(self.search, OneEvaluation)

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """The step, lr included, without a look at any loss but the current one.

        Raises:
            TypeError: if an optimizer does not say what that is.
        """
        raise TypeError(
            f"{type(self).__name__} evaluates the loss at trial parameters: hand `step` a closure, "
            "and no search=OneEvaluation()"
        )

    def learn(self, law: DampingLaw, ratio: float) -> None:
        """What follows for the next `leap` from the ratio that the last one achieved."""

    def remark(self, subject: Subject, message: str) -> None:
        """Warn, unless it was done before."""
        self._remarks.once(subject, message)

    # torch.compiler.disable would import the compiler here: two seconds for everybody.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] = NO_DEFAULT) -> Tensor:  # type: ignore[override]
        """One step, or `max_iter` of them.

        Args:
            closure: takes no arguments and returns the residuals (a tensor (N,) or (N, 1), a tuple
                or a dict of them), or a loss made of squares, whether it calls `backward()` or not.
                It may be called several times. Without one, the step reads the losses on which
                `backward()` was called since the last `zero_grad()` or `step`, and goes by
                `OneEvaluation`.

        Returns:
            The loss before the (first) step, a scalar tensor.

        Raises:
            RuntimeError: without a closure, if no loss was sent backwards.
            Whatever `linearize` or the closure raises; parameters and state are then as before.
        """
        # Before anything is touched: what cannot be trained with is refused as a whole
        refuse_scaler(self)
        refuse_inference()
        name = type(self).__name__
        reads = self._source.reading(closure, name, self.max_iter, self.processes)
        with THREADS.lent(self.processes.count), reads as reading:
            loss, moved = self._once(reading)
            for _ in range(self.max_iter - 1):
                rested = not moved
                _, moved = self._once(reading)
                if rested and not moved:  # one may have been a damping that was too small
                    break
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of any optimizer; the losses sent backwards from now on are those of the next step."""
        super().zero_grad(set_to_none)
        self._source.zero()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train further parameters, from now on, with hyper-parameters of their own.

        Raises:
            TypeError, ValueError: for an entry that is no number in its range, or that would be
                ignored, and for a parameter that is held twice.
        """
        super().add_param_group(param_group)
        try:
            check_group(type(self), self.param_groups[-1], self.defaults, self.positive)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._source.parameters = self.parameters

    def _once(self, reading: Reading) -> tuple[Tensor, bool]:
        """One step: the loss before it, and whether it moved anything."""
        watch, parameters = Stopwatch(), self.parameters
        refuse_untrainable(parameters)
        self._renew(Precision.of(parameters[0]))
        self._remarks.hooked(parameters, self.names())
        objective = reading.objective(parameters, self.names(), self._ridge())
        # Hooks would change derivatives that have to be exact
        with without_hooks(parameters), self._undone_by_errors(objective) as before:
            linearization, step = self._proposal(reading, objective)
            self.steps += 1
            self._move(step, objective)
        # Not an error: other dampings may do, and `stats` says what happened
        if step.displacement is not None and not step.is_finite:
            self.rollback(before)
            step = Step.stay(Outcome.NOT_FINITE, **step.info)
        loss = loss_before(step, linearization)
        self._left = loss if step.displacement is None else step.loss
        self.stats = statistics_of(step, objective, linearization)
        if linearization is not None:
            hand_out_gradients(linearization, parameters)
        self._precision = Precision.of(parameters[0])
        self._remarks.busy(self.steps, watch)
        return objective.origin.new_tensor(loss), moves(step)

    def _proposal(
        self, reading: Reading, objective: Objective
    ) -> tuple[Linearization | None, Step]:
        """The linearisation, None where the last step led to no finite loss, and the next step."""
        rule = self._rule(reading)
        # One evaluation: the next loss judges, so nothing may look at others
        objective.repeatable, reading.once = rule is None, rule is not None
        try:
            linearization = self._linearized(reading, objective, rule)
        except NothingReturnedError:
            if not self._source.zeroed:
                raise
            return None, Step.stay(Outcome.NOTHING)
        if linearization is not None:
            self._remark(reading, linearization)
            if objective.ridge is not None:
                linearization = linearization.with_ridge(objective.ridge)
            if objective.repeatable and self.evaluates:
                self._remarks.differing(self.steps, objective, linearization)
        return linearization, self._forward_or_back(rule, linearization, objective)

    @contextmanager
    def _undone_by_errors(self, objective: Objective) -> Iterator[Snapshot]:
        """Parameters and state as before, if something goes wrong."""
        before = self.snapshot()
        try:
            yield before
        # KeyboardInterrupt too: a run that is stopped can be saved and resumed
        except BaseException as error:
            objective.restore()
            self.rollback(before)
            if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                raise FloatingPointError(OVERFLOW) from error
            raise

    def _rule(self, reading: Reading) -> OneEvaluation | None:
        """The rule by which steps are judged by the next loss; None: by their own."""
        if isinstance(self.search, OneEvaluation):
            return self.search
        return ONE_EVALUATION if self.evaluates and not reading.repeatable else None

    def _linearized(
        self, reading: Reading, objective: Objective, rule: OneEvaluation | None
    ) -> Linearization | None:
        """Compared with autograd when `check` says so; None: a step taken unseen led nowhere."""
        try:
            found = self.read(reading, objective)
            if not math.isfinite(found.loss):
                raise FloatingPointError(f"the loss is {found.loss}: {OVERFLOW}")
        except FloatingPointError:
            if rule is None or self._trial(objective.parameters) is None:
                raise
            return None
        objective.gradients = found.needs_gradients
        return found

    def _remark(self, reading: Reading, linearization: Linearization) -> None:
        """On what the linearisation shows.

        Raises:
            RuntimeError: if no residual depends on any parameter, or the closure adds its gradient
                to others that wait in `.grad`.
        """
        self._remarks.lost(linearization, self.names())
        self._remarks.jump(self._left, linearization)
        self._remarks.clipped_inside(linearization)
        if not reading.repeatable:
            self._remarks.clipped(linearization.parameters, linearization.gradient)
        elif not self._source.zeroed:
            refuse_accumulated(linearization.parameters, reading.waiting)

    def _trial(self, parameters: list[Tensor]) -> Trial | None:
        """The step that is still to be judged, if it was one of these parameters."""
        # With other parameters, layers added or frozen say, there is no way back along the old ones
        trial, size = self.unseen.trial, sum(map(dimension, parameters))
        return trial if trial is not None and len(trial.origin) == size else None

    def _forward_or_back(
        self, rule: OneEvaluation | None, linearization: Linearization | None, objective: Objective
    ) -> Step:
        """The step from here: forward, or back where the last one was judged and failed."""
        if rule is None and linearization is not None:
            return self.propose(linearization, objective)
        rule, trial = rule or ONE_EVALUATION, self._trial(objective.parameters)
        loss = math.inf if linearization is None else linearization.loss
        if trial is not None:
            failed, ratio = trial.verdict(linearization)
            self.learn(rule.law, -math.inf if failed else ratio)
            if failed:
                shorter, step = rule.back(trial, loss, objective.origin)
                self.unseen = replace(self.unseen, trial=shorter)
                return step
        return self._leap(linearization, objective, trial)

    def _leap(
        self, linearization: Linearization | None, objective: Objective, last: Trial | None
    ) -> Step:
        """A step forward that the next one will judge."""
        assert linearization is not None  # no trial, no linearisation: raised before
        if not linearization.gradient.any():
            self.unseen = replace(self.unseen, trial=None)
            return Step.stay(Outcome.NO_GRADIENT)
        step = self.leap(linearization, objective)
        trial = Trial.of(step, linearization, objective.origin)
        self.unseen = replace(self.unseen, trial=trial)
        return step if last is None else step.noting(ratio=last.ratio(linearization.loss))

    def _ridge(self) -> Tensor | None:
        """w of the term 1/2 sum_i w_i theta_i^2 that weight decay adds to the loss."""
        if not any(group["weight_decay"] for group in self.param_groups):
            return None
        return self.expand("weight_decay")

    def _move(self, step: Step, objective: Objective) -> None:
        """Go where the step says, or back to the start."""
        if step.displacement is not None and step.is_finite:
            objective.move(step.displacement)
        else:
            objective.restore()

    def _renew(self, precision: Precision) -> None:
        """Forget the state of parameters that had another dtype or device in the last step."""
        if self._precision is not None and precision != self._precision:
            self._remarks.precision(str(self._precision), str(precision))
            self.forget()
