"""The mode that watches a closure run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode, handle_torch_function

from kfac_pinn.jacobian.capture.recorders import RECORDERS, LayerCall
from kfac_pinn.jacobian.capture.unsupported import UNSEEN, forbid_half, is_functorch
from kfac_pinn.taylor_mode.jets import Jet

__all__ = ["Broadcast", "Capture"]


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
        calls: of weights, by F.linear and convolutions.
        broadcasts: of any trained tensor, by elementwise functions.
        program: the torch functions that were called, in their order.
        unseen: whether code was met whose Jacobian is not in the calls: nested
            `torch.autograd.grad`, `torch.func` transforms, a tracked weight in `x @ W.T`.
        calls_autograd: whether `torch.autograd.grad` was called.
        differentiated: ids of what it was called for.

    Raises (while active):
        RuntimeError: for a trained layer in half precision.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.tracked = {id(parameter) for parameter in parameters}
        self.calls: list[LayerCall] = []
        self.broadcasts: list[Broadcast] = []
        self.program: list[Any] = []
        self.unseen = self.calls_autograd = False
        self.differentiated: set[int] = set()

    def tracks(self, value: Any) -> bool:
        """Whether this is one of the parameters we watch."""
        return id(value) in self.tracked

    def trains(self, value: Any) -> bool:
        """Whether this is what we watch, or may be computed from it."""
        return self.tracks(value) or (isinstance(value, Tensor) and value.grad_fn is not None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # The function itself: enough to see that a closure has changed its way, and free
        self.program.append(func)
        if func is torch.autograd.grad:
            self.calls_autograd = True
            inputs = args[1]  # torch hands the first two on by place, the others by name
            self.differentiated |= {id(x) for x in ([inputs] if is_one(inputs) else inputs)}
        if func in UNSEEN:
            self.unseen = self.unseen or UNSEEN[func](self.tracks, *args, **kwargs)
        # One operation to torch, two to us: its scale and shift are leaves that all points read
        if func in NORMS:
            return NORMS[func](self, *args, **kwargs)
        # Before the call: afterwards autograd has summed the gradient over the points
        if func in ELEMENTWISE:
            args = self.spread(args)
        output = dispatch(func, args, kwargs)
        if func in EXPANDING and isinstance(output, Tensor):
            # Copied along the points first, where the gradients are read, and then along the rest
            return self.copies(args[0], output.shape).expand_as(output)
        if func in RECORDERS and any(map(self.trains, (*args[1:], *kwargs.values()))):
            forbid_half(output.dtype)
            if isinstance(output, Tensor) and is_functorch(output):
                self.unseen = True
            # Under no_grad a layer is a constant
            elif output.requires_grad:
                self.record(func, output, args, kwargs)
        return output

    def record(self, func: Any, output: Any, args: Any, kwargs: Any) -> None:
        """Keep what is needed of a call, if it is of a kind that is known here."""
        if not (args and isinstance(args[0], (Tensor, Jet))):
            self.unseen = True  # a class of points that is no Tensor itself
            return
        try:
            self.calls.append(RECORDERS[func](output, *args, **kwargs))
        except NotImplementedError:
            self.unseen = True

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
        # It has a row for every point already
        if new == 0 and value.shape[:1] == shape[:1]:
            return value
        # One copy a point and no more: each further axis would be summed anyway
        copies = value.expand(shape[0], *[1] * (new - 1), *value.shape[0 if new else 1 :])
        self.broadcasts.append(Broadcast(value, get_gradient_edge(copies)))
        return copies


def is_one(inputs: Any) -> bool:
    """Whether `torch.autograd.grad` was given a tensor, not several."""
    return isinstance(inputs, (Tensor, Jet))


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Call on: a method of Tensor does not see for itself that its `self` is a Jet."""
    if args and isinstance(args[0], Jet):
        return handle_torch_function(func, args[:1], *args, **kwargs)
    return func(*args, **kwargs)


def layer_norm(
    capture: Capture,
    input: Tensor | Jet,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,  # torch's
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
