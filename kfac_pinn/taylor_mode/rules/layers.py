"""Layers of networks: linear, convolution, normalisation, softmax, attention, dropout."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet, rule
from kfac_pinn.taylor_mode.rules.registration import Operand, shift

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
    y = x.like(F.linear(x.data, weight))
    return y if bias is None else shift(y, bias, fresh=True)


def first_layer(x: Operand, velocity: Any, weight: Any, bias: Any) -> Any:
    """On a straight line: the first derivatives are the same at all points, the others vanish."""
    value = F.linear(x.value, weight, bias)
    slope = F.linear(x.basis.collapse(velocity) if x.basis.order == 1 else velocity, weight)
    rows = [value[None], slope[:, None].expand(-1, *value.shape)]
    rest = len(x.data) - 1 - len(slope)
    return x.like(torch.cat([*rows, value.new_zeros(()).expand(rest, *value.shape)]))


def convolution(function: Any) -> None:
    """Register a convolution: the rows join the batch, the bias is the value's."""
    spatial = int(function.__name__[4])

    @rule(function)
    def convolve(
        x: Operand, weight: Tensor, bias: Tensor | None = None, *args: Any, **kw: Any
    ) -> Operand:
        batch = x.data.reshape(-1, *x.shape[-1 - spatial :])
        y = function(batch, weight, None, *args, **kw)
        out = x.like(y.reshape(len(x.data), *x.shape[: -1 - spatial], *y.shape[1:]))
        return out if bias is None else shift(out, bias.view(-1, *[1] * spatial), fresh=True)


for _convolution in (torch.conv1d, torch.conv2d, torch.conv3d):
    convolution(_convolution)
for _transposed in (F.conv1d, F.conv2d, F.conv3d):
    convolution(_transposed)


@rule(F.prelu)
def prelu(x: Operand, weight: Tensor) -> Operand:
    slope = weight.view(-1, *[1] * (x.ndim - 2)) if weight.numel() > 1 else weight
    return torch.where(x.value > 0, x, slope * x)


@rule(F.glu)
def glu(x: Operand, dim: int = -1) -> Operand:
    a, b = torch.chunk(x, 2, dim)
    return a * torch.sigmoid(b)


# --- normalisation ----------------------------------------------------------------------------


@rule(torch.var)
def var(
    x: Operand, dim: Any = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> Operand:  # fmt: skip
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    centred = x - torch.mean(x, dim, keepdim=True) if dim is not None else x - torch.mean(x)
    squares = torch.sum(torch.square(centred), dim, keepdim=keepdim)
    correction = int(unbiased) if correction is None else correction
    return squares / (x.numel() / squares.numel() - correction)


@rule(torch.std)
def std(x: Operand, *args: Any, **kwargs: Any) -> Operand:
    return torch.sqrt(var(x, *args, **kwargs))


@rule(F.layer_norm)
def layer_norm(
    x: Operand, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Operand:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = x - torch.mean(x, dims, keepdim=True)
    variance = torch.mean(torch.square(centred), dims, keepdim=True)
    return affine(centred * torch.rsqrt(variance + eps), weight, bias)


@rule(F.rms_norm)
def rms_norm(
    x: Operand, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Operand:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return affine(x * torch.rsqrt(torch.mean(torch.square(x), dims, keepdim=True) + eps), weight)


@rule(F.group_norm)
def group_norm(
    x: Operand, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Operand:
    groups = x.reshape(x.shape[0], num_groups, -1)
    normal = layer_norm(groups, groups.shape[2:], eps=eps).reshape(x.shape)
    return affine(normal, *(channels(each, x.ndim) for each in (weight, bias)))


@rule(F.batch_norm)
def batch_norm(
    x: Operand, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Operand:  # fmt: skip
    if training or mean is None:
        raise NotImplementedError(
            "batch_norm in training mode mixes the points, so u(x_n) depends on all of x and has "
            "no pointwise derivatives: call model.eval(), or use layer_norm."
        )
    mean, var, weight, bias = (channels(each, x.ndim) for each in (mean, var, weight, bias))
    return affine((x - mean) * torch.rsqrt(var + eps), weight, bias)


def channels(parameter: Any, ndim: int) -> Any:
    """One number a channel, to broadcast over (N, channels, ...)."""
    return None if parameter is None else parameter.view(-1, *[1] * (ndim - 2))


def affine(x: Operand, weight: Any, bias: Any = None) -> Operand:
    """weight x + bias, where they are given."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@rule(torch.linalg.vector_norm)
def vector_norm(x: Operand, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Operand:
    if ord == 2:
        return torch.sqrt(torch.sum(torch.square(x), dim, keepdim=keepdim))
    if ord == 1:
        return torch.sum(torch.abs(x), dim, keepdim=keepdim)
    if ord == 0 or math.isinf(ord):
        raise NotImplementedError(
            f"the norm of order {ord} on jets: write torch.amax(torch.abs(x), dim) for inf, amin "
            "for -inf; that of order 0 has no derivatives"
        )
    return torch.sum(torch.abs(x) ** ord, dim, keepdim=keepdim) ** (1 / ord)


@rule(torch.norm)
def norm(
    x: Operand, p: Any = None, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Operand:
    return vector_norm(x, 2 if p in (None, "fro") else p, dim, keepdim)


@rule(torch.linalg.norm)
def vector_or_matrix_norm(
    x: Operand, ord: Any = None, dim: Any = None, keepdim: bool = False
) -> Operand:
    of_matrix = isinstance(dim, (tuple, list)) or (dim is None and x.ndim == 2)
    if of_matrix and ord not in (None, "fro"):
        raise NotImplementedError(
            f"the matrix norm of order {ord} on jets: for that of vectors give one dim"
        )
    return norm(x, ord, dim, keepdim)


@rule(F.normalize)
def normalize(
    x: Operand, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **kwargs: Any
) -> Operand:
    return x / torch.clamp_min(vector_norm(x, p, dim, keepdim=True), eps)


# --- softmax and attention --------------------------------------------------------------------


@rule(torch.amax)
def amax(x: Operand, dim: int, keepdim: bool = False) -> Operand:
    largest = torch.gather(x, dim, x.value.argmax(dim, keepdim=True))
    return largest if keepdim else largest.squeeze(dim)


@rule(torch.amin)
def amin(x: Operand, dim: int, keepdim: bool = False) -> Operand:
    return -amax(-x, dim, keepdim)


@rule(torch.logsumexp)
def logsumexp(x: Operand, dim: int, keepdim: bool = False) -> Operand:
    largest = x.value.detach().amax(dim, keepdim=True)
    total = torch.log(torch.sum(torch.exp(x - largest), dim, keepdim=True)) + largest
    return total if keepdim else total.squeeze(dim)


@rule(F.softmax, torch.softmax)
def softmax(x: Operand, dim: int | None = None, *args: Any, **kwargs: Any) -> Operand:
    x, along = asked(x, dim, args, kwargs)
    weights = torch.exp(x - x.value.detach().amax(along, keepdim=True))
    return weights / torch.sum(weights, along, keepdim=True)


@rule(F.log_softmax, torch.log_softmax)
def log_softmax(x: Operand, dim: int | None = None, *args: Any, **kwargs: Any) -> Operand:
    x, along = asked(x, dim, args, kwargs)
    return x - logsumexp(x, along, keepdim=True)


@rule(F.softmin)
def softmin(x: Operand, dim: int | None = None, *args: Any, **kwargs: Any) -> Operand:
    return softmax(-x, dim, *args, **kwargs)


def asked(x: Operand, dim: int | None, args: Any, kwargs: Any) -> tuple[Operand, int]:
    """The operand in the dtype asked for, and the dimension, which torch chooses if none is."""
    dtype = kwargs.get("dtype") or next((a for a in args if isinstance(a, torch.dtype)), x.dtype)
    along = dim if dim is not None else 0 if x.ndim in (0, 1, 3) else 1
    return x.to(dtype), along


@rule(F.scaled_dot_product_attention)
def attention(
    query: Operand, key: Operand, value: Operand, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> Operand:  # fmt: skip
    if attn_mask is not None or is_causal or dropout_p:
        raise NotImplementedError(
            "attention on jets: without mask and dropout only. Write it out, "
            "torch.softmax(q @ k.transpose(-2, -1) * scale + mask, -1) @ v"
        )
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    return torch.matmul(torch.softmax(scores, -1), value)


# --- the rest ---------------------------------------------------------------------------------


@rule(F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout)
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
