"""Several jets joined to one, and one cut into several."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.indexing import tensor_split
from kfac_pinn.taylor_mode.rules.registration import (
    as_jets,
)
from kfac_pinn.taylor_mode.rules.shapes import after


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(tensors: Sequence[Any], dim: int = 0) -> Jet:
    jets = as_jets(tensors)
    return jets[0].like(torch.cat([each.rows for each in jets], after(dim)))


@rule(torch.stack)
def stack(tensors: Sequence[Any], dim: int = 0) -> Jet:
    jets = as_jets(tensors)
    return jets[0].like(torch.stack([each.rows for each in jets], after(dim)))


@rule(torch.atleast_1d)
def atleast_1d(x: Jet) -> Jet:
    return x if x.ndim else x.reshape(1)


@rule(torch.atleast_2d)
def atleast_2d(x: Jet) -> Jet:
    return x if x.ndim > 1 else atleast_1d(x).unsqueeze(0)


@rule(torch.atleast_3d)
def atleast_3d(x: Jet) -> Jet:
    return x if x.ndim > 2 else atleast_2d(x).unsqueeze(-1)


@rule(torch.meshgrid, torch._C._VariableFunctions.meshgrid)  # type: ignore[attr-defined]
def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Jet, ...]:
    jets = as_jets(tensors[0] if isinstance(tensors[0], (list, tuple)) else tensors)
    shape = [len(each) for each in map(atleast_1d, jets)]
    lines = (each.reshape(*[1] * i, -1, *[1] * (len(jets) - 1 - i)) for i, each in enumerate(jets))
    grids = (each.expand(shape) for each in lines)
    swapped = indexing == "xy" and len(jets) > 1
    return tuple(each.transpose(0, 1) if swapped else each for each in grids)


@rule(torch.dstack)
def dstack(tensors: Sequence[Any]) -> Jet:
    return cat([atleast_3d(each) for each in as_jets(tensors)], dim=2)


@rule(torch.hsplit)
def hsplit(x: Jet, sections: Any) -> tuple[Jet, ...]:
    return tensor_split(x, sections, min(1, x.ndim - 1))


@rule(torch.vsplit)
def vsplit(x: Jet, sections: Any) -> tuple[Jet, ...]:
    return tensor_split(x, sections, 0)


@rule(torch.dsplit)
def dsplit(x: Jet, sections: Any) -> tuple[Jet, ...]:
    return tensor_split(x, sections, 2)


@rule(torch.hstack)
def hstack(tensors: Sequence[Any]) -> Jet:
    return cat(tensors, dim=min(1, tensors[0].ndim - 1))


@rule(torch.vstack, torch.row_stack)
def vstack(tensors: Sequence[Any]) -> Jet:
    return cat([each if each.ndim > 1 else each[None] for each in tensors])


@rule(torch.column_stack)
def column_stack(tensors: Sequence[Any]) -> Jet:
    return cat([each if each.ndim > 1 else each[:, None] for each in tensors], dim=1)
