"""A second stage: another network for the error that the first one left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kfac_pinn import settings
from kfac_pinn.jacobian.terms import entries, is_loss, total_loss
from kfac_pinn.settings import FUNCTION, MODULE, POSITIVE

__all__ = ["Corrected", "corrected"]

ROUNDS = 4  # the first guess may be off by orders of magnitude; each round is one evaluation


class Corrected(nn.Module):
    """u(x) = first(x) + scale second(x), for a first network that is trained already.

    Train the parameters of `second`. With the scale of the remaining error its outputs are of order
    one, as a network's are at its start.

    Args:
        first, second: of the same points, outputs (N, C).
        scale: of the error of `first`; `corrected` finds it.

    Raises:
        TypeError, ValueError: for what is no module, or a scale that is not positive.

    Source: Wang & Lai (2023), "Multi-stage neural networks: function approximator of machine
    precision", arXiv:2307.08934.
    """

    def __init__(self, first: nn.Module, second: nn.Module, scale: float) -> None:
        super().__init__()
        self.first, self.second, self.scale = first, second, scale
        settings.check(self, first=MODULE, second=MODULE, scale=POSITIVE)

    def forward(self, x: Any) -> Any:
        """Fields (N, C) at the points x (N, d), or at a jet of them."""
        return self.first(x) + self.scale * self.second(x)


def corrected(
    first: nn.Module, second: nn.Module, residuals: Callable[[Any], Callable[[], Any]]
) -> Corrected:
    """`first`, frozen, and `second` at the scale at which it moves the residuals by their size.

        scale = ||r(u)|| / ||d/de r(u + e v)||,    u the first network, v the second

    The derivative is a difference over the last scale, so that nothing cancels: both residuals are
    of one size. The next stage is `corrected(u, third, residuals)` with u what this one returned.

    Args:
        first: trained; its parameters no longer ask for gradients.
        second: new. More waves than in the solution are left in its error: `SIREN`, or an `MLP`
            with more layers than `first`, on points scaled by `Normalized`.
        residuals: of a function u the closure of its residuals, `Batch.residuals` say.

    Raises:
        TypeError: for a closure that returns a loss, or anything else than residuals.
        ValueError: where `second` does not move the residuals, or there are none left.
    """
    for name, value, rule in (("second", second, MODULE), ("residuals", residuals, FUNCTION)):
        rule(f"corrected: {name}", value)
    found = Corrected(first, second, 1.0)
    before = values(residuals(first)())
    size = length(before)
    for _ in range(ROUNDS):
        after = values(residuals(found)())
        moved = length([a - b for a, b in zip(after, before, strict=True)])
        if not 0 < size < float("inf") or not 0 < moved < float("inf"):
            raise ValueError(
                f"corrected: the residuals have length {size:.1e}, and the second network moves "
                f"them by {moved:.1e}: both must be positive and finite"
            )
        found.scale *= size / moved
    first.requires_grad_(False)  # last: a call that fails leaves it as it was
    return found


def values(output: Any) -> list[Tensor]:
    """The residuals, without their graph."""
    found = [value for _, value in entries(output)]
    for value in found:
        if not isinstance(value, Tensor) or is_loss(value):
            raise TypeError(
                "corrected: the closure must return residuals, tensors (N,) or (N, 1), found "
                f"{'a loss' if isinstance(value, Tensor) else type(value).__name__}"
            )
    return [value.detach() for value in found]


def length(found: list[Tensor]) -> float:
    """||r||: the square root of sum_k mean(r_k^2)."""
    return float(torch.sqrt(2 * total_loss(found)))
