"""L and grad L alone, of any loss that autograd can differentiate: no residuals, no Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.batches import Batches
from kfac_pinn.jacobian.capture.data import data_of
from kfac_pinn.jacobian.check import names_of, warn_of_unused
from kfac_pinn.jacobian.closure import linearize, linearize_loss, named
from kfac_pinn.jacobian.dense_rows import strided
from kfac_pinn.jacobian.layers import Block, Leaf
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.running import explained
from kfac_pinn.jacobian.share import (
    called,
    noted,
    refuse_infinite,
    tangents_of,
    tensors_of,
)
from kfac_pinn.jacobian.terms import as_terms, is_loss, total_loss
from kfac_pinn.linalg import dimension, flatten, real
from kfac_pinn.processes import ALONE, Alone, Group

__all__ = ["Slope", "slope", "slope_of_losses"]


class Slope(Linearization):
    """A linearisation without rows, R = 0: all of the gradient is the linear term.

    Args:
        parameters: the tensors, in the order of the flat vector.
        loss: L.
        slopes: dL/dp of each, None where L does not depend on p.
    """

    def __init__(
        self, parameters: Sequence[Tensor], loss: float, slopes: Sequence[Tensor | None]
    ) -> None:
        pairs = list(zip(parameters, slopes, strict=True))
        parts = [torch.zeros_like(p) if g is None else strided(g) for p, g in pairs]
        gradient = flatten(parts)
        super().__init__(parameters, [], loss, gradient)
        self.gradient, self.residual = gradient, gradient.new_zeros(0)
        self._used = [g is not None for g in slopes]

    @cached_property
    def blocks(self) -> list[Block]:
        """One a parameter that the loss depends on."""
        ends = torch.tensor([dimension(p) for p in self.parameters]).cumsum(0).tolist()
        pairs = zip(self.parameters, ends, strict=True)
        places = [slice(end - dimension(p), end) for p, end in pairs]
        entries = zip(self.parameters, places, self._used, strict=True)
        return [Leaf(p, place) for p, place, used in entries if used]

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v of no rows, (0,) or (0, m)."""
        return v.new_zeros(0, *v.shape[1:])

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u of no rows: zero, (P,)."""
        return torch.zeros_like(self.gradient)


def slope(
    closure: Callable[[], Any],
    parameters: Sequence[Tensor],
    names: Sequence[str] | None = None,
    *,
    data: bool = False,
    processes: Group = ALONE,
) -> Linearization:
    """L and grad L of a closure: one forward and one backward pass.

    Args:
        closure: as of `linearize`; a loss need not be a sum of squares.
        parameters, names, data, processes: as of `linearize`.

    Raises:
        As `linearize`, but for what only J can show.
    """
    # Terms are means over the points of all: there the residuals are asked for one by one
    if isinstance(closure, Batches) or not isinstance(processes, Alone):
        return linearize(closure, parameters, False, names, data=data, processes=processes)
    known = named(list(parameters), names_of(parameters, names))
    call = called(closure, known)
    with torch.enable_grad(), explained(list(known)):
        result = slope_of(loss_in(call.output, list(known)), known)
    noted(result, call, known)
    if data:
        result.data = data_of(tensors_of(call.output), list(known))
    return result


def slope_of_losses(
    losses: Sequence[Tensor],
    parameters: Sequence[Tensor],
    names: Sequence[str] | None = None,
    processes: Group = ALONE,
) -> Linearization:
    """The same of losses that have been computed already, as `linearize_loss`."""
    if not isinstance(processes, Alone):
        return linearize_loss(losses, parameters, False, names, processes=processes)
    known = named(list(parameters), names_of(parameters, names))
    with torch.enable_grad(), explained(list(known)):
        result = slope_of(torch.stack([loss.reshape(()) for loss in losses]).sum(), known)
    result.data = data_of(losses, list(known))
    return result


def slope_of(loss: Tensor, known: dict[Tensor, str]) -> Slope:
    """L and grad L of a loss with its graph."""
    slopes = torch.autograd.grad(loss, list(known), retain_graph=True, allow_unused=True)
    result = Slope(list(known), float(loss.detach()), slopes)
    if not result.blocks:
        raise RuntimeError(
            "the loss depends on none of the optimizer's parameters. Pass the parameters of the "
            "model that it evaluates"
        )
    refuse_infinite(result, known)
    warn_of_unused(result, known, [loss])
    return result


def loss_in(output: Any, parameters: Sequence[Tensor]) -> Tensor:
    """L of what a closure returned, with its graph.

    Raises:
        FloatingPointError: for residuals that are not finite, by their name.
        RuntimeError: for a loss without a graph.
    """
    if is_loss(output):
        if not output.requires_grad:
            raise RuntimeError(
                "the loss does not depend on any trained parameter (it carries no gradient). Do "
                "not detach it, nor compute it under torch.no_grad()"
            )
        return output.as_subclass(Tensor)
    for term in as_terms(output, parameters):
        tangents_of(term, real(parameters[0]))
    return total_loss(output)
