"""Code whose Jacobian cannot be seen: each error says how to write it instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet

__all__ = ["FORBIDDEN", "PRECISION", "forbid_functorch", "forbid_half", "is_functorch"]

Tracks = Callable[[Any], bool]


def forbid_matmul(tracks: Tracks, *args: Any, **kwargs: Any) -> None:
    """`x @ W.T` hides the weight behind a view; say how to write it."""
    for value in (*args, *kwargs.values()):
        base = value if tracks(value) else getattr(value, "_base", None)
        if isinstance(base, Tensor) and base.ndim >= 2 and tracks(base):
            raise RuntimeError(
                f"a trained matrix of shape {tuple(base.shape)} is used by a matrix product "
                "(x @ W.T, matmul, addmm, einsum), where its Jacobian cannot be read off. Write "
                "torch.nn.functional.linear(x, W, b) with W of shape (d_out, d_in), or use "
                "nn.Linear"
            )


def forbid_einsum(tracks: Tracks, equation: Any, *operands: Any, **kwargs: Any) -> None:
    """einsum takes its operands one by one or as a list."""
    forbid_matmul(tracks, *(operands[0] if isinstance(operands[0], (list, tuple)) else operands))


def forbid_nested_autograd(tracks: Tracks, *args: Any, **kwargs: Any) -> None:
    """Derivatives of u taken by autograd inside the residual bypass the shared positions."""
    if kwargs.get("create_graph") or (len(args) > 4 and args[4]):
        raise RuntimeError(
            "the closure calls torch.autograd.grad(..., create_graph=True). Take derivatives by "
            "kfac_pinn.gradient, laplacian, partial or taylor instead: curvature is read from "
            "their forward pass, e.g. `u, (u_t, u_x), u_xx = taylor(model, x, weights=[0., 1.])`"
        )


def is_functorch(value: Tensor) -> bool:
    """Whether a transform of torch.func (vmap, grad, ...) has wrapped this tensor."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def forbid_functorch(output: Tensor | Jet) -> None:
    """Inside vmap, jacrev, hessian, ... neither the points nor the graph can be seen."""
    if isinstance(output, Tensor) and is_functorch(output):
        raise RuntimeError(
            "the closure calls a trained layer inside a torch.func transform (vmap, grad, jacrev, "
            "hessian, ...). Call the model on the whole batch of points, and take derivatives by "
            "kfac_pinn.gradient, laplacian, hessian, partial or taylor"
        )


PRECISION = "second-order steps need float32 or, better, float64"


def forbid_half(output: Tensor | Jet) -> None:
    """In half precision there are no digits left for curvature."""
    if torch.finfo(output.dtype).bits < 32:
        raise RuntimeError(
            f"a trained layer computes in {output.dtype}, under torch.autocast maybe: {PRECISION}"
        )


MATRIX_PRODUCTS = [
    torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.mv,
    Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.mv,
    Tensor.__matmul__, Tensor.__rmatmul__,
]  # fmt: skip

FORBIDDEN: dict[Any, Callable[..., None]] = {
    torch.einsum: forbid_einsum,
    torch.autograd.grad: forbid_nested_autograd,
    **dict.fromkeys(MATRIX_PRODUCTS, forbid_matmul),
}
