"""Variances, and the layers that divide by them."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.registration import Operand


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


@rule(torch.var_mean)
def var_mean(
    x: Operand, dim: Any = None, unbiased: bool = True, keepdim: bool = False,
    *, correction: float | None = None,
) -> tuple[Operand, Operand]:  # fmt: skip
    mean = torch.mean(x, None if isinstance(dim, bool) else dim, keepdim=keepdim)
    return var(x, dim, unbiased, keepdim, correction=correction), mean


@rule(torch.std_mean)
def std_mean(x: Operand, *args: Any, **kwargs: Any) -> tuple[Operand, Operand]:
    variance, mean = var_mean(x, *args, **kwargs)
    return torch.sqrt(variance), mean


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
    x: Operand, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Operand:  # fmt: skip
    if training or running_mean is None:
        raise NotImplementedError(
            "batch_norm in training mode mixes the points, so u(x_n) depends on all of x and has "
            "no pointwise derivatives: call model.eval(), or use layer_norm."
        )
    mean, var = channels(running_mean, x.ndim), channels(running_var, x.ndim)
    normal = (x - mean) * torch.rsqrt(var + eps)
    return affine(normal, channels(weight, x.ndim), channels(bias, x.ndim))


@rule(F.instance_norm)
def instance_norm(
    x: Operand, running_mean: Any = None, running_var: Any = None, weight: Any = None,
    bias: Any = None, use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5,
) -> Operand:  # fmt: skip
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    if running_mean is not None:
        raise NotImplementedError(
            "instance_norm that tracks running statistics, in training mode: call model.eval(), or "
            "build it with track_running_stats=False"
        )
    single = x.unsqueeze(0) if x.ndim < 3 else x
    normal = layer_norm(single, single.shape[2:], eps=eps).reshape(x.shape)
    return affine(normal, *(channels(each, x.ndim) for each in (weight, bias)))


def channels(parameter: Any, ndim: int) -> Any:
    """One number a channel, to broadcast over (N, channels, ...)."""
    return None if parameter is None else parameter.view(-1, *[1] * (ndim - 2))


def affine(x: Operand, weight: Any, bias: Any = None) -> Operand:
    """weight x + bias, where they are given."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias
