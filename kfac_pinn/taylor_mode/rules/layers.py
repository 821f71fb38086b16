"""Layers with weights: linear, convolution and its transpose, gates; what must not be inside."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.registration import Operand, multiply, shift
from kfac_pinn.taylor_mode.rules.tensor_products import over_rows

# --- weights ----------------------------------------------------------------------------------


@rule(F.linear)
def linear_layer(x: Operand, weight: Any, bias: Any = None) -> Operand:
    if isinstance(bias, Jet):
        return linear_layer(x, weight) + bias
    if not isinstance(x, Jet) or isinstance(weight, Jet):  # the weights depend on x
        product: Operand = torch.matmul(x, weight.mT)
        return product if bias is None else product + bias
    if x.velocity is not None:
        return first_layer(x, x.velocity, weight, bias)
    y = x.like(F.linear(x.rows, weight))
    return y if bias is None else shift(y, bias, fresh=True)


def first_layer(x: Operand, velocity: Any, weight: Any, bias: Any) -> Any:
    """On a straight line: the first derivatives are the same at all points, the others vanish."""
    value = F.linear(x.value, weight, bias)
    slope = F.linear(x.basis.collapse(velocity) if x.basis.order == 1 else velocity, weight)
    rows = [value[None], slope[:, None].expand(-1, *value.shape)]
    rest = len(x.rows) - 1 - len(slope)
    return x.like(torch.cat([*rows, value.new_zeros(()).expand(rest, *value.shape)]))


def convolution(function: Any) -> None:
    """Register a convolution: the rows join the batch, the bias is the value's."""
    spatial = int(function.__name__[-2])

    @rule(function)
    def convolve(x: Operand, weight: Any, bias: Any = None, *args: Any, **kw: Any) -> Operand:
        plain = lambda a, b: function(a, b, None, *args, **kw)  # noqa: E731
        if isinstance(weight, Jet) or not isinstance(x, Jet):  # the weights depend on x
            out = multiply(over_rows(plain), x, weight)
        else:
            batch = x.rows.reshape(-1, *x.shape[-1 - spatial :])
            y = plain(batch, weight)
            out = x.like(y.reshape(len(x.rows), *x.shape[: -1 - spatial], *y.shape[1:]))
        return out if bias is None else out + bias.view(-1, *[1] * spatial)


for _name in ("conv1d", "conv2d", "conv3d"):
    convolution(getattr(torch, _name))
    convolution(getattr(F, _name))
for _name in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
    convolution(getattr(torch, _name))
    convolution(getattr(F, _name))


@rule(F.prelu)
def prelu(x: Operand, weight: Tensor) -> Operand:
    slope = weight.view(-1, *[1] * (x.ndim - 2)) if weight.numel() > 1 else weight.view(())
    return torch.where(x.value > 0, x, slope * x)


@rule(F.glu)
def glu(x: Operand, dim: int = -1) -> Operand:
    a, b = torch.chunk(x, 2, dim)
    return a * torch.sigmoid(b)


# --- the rest ---------------------------------------------------------------------------------


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def dropout(x: Operand, p: float = 0.5, training: bool = True) -> Operand:
    if training and p:
        raise NotImplementedError(
            "dropout in training mode draws another network at every call, so its residual is not "
            "a function of the parameters: call model.eval()."
        )
    return x


@rule(
    torch.autograd.grad, torch.autograd.backward, torch.Tensor.requires_grad_, torch.Tensor.backward
)
def nested_autograd(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        "autograd inside a function that is being differentiated by Taylor mode. Take derivatives "
        "outside: laplacian(u, x), gradient(u, x), partial(u, x, (i, j, ...)) or taylor(u, x)."
    )
