"""Choices between entries: of two operands, by a condition, and along a dimension.

The choice is made by the values; the derivatives are those of what was chosen.
"""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet, jets_among
from kfac_pinn.taylor_mode.rule_table import register, rule
from kfac_pinn.taylor_mode.rules.indexing import gather
from kfac_pinn.taylor_mode.rules.registration import (
    Operand,
    aligned,
    as_jets,
    tensor_like,
    value_of,
)

# --- of two -----------------------------------------------------------------------------------


@rule(torch.where)
def where(condition: Tensor, x: Operand, y: Operand) -> Operand:
    jet = jets_among([x, y])[0]
    x, y = as_jets([e if isinstance(e, Jet) else tensor_like(e, jet).to(jet.rows) for e in (x, y)])
    ndim = max(condition.ndim, x.ndim, y.ndim)
    return x.like(torch.where(condition, aligned(x.rows, ndim), aligned(y.rows, ndim)))


@rule(torch.Tensor.where)
def where_method(x: Operand, condition: Tensor, y: Operand) -> Operand:
    return where(condition, x, y)


@rule(torch.masked_fill)
def masked_fill(x: Operand, mask: Tensor, value: Operand) -> Operand:
    return where(mask, value, x)


@rule(torch.maximum, torch.fmax)
def maximum(x: Operand, y: Operand) -> Operand:
    return where(value_of(x) >= value_of(y), x, y)


@rule(torch.minimum, torch.fmin)
def minimum(x: Operand, y: Operand) -> Operand:
    return where(value_of(x) <= value_of(y), x, y)


@rule(torch.clamp, torch.clip)
def clamp(x: Operand, min: Any = None, max: Any = None) -> Operand:
    x = x if min is None else where(x.value >= min, x, min)
    return x if max is None else where(x.value <= max, x, max)


@rule(torch.clamp_min)
def clamp_min(x: Operand, min: Any) -> Operand:
    return clamp(x, min)


@rule(torch.clamp_max)
def clamp_max(x: Operand, max: Any) -> Operand:
    return clamp(x, None, max)


@rule(torch.nan_to_num)
def nan_to_num(x: Operand, *args: Any, **kwargs: Any) -> Operand:
    # What is replaced is a constant
    replaced = torch.nan_to_num(x.value.detach(), *args, **kwargs)
    return where(torch.isfinite(x.value), x, replaced)


@rule(torch.copysign)
def copysign(x: Operand, y: Operand) -> Operand:
    x0, y0 = (tensor_like(value_of(e), jets_among([x, y])[0]).detach() for e in (x, y))
    return x * (torch.copysign(x0.sign(), y0) * x0.sign())


# --- along a dimension ------------------------------------------------------------------------


def choose(function: Callable[..., Any], x: Jet, *args: Any, **kwargs: Any) -> Any:
    """A function that returns values and where along `dim` they were found, or one of all."""
    result = function(x.value, *args, **kwargs)
    if isinstance(result, Tensor):
        return picked(x, result)
    if not x.ndim:
        return type(result)((x, result.indices))
    dim, indices = named_dim(function, x, args, kwargs), result.indices
    if indices.ndim == x.ndim:
        return type(result)((gather(x, dim, indices), indices))
    return type(result)((gather(x, dim, indices.unsqueeze(dim)).squeeze(dim), indices))


def picked(x: Jet, value: Tensor) -> Jet:
    """The entry of this value."""
    flat = x.reshape(-1)
    return flat[(flat.value - value).abs().argmin()]


def named_dim(function: Callable[..., Any], x: Jet, args: Any, kwargs: Any) -> int:
    """The dimension in an argument list: topk and kthvalue have a k before it."""
    numbers = [each for each in args if type(each) is int]
    place = 1 if function.__name__ in ("topk", "kthvalue") and "k" not in kwargs else 0
    return int(kwargs.get("dim", numbers[place] if len(numbers) > place else x.ndim - 1))


register(
    lambda function: partial(choose, function),
    torch.sort, torch.topk, torch.kthvalue, torch.median, torch.nanmedian, torch.mode, torch.cummax,
    torch.cummin,
)  # fmt: skip


@rule(torch.max)
def largest(x: Operand, *args: Any, **kwargs: Any) -> Any:
    of_two = args and not isinstance(args[0], int)
    return maximum(x, *args) if of_two else choose(torch.max, x, *args, **kwargs)


@rule(torch.min)
def smallest(x: Operand, *args: Any, **kwargs: Any) -> Any:
    of_two = args and not isinstance(args[0], int)
    return minimum(x, *args) if of_two else choose(torch.min, x, *args, **kwargs)


@rule(torch.amax)
def amax(x: Operand, dim: Any = (), keepdim: bool = False) -> Operand:
    dims = [dim] if isinstance(dim, int) else [*dim] or [*range(x.ndim)]
    for each in sorted((d % max(x.ndim, 1) for d in dims), reverse=True) if x.ndim else ():
        x = torch.max(x, each, True).values
        x = x if keepdim else x.squeeze(each)
    return x


@rule(torch.amin)
def amin(x: Operand, dim: Any = (), keepdim: bool = False) -> Operand:
    return -amax(-x, dim, keepdim)


@rule(torch.aminmax)
def aminmax(x: Operand, *, dim: int | None = None, keepdim: bool = False) -> Any:
    dims = () if dim is None else dim
    pair = amin(x, dims, keepdim), amax(x, dims, keepdim)
    return torch.return_types.aminmax(pair)


@rule(torch.msort)
def msort(x: Operand) -> Operand:
    return torch.sort(x, 0).values


@rule(torch.masked_select)
def masked_select(x: Operand, mask: Tensor) -> Operand:
    x, mask = torch.broadcast_tensors(x, mask) if x.shape != mask.shape else (x, mask)
    return x[value_of(mask).bool()]
