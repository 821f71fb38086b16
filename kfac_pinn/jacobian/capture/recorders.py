"""What is kept of one application of a linear layer or a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kfac_pinn.taylor_mode.jets import Jet

__all__ = ["RECORDERS", "LayerCall"]


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One application y_s = W z_s + e_s b of a weight to S shared positions of N points, eq. (8).

    Attributes:
        weight, bias: as passed: parameters, tensors computed from parameters, or constants.
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


def stacked(value: Tensor | Jet) -> Tensor:
    """All coefficients with a leading axis of shared positions; a plain tensor has one.

    Raises:
        NotImplementedError: for an object that only passes as a tensor by `__torch_function__`.
    """
    if not isinstance(value, (Tensor, Jet)):
        raise NotImplementedError
    return value.rows if isinstance(value, Jet) else value.as_subclass(Tensor)[None]


def edge_of(value: Tensor | Jet) -> GradientEdge:
    """Where the output stands in the graph now, before any in-place activation moves it on."""
    return get_gradient_edge(value.rows if isinstance(value, Jet) else value)


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
    """(S, N, channels, pixels) -> (S * pixels, N, channels)."""
    return gradient.permute(0, 3, 1, 2).flatten(0, 1)


def record_linear(
    output: Tensor | Jet, input: Tensor | Jet, weight: Tensor, bias: Tensor | None = None
) -> LayerCall:
    """F.linear: tokens, if any, are further shared positions; a vector is a matrix of one row.

    A bias of another shape than (d_out,) is broadcast: it is left to the leaves.
    """
    weight = weight if weight.ndim == 2 else weight[None]
    bias = None if bias is None or bias.shape != weight.shape[:1] else bias
    coefficients = stacked(input).detach()
    if coefficients.ndim == 2:  # a single point without batch axis
        coefficients = coefficients[:, None]
    inputs = tokens_to_positions(coefficients)
    # The bias enters the value of a jet and none of its derivatives
    unit = value_indicator(len(coefficients), len(inputs) // len(coefficients), inputs)
    shape = (*coefficients.shape[:-1], weight.shape[0])

    def positions(gradient: Tensor) -> Tensor:
        return tokens_to_positions(gradient.reshape(shape))

    return LayerCall(weight, bias, inputs, unit, edge_of(output), positions)


def record_convolution(
    output: Tensor | Jet,
    input: Tensor | Jet,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> LayerCall:
    """F.conv1d and F.conv2d: a linear layer on patches, each pixel a shared position."""
    # Several matrices, or one side padded more than the other: left to autograd
    if groups != 1 or isinstance(padding, str):
        raise NotImplementedError(
            f"a convolution with groups={groups}, padding={padding!r}: curvature is known for "
            "groups=1 and padding given in pixels"
        )
    coefficients = stacked(input).detach()
    if coefficients.ndim == weight.ndim:  # a single image without batch axis
        coefficients = coefficients[:, None]
    two_d = weight.ndim == 4
    geometry = [pair(dilation, 1, two_d), pair(padding, 0, two_d), pair(stride, 1, two_d)]
    patches = patches_of(coefficients.flatten(0, 1), weight.shape[2:], geometry)
    inputs = pixels_to_positions(patches.unflatten(0, coefficients.shape[:2]))
    unit = value_indicator(len(coefficients), patches.shape[-1], inputs)
    shape = (*coefficients.shape[:2], weight.shape[0], -1)

    def positions(gradient: Tensor) -> Tensor:
        return pixels_to_positions(gradient.reshape(shape))

    return LayerCall(weight, bias, inputs, unit, edge_of(output), positions)


def patches_of(
    images: Tensor, kernel: Sequence[int], geometry: Sequence[tuple[int, int]]
) -> Tensor:
    """(B, channels * kernel, pixels): what each output pixel reads; conv1d is of height one."""
    if images.ndim == 3:
        images, kernel = images[:, :, None], (1, *kernel)
    return F.unfold(images, tuple(kernel), *geometry)


def pair(value: int | Sequence[int], height: int, two_d: bool) -> tuple[int, int]:
    """An option of a convolution for (height, width); a conv1d says only that of the width."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1]) if two_d else (height, values[-1])


RECORDERS: dict[Any, Callable[..., LayerCall]] = {
    F.linear: record_linear,
    F.conv1d: record_convolution,
    F.conv2d: record_convolution,
}
