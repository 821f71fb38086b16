"""What one call of `step` reads: a closure, or losses that were sent backwards before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from kfac_pinn.jacobian.backward import WATCHES, BackwardWatch
from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.jacobian.closure import linearize, linearize_loss
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.jacobian.slopes import slope, slope_of_losses
from kfac_pinn.processes import ALONE, Group

__all__ = [
    "ByClosure",
    "ByLosses",
    "Reading",
    "add_gradients",
    "added_by",
    "has_gradient",
    "release",
]

Check = bool | CheckSchedule


class Reading(Protocol):
    """Where residual and Jacobian come from, and whether the loss can be had elsewhere too.

    Attributes:
        once: whether the loss after a step is that of the next one, perhaps at other points.
    """

    once: bool

    @property
    def repeatable(self) -> bool:
        """Whether losses at other parameters can be evaluated."""

    @property
    def waiting(self) -> int:
        """How many gradients wait in `.grad` that it does not know of."""

    def linearize(
        self, parameters: list[Tensor], check: Check, names: Sequence[str]
    ) -> Linearization:
        """r and J at the current parameters."""

    def slope(self, parameters: list[Tensor], names: Sequence[str]) -> Linearization:
        """L and grad L alone."""

    def objective(
        self, parameters: list[Tensor], names: Sequence[str], ridge: Tensor | None
    ) -> Objective:
        """The loss as a function of the displacement."""


class ByClosure:
    """`step(closure)`.

    Args:
        waiting: how many losses were sent backwards before it.
        processes: whose closures belong together.
    """

    repeatable, once = True, False

    def __init__(
        self, closure: Callable[[], Any], waiting: int = 0, processes: Group = ALONE
    ) -> None:
        self.closure, self.waiting, self.processes = closure, waiting, processes

    def linearize(
        self, parameters: list[Tensor], check: Check, names: Sequence[str]
    ) -> Linearization:
        """By evaluating the closure."""
        return linearize(
            self.closure, parameters, check, names, data=self.once, processes=self.processes
        )

    def slope(self, parameters: list[Tensor], names: Sequence[str]) -> Linearization:
        """By evaluating the closure."""
        return slope(self.closure, parameters, names, data=self.once, processes=self.processes)

    def objective(
        self, parameters: list[Tensor], names: Sequence[str], ridge: Tensor | None
    ) -> Objective:
        """By evaluating the closure."""
        return Objective(self.closure, parameters, names, ridge, self.processes)


class ByLosses:
    """`loss.backward(); step()`: losses of the current parameters, with their graphs."""

    repeatable, waiting, once = False, 0, True

    def __init__(self, losses: Sequence[Tensor], processes: Group = ALONE) -> None:
        self.losses, self.processes = list(losses), processes

    def linearize(
        self, parameters: list[Tensor], check: Check, names: Sequence[str]
    ) -> Linearization:
        """Of the sum of the losses."""
        with unchanged():
            return linearize_loss(self.losses, parameters, check, names, processes=self.processes)

    def slope(self, parameters: list[Tensor], names: Sequence[str]) -> Linearization:
        """Of the sum of the losses."""
        with unchanged():
            return slope_of_losses(self.losses, parameters, names, self.processes)

    def objective(
        self, parameters: list[Tensor], names: Sequence[str], ridge: Tensor | None
    ) -> Objective:
        """Known at the current parameters only."""
        # The graphs hold values of this moment only
        here = [p.detach().clone() for p in parameters]

        def loss() -> Tensor:
            if not all(torch.equal(p, q) for p, q in zip(parameters, here, strict=True)):
                raise RuntimeError(NO_CLOSURE)
            return torch.stack([loss.reshape(()) for loss in self.losses]).sum()

        return Objective(loss, parameters, names, ridge, self.processes)


@contextmanager
def unchanged() -> Iterator[None]:
    """torch's error on graphs whose tensors have been changed, with what to write."""
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(CHANGED) from error


def added_by(closure: Callable[[], Any], parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """The losses that a closure adds to earlier ones; None where what it returns stands alone.

    Lightning hands a closure over that adds the last of several batches, or one that does nothing
    after it sent all losses backwards itself.
    """
    # It has to be called to be known, but only where losses wait already
    with torch.enable_grad(), BackwardWatch(parameters, run=False) as watch:
        returned = closure()
    if not watch.losses:
        return [] if returned is None else None
    return list(watch.losses) if has_gradient(parameters) else None


def add_gradients(losses: Sequence[Tensor]) -> None:
    """The backward passes that `added_by` has skipped; the graphs stay."""
    for loss in losses:
        torch.autograd.backward(loss, retain_graph=True)


def has_gradient(parameters: Iterable[Tensor]) -> bool:
    """Whether some `.grad` is not zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in parameters)


def release(losses: Iterable[Tensor]) -> None:
    """Let the graphs go, which `backward()` would have freed, even if the losses are still held."""
    for loss in losses:
        for watch in WATCHES:
            watch.taken |= any(loss is other for other in watch.losses)
        if not loss.is_leaf and loss._base is None:  # a view cannot be detached in place
            loss.detach_()


NO_CLOSURE = (
    "this optimizer evaluates the loss at trial parameters, for which step() needs a closure: "
    "write `optimizer.step(closure)`, or construct it with search=OneEvaluation()"
)
CHANGED = (
    "a parameter, or another tensor that the loss was computed from, was changed in place between "
    "the forward pass and optimizer.step(): do that after the step"
)
