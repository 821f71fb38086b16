"""Entries and slices of jets, read and written."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.registration import (
    aligned,
    as_jets,
    tensor_like,
)
from kfac_pinn.taylor_mode.rules.shapes import after


@rule(torch.Tensor.__getitem__)
def getitem(x: Jet, index: Any) -> Jet:
    index = index if isinstance(index, tuple) else (index,)
    # Two tensors in an index would bring their axis to the front, before the rows.
    if all(isinstance(i, (int, slice, type(None), type(...))) for i in index):
        rows = (slice(None), *index)
        return x.view_of(x.rows[rows])
    return x.like(rows_last(x.rows)[all_rows(index)].movedim(-1, 0))


@rule(torch.Tensor.__setitem__)
def setitem(x: Jet, index: Any, value: Any) -> None:
    if not isinstance(x, Jet):
        raise TypeError(
            "a plain tensor cannot hold derivatives, so a jet cannot be written into it: make it "
            "with torch.zeros_like of something that depends on x, or use torch.cat / torch.stack."
        )
    index = all_rows(index if isinstance(index, tuple) else (index,))
    value = value if isinstance(value, Jet) else tensor_like(value, x).to(x.rows)
    # A copy: other jets may share the memory, and autograd may need it
    rows, data = as_jets([value, x])[0].rows, x.rows.clone()
    target = rows_last(data)[index]
    rows_last(data)[index] = rows_last(aligned(rows, target.ndim - 1))
    x.replace(x.like(data))


def rows_last(data: Tensor) -> Tensor:
    """The rows as the last axis, where no index reaches them."""
    return data.movedim(0, -1)


def all_rows(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """An index for `rows_last`."""
    return (*index, slice(None)) if any(i is ... for i in index) else index


@rule(torch.narrow)
def narrow(x: Jet, dim: int, start: int, length: int) -> Jet:
    return x.view_of(x.rows.narrow(after(dim), start, length))


@rule(torch.select)
def select(x: Jet, dim: int, index: int) -> Jet:
    return x.view_of(x.rows.select(after(dim), index))


@rule(torch.unbind)
def unbind(x: Jet, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.rows.unbind(after(dim))))


@rule(torch.chunk)
def chunk(x: Jet, chunks: int, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.rows.chunk(chunks, after(dim))))


@rule(torch.split, torch.split_with_sizes, torch.Tensor.split)
def split(x: Jet, split_size: Any, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.rows.split(split_size, after(dim))))


@rule(torch.tensor_split)
def tensor_split(x: Jet, sections: Any, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.rows.tensor_split(sections, after(dim))))


@rule(torch.index_select)
def index_select(x: Jet, dim: int, index: Tensor) -> Jet:
    return x.like(x.rows.index_select(after(dim), index))


@rule(torch.gather)
def gather(x: Jet, dim: int, index: Tensor) -> Jet:
    return x.like(x.rows.gather(after(dim), index.expand(len(x.rows), *index.shape)))
