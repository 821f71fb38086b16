"""What an optimizer remarks on, each once: the step is right, but perhaps not what was meant."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto

import torch
from torch import Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import flatten
from kfac_pinn.notices import NOTICES, outside
from kfac_pinn.threads import Stopwatch, decided, waited

__all__ = ["Remarks", "Subject", "refuse_accumulated", "without_hooks"]

JUMP = 100.0  # of the loss between two steps: new points of the same kind change it by less
CLIPPED = 1e-2  # relative change of the gradient's norm that rounding does not explain
SMALL_LR = 1e-2  # Adam's habit of 1e-3: steps that are solved for have lr 1, and 0.1 may be meant
FIRST_STEPS = range(2, 6)  # that are watched for threads that wait; the first one loads code
LONG = 0.05  # seconds


class Subject(Enum):
    """What a remark is about: each is made once."""

    SMALL_LR = auto()
    JUMP = auto()
    LOST = auto()
    DIFFERING = auto()
    CLIPPED = auto()
    BUSY = auto()
    HOOKED = auto()
    INTERPOLATED = auto()


class Remarks:
    """What has been remarked on, and what there was to compare with."""

    def __init__(self) -> None:
        NOTICES.forget_lines()  # a new optimizer is a new run
        self.made: set[Subject] = set()
        self.used: set[int] = set()  # parameters that some residual has depended on
        self.steepest = 0.0  # the largest gradient
        self.highest = 1.0  # the largest loss, where it is above one

    def once(self, subject: Subject, message: str) -> None:
        """Warn at the line of the user's code that led here, unless done before."""
        if subject not in self.made:
            self.made.add(subject)
            warnings.warn(message, stacklevel=outside())

    def small_lr(self, lr: float) -> None:
        """A learning rate of Adam makes a thousandth of a Gauss-Newton step."""
        if lr <= SMALL_LR:
            self.once(
                Subject.SMALL_LR,
                f"lr={lr:g} takes {lr:g} of every step: these steps are solved for and have the "
                "right length already; leave lr at 1 unless parts of the model are to move less",
            )

    def jump(self, left: float, linearization: Linearization) -> None:
        """The last step fitted its points, and the next ones show it."""
        found = linearization.loss
        rounding = torch.finfo(linearization.residual.dtype).eps
        # From one rounding to another a loss may jump a hundredfold without meaning anything
        if left > 0 and found > max(JUMP * left, rounding):
            self.once(
                Subject.JUMP,
                f"the last step left a loss of {left:.1e}, this one found {found:.1e}: if the "
                "points are new, the last ones were fitted, not the equation. Draw more of them "
                f"(now {len(linearization.residual)} residuals for {linearization.size} "
                "parameters), keep them for fewer steps, or take a smaller network; hold some out "
                "to see the error",
            )

    def lost(self, linearization: Linearization, names: Sequence[str]) -> None:
        """A parameter that residuals depended on is out of the closure's sight.

        Raises:
            RuntimeError: if all of them are.
        """
        used = {id(p) for block in linearization.blocks for p in block.parameters}
        pairs = zip(linearization.parameters, names, strict=True)
        gone = [name for p, name in pairs if id(p) in self.used - used]
        if not used:
            raise RuntimeError(f"no residual depends on any parameter: {REPLACED}")
        if gone:
            self.once(
                Subject.LOST,
                f"no residual depends on parameter {', '.join(gone)} any longer: " + REPLACED,
            )
        self.used |= used

    def differing(self, steps: int, objective: Objective, linearization: Linearization) -> None:
        """Two evaluations at the same parameters differ: looked at in steps 1, 2, 4, ..., 100 k."""
        step, first = steps + 1, linearization.loss
        if Subject.DIFFERING in self.made or (step & (step - 1) and step % 100):
            return
        second = objective(torch.zeros_like(objective.origin))
        self.highest = max(self.highest, abs(first)) if math.isfinite(first) else self.highest
        eps = torch.finfo(objective.origin.dtype).eps
        # A quarter of the digits, 1e-4 in float64: sums in another order differ by far less, until
        # residuals are as small as what was rounded in them
        allowed = eps**0.25 * abs(first) + (10 * eps) ** 2 * self.highest
        if math.isfinite(second) and abs(second - first) > allowed:
            self.once(
                Subject.DIFFERING,
                f"two evaluations of the closure at the same parameters differ ({first:.6g} and "
                f"{second:.6g}): the search compares losses that mean different things. Draw "
                "points between the steps, not inside the closure; call model.eval() where there "
                "is dropout; or take a search that does not look (FixedStep, NormConstraint)",
            )

    def clipped(self, parameters: Sequence[Tensor], gradient: Tensor) -> None:
        """The gradients were changed between backward() and step(), which steps do not read."""
        grads = [p.grad for p in parameters if p.grad is not None]
        found = float(flatten(grads).norm()) if grads else 0.0
        expected = float(gradient.norm())
        self.steepest = max(self.steepest, expected)
        # Near a minimum what is left of a sum that cancels is rounded as its summands are
        rounding = 10 * torch.finfo(gradient.dtype).eps * self.steepest
        if grads and abs(found - expected) > CLIPPED * expected + rounding:
            self.once(
                Subject.CLIPPED,
                f"the gradients were changed between backward() and step() (norm {found:.3g}, of "
                f"the loss {expected:.3g}), {NO_EFFECT}",
            )

    def clipped_inside(self, linearization: Linearization) -> None:
        """The closure itself clips the gradients, as Lightning's does."""
        if linearization.changes_gradients:
            self.once(
                Subject.CLIPPED,
                f"the closure changes the gradients after backward(), {NO_EFFECT}",
            )

    def busy(self, steps: int, watch: Stopwatch) -> None:
        """A step that mostly waited for threads that the environment asks for."""
        threads, (wall, worked) = torch.get_num_threads(), watch.read()
        long = steps in FIRST_STEPS and wall > LONG
        if long and threads > 1 and decided() and waited(wall, worked):
            self.once(
                Subject.BUSY,
                f"a step took {wall:.2g} s, of which this thread worked {worked:.2g} s: if nothing "
                f"in the closure waits, the cores have other work, and the {threads} threads that "
                "OMP_NUM_THREADS or MKL_NUM_THREADS asks for wait for each other. Unset it (a step "
                "then takes as many as do not wait), set it to 1, or call torch.set_num_threads(1)",
            )

    def hooked(self, parameters: Sequence[Tensor], names: Sequence[str]) -> None:
        """Gradient hooks, which are not called: there is no backward pass to hook."""
        found = [n for p, n in zip(parameters, names, strict=True) if p._backward_hooks]
        if found:
            self.once(
                Subject.HOOKED,
                f"parameter {', '.join(found)} has a gradient hook, which has no effect on the "
                "step and is not called in it: remove it (handle.remove())",
            )

    def precision(self, before: str, now: str) -> None:
        """Parameters in another dtype or on another device than the state."""
        warnings.warn(
            f"the parameters are {now} now and were {before} in the steps before: the optimizer's "
            "state starts afresh",
            stacklevel=outside(),
        )


def refuse_accumulated(parameters: Sequence[Tensor], waiting: int) -> None:
    """Raise `RuntimeError` if gradients of so many earlier losses wait in `.grad`."""
    if waiting and any(p.grad is not None and bool(p.grad.any()) for p in parameters):
        raise RuntimeError(ACCUMULATED.format(count=waiting))


@contextmanager
def without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradient hooks suspended: derivatives are what they are."""
    # The dicts are emptied, not replaced: handles that users hold refer to them
    hooks = [p._backward_hooks for p in parameters if p._backward_hooks]
    kept = [dict(each) for each in hooks]
    for each in hooks:
        each.clear()
    try:
        yield
    finally:
        for each, entries in zip(hooks, kept, strict=True):
            each.update(entries)


ACCUMULATED = (
    "the gradients of {count} earlier calls of backward() wait in .grad, but the closure calls "
    "neither backward(), to add to them, nor zero_grad(): a step with a closure reads what it "
    "returns alone. Return all terms from one closure, or call optimizer.zero_grad() before step"
)
NO_EFFECT = (
    "which has no effect: the step is solved for from the residuals. Leave out clip_grad_norm_ and "
    "the like, and zero the gradients before backward()"
)
REPLACED = (
    "was it replaced by another object (model.weight = nn.Parameter(...))? It is not trained. Copy "
    "new values into it (with torch.no_grad(): model.weight.copy_(...)), or construct the "
    "optimizer from the new parameters"
)
