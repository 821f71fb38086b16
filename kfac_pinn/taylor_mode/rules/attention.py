"""Softmax, and attention built on it."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import math
import types
from typing import Any

import torch
import torch.nn.functional as F

from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.registration import Operand


@rule(torch.logsumexp)
def logsumexp(x: Operand, dim: int, keepdim: bool = False) -> Operand:
    largest = x.value.detach().amax(dim, keepdim=True)
    total = torch.log(torch.sum(torch.exp(x - largest), dim, keepdim=True)) + largest
    return total if keepdim else total.squeeze(dim)


@rule(F.softmax, torch.softmax)
def softmax(x: Operand, dim: int | None = None, *args: Any, **kwargs: Any) -> Operand:
    x, along = asked(x, dim, args, kwargs)
    # The largest is a constant: it cancels, and keeps exp from overflow
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


@rule(torch.logcumsumexp)
def logcumsumexp(x: Operand, dim: int) -> Operand:
    largest = x.value.detach().amax(dim, keepdim=True)
    return torch.log(torch.cumsum(torch.exp(x - largest), dim)) + largest


@rule(F.scaled_dot_product_attention)
def scaled_dot_product(
    query: Operand, key: Operand, value: Operand, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Operand:  # fmt: skip
    if enable_gqa:
        heads = query.shape[-3] // key.shape[-3]
        key, value = (torch.repeat_interleave(each, heads, -3) for each in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * scale
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = torch.where(seen, scores, -math.inf)
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = torch.where(attn_mask, scores, -math.inf) if boolean else scores + attn_mask
    return torch.matmul(F.dropout(torch.softmax(scores, -1), dropout_p), value)


def python_body(function: Any) -> Any:
    """A torch function written in Python, to run on jets: without its question for overrides."""
    silent = {f"has_torch_function{end}": lambda *_: False for end in ("", "_unary", "_variadic")}
    known = {**function.__globals__, **silent}
    return types.FunctionType(function.__code__, known, argdefs=function.__defaults__)


rule(F.multi_head_attention_forward)(python_body(F.multi_head_attention_forward))
