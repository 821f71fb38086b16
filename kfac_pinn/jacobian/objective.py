"""The loss as a function of the displacement, by evaluating the user's closure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kfac_pinn.jacobian.batches import Batches
from kfac_pinn.jacobian.check import names_of, refuse_changes
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.losses import Residuals
from kfac_pinn.jacobian.running import evaluate as loss_at
from kfac_pinn.jacobian.running import sums
from kfac_pinn.jacobian.slopes import Slope, slope
from kfac_pinn.linalg import flatten, unflatten
from kfac_pinn.processes import ALONE, Alone, Group

__all__ = ["Objective"]


class Objective:
    """L(theta + displacement) by the user's closure; counts its evaluations.

    Args:
        closure: returns residuals.
        parameters: moved for an evaluation, put back by `restore`.
        names: of the parameters, for errors.
        ridge: w (P,) of a term 1/2 sum_i w_i theta_i^2 beside the closure's loss.
        processes: whose closures add up to the loss.

    Raises (when called):
        RuntimeError: for a closure that changes a parameter.
    """

    def __init__(
        self,
        closure: Callable[[], Residuals],
        parameters: Sequence[Tensor],
        names: Sequence[str] | None = None,
        ridge: Tensor | None = None,
        processes: Group = ALONE,
    ) -> None:
        self.processes = processes
        self.closure, self.parameters, self.ridge = closure, list(parameters), ridge
        self.names = names_of(self.parameters, names)
        self.repeatable = True  # whether the closure may be evaluated at other parameters
        self.origin = flatten(p.detach() for p in self.parameters)
        self.evaluations = 0
        self.gradients = False  # whether the closure calls autograd itself
        self._last: tuple[Tensor, float] | None = None
        self._last_slope: tuple[Tensor, Linearization] | None = None

    def __call__(self, displacement: Tensor) -> float:
        """The loss there; inf where it is not finite. Leaves the parameters there.

        A displacement that is asked for twice in a row is evaluated once.
        """
        self.move(displacement)
        # A law tries the whole step, and then a search begins with it
        if self._last is None or not torch.equal(self._last[0], displacement):
            self._last = displacement, self._evaluate(displacement)
        return self._last[1]

    def slope(self, displacement: Tensor) -> Linearization:
        """L and grad L there, inf and nan where one of them is not finite, as a `Slope`.

        Leaves the parameters there. A displacement that is asked for twice in a row is evaluated
        once.
        """
        self.move(displacement)
        if self._last_slope is None or not torch.equal(self._last_slope[0], displacement):
            self._last_slope = displacement, self._slope()
        return self._last_slope[1]

    def _slope(self) -> Linearization:
        """By one forward and one backward pass."""
        self.evaluations += 1
        try:
            found = slope(self.closure, self.parameters, self.names, processes=self.processes)
        except FloatingPointError:
            nothing = [torch.full_like(p, math.nan) for p in self.parameters]
            return Slope(self.parameters, math.inf, nothing)
        found.loss = found.loss if math.isfinite(found.loss) else math.inf
        return found if self.ridge is None else found.with_ridge(self.ridge)

    def move(self, displacement: Tensor) -> None:
        """theta <- origin + displacement."""
        self._write(self.origin + displacement)

    def restore(self) -> None:
        """theta <- origin, bit by bit."""
        self._write(self.origin)

    def _evaluate(self, displacement: Tensor) -> float:
        # As after the move, not `origin`: what a closure changes shows against where it was called
        there = [p.detach().clone() for p in self.parameters]
        self.evaluations += 1
        with self.processes.together():
            found = self._loss()
            refuse_changes(dict(zip(self.parameters, self.names, strict=True)), there)
        loss = float(self._of_all(found) if self.shared else found)
        if self.ridge is not None:
            loss += 0.5 * float(self.ridge @ (self.origin + displacement).square())
        # inf compares as a failure everywhere; nan would compare as neither
        return loss if math.isfinite(loss) else math.inf

    @property
    def shared(self) -> bool:
        """Whether the points of a term are those of several closures."""
        return not isinstance(self.processes, Alone) or isinstance(self.closure, Batches)

    def _of_all(self, sums: Tensor) -> Tensor:
        """sum_k (sum_s N_ks L_ks) / (sum_s N_ks), from those of this process (K, 2)."""
        losses, points = self.processes.sum(sums.to(self.origin.device))[0].unbind(1)
        return (losses / points).sum()

    def _loss(self) -> Tensor:
        """By the closure, without a graph unless it turns out to need one."""
        evaluate = sums if self.shared else loss_at
        try:
            return evaluate(self.closure, self.gradients, self.parameters)
        except RuntimeError as error:
            # torch has no type for it, and its messages on missing graphs all say grad
            if self.gradients or "grad" not in str(error):
                raise
            self.gradients = True  # "cannot register a hook on a tensor that doesn't require ..."
            return evaluate(self.closure, True, self.parameters)

    @torch.no_grad()
    def _write(self, flat: Tensor) -> None:
        parts = unflatten(flat, self.parameters)
        for parameter, part in zip(self.parameters, parts, strict=True):
            # .data: graphs that the linearisation keeps do not mind (`AutogradJacobian`)
            parameter.data.copy_(part)
