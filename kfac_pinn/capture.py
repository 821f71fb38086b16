"""Every use of a trained weight during a closure, seen from outside the user's model.

A `TorchFunctionMode` watches the torch functions that the closure calls. Whenever one of them is
linear in a trained weight (`F.linear`, `F.conv1d`, `F.conv2d`), the input z and the place of the
output in the autograd graph are kept; whenever a trained tensor is broadcast over the points, each
point is given a copy of its own. One backward pass of a residual to those places then gives its
whole Jacobian, that of layers in factored form (docs/mathematics.md, "Weight sharing").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode, handle_torch_function

from kfac_pinn.jets import Jet

__all__ = ["Broadcast", "Capture", "Use"]


@dataclass(frozen=True, eq=False)
class Use:
    """One application y_s = W z_s + e_s b of a weight to S shared positions of N points.

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


@dataclass(frozen=True, eq=False)
class Broadcast:
    """A trained tensor t that all points read.

    Attributes:
        tensor: t, a parameter or computed from parameters.
        copies: where its copies, one a point, shape (N, ..., *t.shape), stand in the graph.
    """

    tensor: Tensor
    copies: GradientEdge


class Capture(TorchFunctionMode):
    """Records how a closure reads its trained tensors while it is active.

    Args:
        parameters: the tensors to watch.

    Attributes:
        uses: of weights, by F.linear and convolutions.
        broadcasts: of any trained tensor, by elementwise functions.

    Raises (while active):
        RuntimeError: for code whose Jacobian it could not see: nested `torch.autograd.grad`,
            `torch.func` transforms, or a tracked weight in `x @ W.T`.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.tracked = {id(parameter) for parameter in parameters}
        self.uses: list[Use] = []
        self.broadcasts: list[Broadcast] = []

    def tracks(self, value: Any) -> bool:
        """Whether this is one of the parameters we watch."""
        return id(value) in self.tracked

    def trains(self, value: Any) -> bool:
        """Whether this is what we watch, or may be computed from it."""
        return self.tracks(value) or (isinstance(value, Tensor) and value.grad_fn is not None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FORBIDDEN:
            FORBIDDEN[func](self, *args, **kwargs)
        if func in NORMS:
            return NORMS[func](self, *args, **kwargs)
        if func in ELEMENTWISE:
            args = self.spread(args)
        output = dispatch(func, args, kwargs)
        if func in EXPANDING and isinstance(output, Tensor):
            return self.copies(args[0], output.shape).expand_as(output)
        if func in RECORDERS and any(map(self.trains, (*args[1:], *kwargs.values()))):
            forbid_functorch(output)
            if output.requires_grad:
                self.uses.append(RECORDERS[func](output, *args, **kwargs))
        return output

    def spread(self, args: Sequence[Any]) -> Sequence[Any]:
        """Replace what is broadcast over the points by one copy a point."""
        shapes = {value.shape for value in args if isinstance(value, (Tensor, Jet))}
        if len(shapes) < 2:
            return args
        shape = torch.broadcast_shapes(*shapes)
        return [self.copies(value, shape) for value in args]

    def copies(self, value: Any, shape: Sequence[int]) -> Any:
        """(N, ..., *value.shape) of a trained tensor to be broadcast to the shape (N, ...)."""
        if not self.trains(value) or not value.requires_grad or is_functorch(value):
            return value
        new = len(shape) - value.ndim
        if new == 0 and value.shape[:1] == shape[:1]:
            return value
        copies = value.expand(shape[0], *[1] * (new - 1), *value.shape[0 if new else 1 :])
        self.broadcasts.append(Broadcast(value, get_gradient_edge(copies)))
        return copies


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Call on: a method of Tensor does not see for itself that its `self` is a Jet."""
    if args and isinstance(args[0], Jet):
        return handle_torch_function(func, args[:1], *args, **kwargs)
    return func(*args, **kwargs)


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
    """(S, N, channels, pixels) -> (S * pixels, N, channels)."""
    return gradient.permute(0, 3, 1, 2).flatten(0, 1)


def record_linear(
    output: Tensor | Jet, input: Tensor | Jet, weight: Tensor, bias: Tensor | None = None
) -> Use:
    """F.linear: tokens, if any, are further shared positions."""
    coefficients = stacked(input).detach()
    if coefficients.ndim == 2:  # a single point without batch axis
        coefficients = coefficients[:, None]
    inputs = tokens_to_positions(coefficients)
    unit = value_indicator(len(coefficients), len(inputs) // len(coefficients), inputs)
    shape = (*coefficients.shape[:-1], weight.shape[0])

    def positions(gradient: Tensor) -> Tensor:
        return tokens_to_positions(gradient.reshape(shape))

    return Use(weight, bias, inputs, unit, edge_of(output), positions)


def record_convolution(
    output: Tensor | Jet,
    input: Tensor | Jet,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Use:
    """F.conv1d and F.conv2d: a linear layer on patches, each pixel a shared position."""
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

    return Use(weight, bias, inputs, unit, edge_of(output), positions)


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


def layer_norm(
    capture: Capture,
    input: Tensor | Jet,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """F.layer_norm with its scale and shift as functions of their own."""
    value = dispatch(F.layer_norm, (input, normalized_shape), {"eps": eps})
    return affine(capture, value, weight, bias)


def rms_norm(
    capture: Capture,
    input: Tensor | Jet,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """F.rms_norm with its scale as a function of its own."""
    value = dispatch(F.rms_norm, (input, normalized_shape), {"eps": eps})
    return affine(capture, value, weight, None)


def affine(capture: Capture, value: Any, scale: Tensor | None, shift: Tensor | None) -> Any:
    """value * scale + shift, watched."""
    if scale is not None:
        value = torch.mul(*capture.spread((value, scale)))
    return value if shift is None else torch.add(*capture.spread((value, shift)))


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


RECORDERS: dict[Any, Callable[..., Use]] = {
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

NORMS: dict[Any, Callable[..., Any]] = {F.layer_norm: layer_norm, F.rms_norm: rms_norm}

NAMES = ["add", "sub", "mul", "div", "pow", "multiply", "subtract", "divide", "true_divide"]
DUNDERS = ["add", "sub", "mul", "truediv", "pow"]
ELEMENTWISE = {
    getattr(space, name)
    for space in (torch, Tensor)
    for name in (
        *(name + end for name in NAMES for end in ("", "_")),
        *(f"__{side}{name}__" for name in DUNDERS for side in ("", "r", "i")),
    )
    if hasattr(space, name)
}

EXPANDING = {Tensor.expand, Tensor.expand_as, Tensor.broadcast_to, torch.broadcast_to}
