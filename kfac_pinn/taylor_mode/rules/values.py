"""What is read off a jet's value alone: comparisons, shapes and types, numbers; no derivatives."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.detached import NO_NUMPY, remark_number, without_derivatives
from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import OF_VALUES, rule


def constant(function: Any) -> None:
    """Register a function that only reads shape and type: a jet whose derivatives vanish."""
    rule(function)(lambda x, *a, **k: Jet.constant(function(x.value, *a, **k), x.basis))


for _like in (
    torch.zeros_like,
    torch.ones_like,
    torch.full_like,
    torch.rand_like,
    torch.randn_like,
):
    constant(_like)


def on_value(function: Any) -> None:
    """Register a function without derivatives, a comparison say: it gives a plain tensor."""
    definition = lambda *args, **kwargs: function(*map(constant_of, args), **kwargs)  # noqa: E731
    OF_VALUES.add(rule(function)(definition))


def constant_of(x: Any) -> Any:
    """The value of a jet, apart from the graph; anything else as it is."""
    # Apart from the graph: a comparison that kept it would hold all of the network alive
    return x.value.detach() if isinstance(x, Jet) else x


for _name in ("lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf", "isfinite", "isreal"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("greater", "greater_equal", "less", "less_equal", "not_equal", "isclose", "allclose"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("argmax", "argmin", "argsort", "heaviside", "logical_not", "signbit", "equal"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("logical_and", "logical_or", "logical_xor", "isposinf", "isneginf", "count_nonzero"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("all", "any", "nonzero", "argwhere", "bool", "int", "long", "stride", "element_size"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("new_zeros", "new_ones", "new_full", "new_tensor", "new_empty", "is_contiguous"):
    on_value(getattr(torch.Tensor, _name))
for _function in (torch.isin, torch.searchsorted, torch.bucketize, torch.is_complex):
    on_value(_function)


@rule(torch.Tensor.detach)
def detach(x: Jet) -> Tensor:
    return without_derivatives(x.value)


OF_VALUES.add(detach)


@rule(torch.Tensor.item)
def item(x: Jet) -> Any:
    remark_number("item")
    return x.value.item()


@rule(torch.Tensor.tolist)
def tolist(x: Jet) -> Any:
    remark_number("tolist")
    return x.value.tolist()


@rule(torch.Tensor.numpy)
def numpy(*args: Any, **kwargs: Any) -> Any:
    raise TypeError(NO_NUMPY)
