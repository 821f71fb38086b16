"""What a closure may return, taken apart into terms."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.losses import ConvexLoss, LeastSquares, Term
from kfac_pinn.jacobian.scalar_losses import ends_in_squares, refuse_broadcast, residual_terms
from kfac_pinn.notices import outside

__all__ = ["as_terms", "holds_loss", "is_loss", "loss_of", "total_loss"]


def as_terms(output: Any, trained: Iterable[Tensor] | None = None) -> list[Term]:
    """The terms of whatever a closure returned: a tensor, a tuple or list, or a dict.

    A tensor of shape (N, C) is a system: one term a column. One of shape () is a loss, whose
    residuals are read off its graph (`scalar_losses`).

    Args:
        output: what it returned.
        trained: the parameters, should it be a loss; None: every leaf counts as one.

    Raises:
        TypeError: if it is anything else, with the line that would be right.
        ValueError: for a residual of another shape, or a loss that is not a sum of squares.
    """
    # It may be an iterator, and is read once for every loss
    trained = None if trained is None else list(trained)
    if is_loss(output):
        return list(residual_terms(output, trained))
    return [term for name, value in entries(output) for term in terms_of(value, name, trained)]


def entries(output: Any) -> list[tuple[str, Any]]:
    """What a closure returned, entry by entry with a name."""
    if isinstance(output, Mapping):
        named = [(f"residual {key!r}", value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        named = [(f"residual {index}", value) for index, value in enumerate(output)]
    else:
        named = [("residual", output)]
    if not named:
        raise TypeError("the closure returned no residuals; return at least one tensor")
    return named


def is_loss(value: Any) -> bool:
    """Whether it is one number, not a vector of residuals."""
    return isinstance(value, Tensor) and value.ndim == 0


def holds_loss(output: Any) -> bool:
    """Whether it is one number, or has one among its entries."""
    return any(is_loss(value) for _, value in entries(output))


def terms_of(value: Any, name: str, trained: Sequence[Tensor] | None) -> list[Term]:
    """The terms of one entry; a tensor means least squares."""
    if isinstance(value, (ConvexLoss, LeastSquares)):
        return [value]
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} is of type {type(value).__name__}. The closure must return its residuals: a "
            "tensor, a tuple or a dict of tensors, e.g. `return laplacian(model, x) + f, model(xb) "
            "- g`; or their loss, one tensor of shape ()"
        )
    value = value.as_subclass(Tensor)  # a label or a unit would get in the way of the arithmetic
    if value.ndim == 0:
        return loss_terms(value, name, trained)
    refuse_broadcast(value, name)
    # Fewer columns than points, or it may be two tensors broadcast against each other
    if value.ndim == 2 and 1 < value.shape[1] < value.shape[0] and not value.is_complex():
        return [LeastSquares(r, f"{name}[:, {c}]") for c, r in enumerate(value.unbind(1))]
    # Allowed, since a prior on a coefficient looks like that, but seldom meant
    if value.shape == (1,) and ends_in_squares(value):
        warnings.warn(
            f"{name} of shape (1,) is a sum of squares, and a residual is squared once more. If it "
            "is the loss, return it with shape (), or call backward() on it",
            stacklevel=outside(),
        )
    return [LeastSquares(value, name)]


def loss_terms(loss: Tensor, name: str, trained: Sequence[Tensor] | None) -> list[Term]:
    """Those of a tensor of shape () among others, which may have been meant for a residual."""
    try:
        return list(residual_terms(loss, trained))
    except ValueError as error:
        raise ValueError(
            f"{name} has shape () and so is taken for a loss, but {error}. A single residual, a "
            "prior on a coefficient say, has shape (1,): write r.reshape(1)"
        ) from error


def loss_of(output: Any, terms: Sequence[Term], weights: Sequence[float]) -> Tensor:
    """sum_k w_k L_k of what a closure returned, and its terms; a scalar."""
    if len(set(weights)) > 1:
        return sum_of(w * term.loss() for w, term in zip(weights, terms, strict=True))
    # A loss keeps its own value: constants that its residuals leave out are part of it
    if holds_loss(output):
        return weights[0] * total_loss(output)
    return weights[0] * sum_of(term.loss() for term in terms)


def sum_of(losses: Iterable[Tensor]) -> Tensor:
    """One after the other."""
    return reduce(torch.add, losses)


def total_loss(output: Any) -> Tensor:
    """L = sum_k L_k of the output of a closure, a tensor (): for a first-order optimizer.

    Raises:
        TypeError, ValueError: for an output that is neither residuals nor a loss.
    """
    if is_loss(output):
        return output
    named = entries(output)
    losses = [value for _, value in named if is_loss(value)]
    rest = [t for name, value in named if not is_loss(value) for t in terms_of(value, name, None)]
    return torch.stack([*losses, *(term.loss() for term in rest)]).sum()
