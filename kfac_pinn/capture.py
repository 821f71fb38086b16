"""Every use of a trained weight during a closure, seen from outside the user's model.

A `TorchFunctionMode` watches the torch functions that the closure calls. Whenever one of them is
linear in a tracked parameter (`F.linear`, `F.conv1d`, `F.conv2d`), the input z and the place of
the output in the autograd graph are kept. One backward pass of a residual to those places then
gives its whole Jacobian in factored form (docs/mathematics.md, "Weight sharing").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from kfac_pinn.jets import Jet

__all__ = ["Capture", "Use"]


@dataclass(frozen=True, eq=False)
class Use:
    """One application y_s = W z_s + e_s b of a weight to S shared positions of N points.

    Attributes:
        weight, bias: the tracked parameters.
        inputs: z, shape (S, N, d_in), detached.
        unit: e, shape (S,): 1 where the bias acts (the value), 0 on derivatives.
        output: where y stands in the autograd graph.
        positions: brings a gradient at y to the shape (S, N, d_out).
    """

    weight: Tensor
    bias: Tensor | None
    inputs: Tensor
    unit: Tensor
    output: GradientEdge
    positions: Callable[[Tensor], Tensor]


class Capture(TorchFunctionMode):
    """Records in `uses` every use of the tracked parameters while it is active.

    Args:
        parameters: the tensors to watch.

    Raises (while active):
        RuntimeError: for code whose Jacobian it could not see: nested `torch.autograd.grad`, or a
            tracked weight in `x @ W.T`.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.tracked = {id(parameter) for parameter in parameters}
        self.uses: list[Use] = []

    def tracks(self, value: Any) -> bool:
        """Whether this is one of the parameters we watch."""
        return id(value) in self.tracked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FORBIDDEN:
            FORBIDDEN[func](self, *args, **kwargs)
        output = func(*args, **kwargs)
        if func in RECORDERS:
            use = RECORDERS[func](self, output, *args, **kwargs)
            if use is not None:
                self.uses.append(use)
        return output


def stacked(value: Tensor | Jet) -> Tensor:
    """All coefficients with a leading axis of shared positions; a plain tensor has one."""
    return value.data if isinstance(value, Jet) else value[None]


def edge_of(value: Tensor | Jet) -> GradientEdge:
    """Where the output stands in the graph now, before any in-place activation moves it on."""
    return get_gradient_edge(value.data if isinstance(value, Jet) else value)


def value_indicator(coefficients: int, extra: int, like: Tensor) -> Tensor:
    """e: 1 on the `extra` positions of the value, 0 on those of the derivatives."""
    unit = like.new_zeros(coefficients, extra)
    unit[0] = 1
    return unit.flatten()


def tokens_to_positions(gradient: Tensor) -> Tensor:
    """(S, N, *tokens, d) -> (S * tokens, N, d)."""
    if gradient.ndim == 3:
        return gradient
    coefficients, points, *_, width = gradient.shape
    return gradient.reshape(coefficients, points, -1, width).transpose(1, 2).flatten(0, 1)


def pixels_to_positions(gradient: Tensor) -> Tensor:
    """(S, N, channels, *pixels) -> (S * pixels, N, channels)."""
    return gradient.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)


def record_linear(
    capture: Capture,
    output: Tensor | Jet,
    input: Tensor | Jet,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Use | None:
    """F.linear: tokens, if any, are further shared positions."""
    if not (capture.tracks(weight) or capture.tracks(bias)):
        return None
    coefficients = stacked(input).detach()
    if coefficients.ndim == 2:  # a single point without batch axis
        coefficients = coefficients[:, None]
    inputs = tokens_to_positions(coefficients)
    tokens = len(inputs) // len(coefficients)
    unit = value_indicator(len(coefficients), tokens, inputs)
    width, jet = weight.shape[0], isinstance(output, Jet)

    def positions(gradient: Tensor) -> Tensor:
        gradient = gradient if jet else gradient[None]
        return tokens_to_positions(gradient.reshape(*coefficients.shape[:-1], width))

    return Use(weight, bias, inputs, unit, edge_of(output), positions)


def record_convolution(
    capture: Capture,
    output: Tensor | Jet,
    input: Tensor | Jet,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Use | None:
    """F.conv1d and F.conv2d: a linear layer on patches, each pixel a shared position."""
    if not (capture.tracks(weight) or capture.tracks(bias)):
        return None
    if groups != 1 or isinstance(padding, str):
        raise NotImplementedError(
            f"a convolution with groups={groups}, padding={padding!r}: curvature is known for "
            "groups=1 and padding given in pixels"
        )
    coefficients = stacked(input).detach()
    image = coefficients.flatten(0, 1)
    if weight.ndim == 3:  # conv1d: an image of height one
        image = image[:, :, None]
        one_d = [(1, first(stride)), (0, first(padding)), (1, first(dilation))]
        stride, padding, dilation = one_d  # type: ignore[assignment]
    kernel = (1, *weight.shape[2:]) if weight.ndim == 3 else tuple(weight.shape[2:])
    patches = F.unfold(image, kernel, dilation, padding, stride)  # type: ignore[arg-type]
    patches = patches.unflatten(0, coefficients.shape[:2])
    inputs = pixels_to_positions(patches)
    unit = value_indicator(len(coefficients), patches.shape[-1], inputs)
    jet = isinstance(output, Jet)

    def positions(gradient: Tensor) -> Tensor:
        return pixels_to_positions(gradient if jet else gradient[None])

    return Use(weight, bias, inputs, unit, edge_of(output), positions)


def first(value: int | Sequence[int]) -> int:
    """The one entry of what torch accepts as an int or a 1-tuple."""
    return value if isinstance(value, int) else value[0]


def forbid_matmul(capture: Capture, *args: Any, **kwargs: Any) -> None:
    """`x @ W.T` hides the weight behind a view; say how to write it."""
    for value in (*args, *kwargs.values()):
        base = value if capture.tracks(value) else getattr(value, "_base", None)
        if isinstance(base, Tensor) and base.ndim >= 2 and capture.tracks(base):
            raise RuntimeError(
                f"a trained matrix of shape {tuple(base.shape)} is used by a matrix product "
                "(x @ W.T, matmul, addmm, einsum), where its Jacobian cannot be read off. Write "
                "torch.nn.functional.linear(x, W, b) with W of shape (d_out, d_in), or use "
                "nn.Linear"
            )


def forbid_einsum(capture: Capture, equation: Any, *operands: Any, **kwargs: Any) -> None:
    """einsum takes its operands one by one or as a list."""
    forbid_matmul(capture, *(operands[0] if isinstance(operands[0], (list, tuple)) else operands))


def forbid_nested_autograd(capture: Capture, *args: Any, **kwargs: Any) -> None:
    """Derivatives of u taken by autograd inside the residual bypass the shared positions."""
    if kwargs.get("create_graph") or (len(args) > 4 and args[4]):
        raise RuntimeError(
            "the closure calls torch.autograd.grad(..., create_graph=True). Take derivatives by "
            "kfac_pinn.gradient, laplacian, partial or taylor instead: curvature is read from "
            "their forward pass, e.g. `u, (u_t, u_x), u_xx = taylor(model, x, weights=[0., 1.])`"
        )


RECORDERS: dict[Any, Callable[..., Use | None]] = {
    F.linear: record_linear,
    F.conv1d: record_convolution,
    F.conv2d: record_convolution,
}

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
