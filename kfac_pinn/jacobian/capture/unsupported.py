"""Code whose Jacobian the mode cannot see: it is read off the autograd graph instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["PRECISION", "UNSEEN", "forbid_half", "is_functorch"]

Tracks = Callable[[Any], bool]


def multiplies_weight(tracks: Tracks, *args: Any, **kwargs: Any) -> bool:
    """`x @ W.T` hides the weight behind a view."""
    return any(
        isinstance(value, Tensor) and (tracks(value) or tracks(value._base))
        for value in (*args, *kwargs.values())
    )


def contracts_weight(tracks: Tracks, equation: Any, *operands: Any, **kwargs: Any) -> bool:
    """Einsum takes its operands one by one or as a list."""
    several = isinstance(operands[0], (list, tuple))
    return multiplies_weight(tracks, *(operands[0] if several else operands))


def differentiates(tracks: Tracks, *args: Any, create_graph: bool = False, **kwargs: Any) -> bool:
    """Derivatives of u taken by autograd inside the residual bypass the shared positions.

    However it was written, torch hands `create_graph` on by its name.
    """
    # Without it the derivative is a number, through which no gradient of ours goes
    return bool(create_graph)


def is_functorch(value: Tensor) -> bool:
    """Whether a transform of torch.func (vmap, grad, ...) has wrapped this tensor."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


PRECISION = "second-order steps need float32 or, better, float64"


def forbid_half(dtype: torch.dtype) -> None:
    """In half precision there are no digits left for curvature."""
    if dtype.is_floating_point and torch.finfo(dtype).bits < 32:
        raise RuntimeError(
            f"a trained layer computes in {dtype}, under torch.autocast maybe: {PRECISION}"
        )


MATRIX_PRODUCTS = [
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.mv,
    Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.mv,
    Tensor.__matmul__, Tensor.__rmatmul__,
]  # fmt: skip

UNSEEN: dict[Any, Callable[..., bool]] = {
    torch.einsum: contracts_weight,
    torch.autograd.grad: differentiates,
    **dict.fromkeys(MATRIX_PRODUCTS, multiplies_weight),
}
