"""Functions that move, join, cut or add up entries: linear, so every row alike.

The rows are one more leading axis: dimensions counted from the front move by one.
"""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet, rule
from kfac_pinn.taylor_mode.rules.registration import aligned, as_jets, linear, tensor_like, value_of


def after(dim: Any) -> Any:
    """Dimensions of a value, one or several, as those of the rows."""
    if isinstance(dim, int):
        return dim + 1 if dim >= 0 else dim
    return tuple(after(each) for each in dim)


def sizes_of(sizes: Sequence[Any]) -> Sequence[int]:
    """Sizes come one by one or as one sequence."""
    return sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


def all_dims(x: Jet, dim: Any) -> Any:
    """The dimensions asked for; None means all of them."""
    return tuple(range(x.ndim)) if dim is None or dim == () else dim


# --- another shape ----------------------------------------------------------------------------


@rule(torch.reshape)
def reshape(x: Jet, *shape: Any) -> Jet:
    return x.view_of(x.data.reshape(len(x.data), *sizes_of(shape)))


@rule(torch.Tensor.view)
def view(x: Jet, *shape: Any) -> Jet:
    return x.view_of(x.data.view(len(x.data), *sizes_of(shape)))


@rule(torch.Tensor.reshape_as, torch.Tensor.view_as)
def reshape_as(x: Jet, other: Any) -> Jet:
    return reshape(x, other.shape)


@rule(torch.flatten)
def flatten(x: Jet, start_dim: int = 0, end_dim: int = -1) -> Jet:
    return x.view_of(x.data.flatten(after(start_dim), after(end_dim)))


@rule(torch.unflatten)
def unflatten(x: Jet, dim: int, sizes: Any) -> Jet:
    return x.view_of(x.data.unflatten(after(dim), sizes))


@rule(torch.squeeze)
def squeeze(x: Jet, dim: Any = None) -> Jet:
    ones = [i for i, size in enumerate(x.shape) if size == 1]
    return x.view_of(x.data.squeeze(after(ones if dim is None else dim)))


@rule(torch.unsqueeze)
def unsqueeze(x: Jet, dim: int) -> Jet:
    return x.view_of(x.data.unsqueeze(after(dim)))


@rule(torch.Tensor.expand, torch.broadcast_to)
def expand(x: Jet, *sizes: Any) -> Jet:
    shape = sizes_of(sizes)
    return x.view_of(aligned(x.data, len(shape)).expand(-1, *shape))


@rule(torch.Tensor.expand_as)
def expand_as(x: Any, other: Any) -> Any:
    return x.expand(other.shape)


@rule(torch.broadcast_tensors)
def broadcast_tensors(*tensors: Any) -> list[Jet]:
    shape = torch.broadcast_shapes(*(each.shape for each in tensors))
    return [each.expand(shape) for each in tensors]


@rule(torch.Tensor.repeat, torch.tile)
def repeat(x: Jet, *sizes: Any) -> Jet:
    times = sizes_of(sizes)
    times = [1] * (x.ndim - len(times)) + [*times]
    return x.like(aligned(x.data, len(times)).repeat(1, *times))


# --- another order ----------------------------------------------------------------------------


@rule(torch.t, torch.adjoint)
def transpose_matrix(x: Jet) -> Jet:
    return x.view_of(x.data.mT) if x.ndim >= 2 else x


@rule(torch.transpose, torch.swapaxes, torch.swapdims)
def transpose(x: Jet, dim0: int, dim1: int) -> Jet:
    return x.view_of(x.data.transpose(after(dim0), after(dim1)))


@rule(torch.permute)
def permute(x: Jet, *dims: Any) -> Jet:
    return x.view_of(x.data.permute(0, *after(sizes_of(dims))))


@rule(torch.movedim, torch.moveaxis)
def movedim(x: Jet, source: Any, destination: Any) -> Jet:
    return x.view_of(x.data.movedim(after(source), after(destination)))


@rule(torch.flip)
def flip(x: Jet, *dims: Any) -> Jet:
    return x.like(x.data.flip(after(sizes_of(dims))))


# --- parts ------------------------------------------------------------------------------------


@rule(torch.Tensor.__getitem__)
def getitem(x: Jet, index: Any) -> Jet:
    index = index if isinstance(index, tuple) else (index,)
    # Two tensors in an index would bring their axis to the front, before the rows.
    if all(isinstance(i, (int, slice, type(None), type(...))) for i in index):
        rows = (slice(None), *index)
        return x.view_of(x.data[rows])
    return x.like(rows_last(x.data)[all_rows(index)].movedim(-1, 0))


@rule(torch.Tensor.__setitem__)
def setitem(x: Jet, index: Any, value: Any) -> None:
    if not isinstance(x, Jet):
        raise TypeError(
            "a plain tensor cannot hold derivatives, so a jet cannot be written into it: make it "
            "with torch.zeros_like of something that depends on x, or use torch.cat / torch.stack."
        )
    index = all_rows(index if isinstance(index, tuple) else (index,))
    value = value if isinstance(value, Jet) else tensor_like(value, x).to(x.data)
    rows, data = as_jets([value, x])[0].data, x.data.clone()
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
    return x.view_of(x.data.narrow(after(dim), start, length))


@rule(torch.select)
def select(x: Jet, dim: int, index: int) -> Jet:
    return x.view_of(x.data.select(after(dim), index))


@rule(torch.unbind)
def unbind(x: Jet, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.data.unbind(after(dim))))


@rule(torch.chunk)
def chunk(x: Jet, chunks: int, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.data.chunk(chunks, after(dim))))


@rule(torch.split, torch.split_with_sizes, torch.Tensor.split)
def split(x: Jet, split_size: Any, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.data.split(split_size, after(dim))))


@rule(torch.tensor_split)
def tensor_split(x: Jet, sections: Any, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(map(x.view_of, x.data.tensor_split(sections, after(dim))))


@rule(torch.index_select)
def index_select(x: Jet, dim: int, index: Tensor) -> Jet:
    return x.like(x.data.index_select(after(dim), index))


@rule(torch.gather)
def gather(x: Jet, dim: int, index: Tensor) -> Jet:
    return x.like(x.data.gather(after(dim), index.expand(len(x.data), *index.shape)))


# --- joined -----------------------------------------------------------------------------------


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(tensors: Sequence[Any], dim: int = 0) -> Jet:
    jets = as_jets(tensors)
    return jets[0].like(torch.cat([each.data for each in jets], after(dim)))


@rule(torch.stack)
def stack(tensors: Sequence[Any], dim: int = 0) -> Jet:
    jets = as_jets(tensors)
    return jets[0].like(torch.stack([each.data for each in jets], after(dim)))


@rule(torch.hstack)
def hstack(tensors: Sequence[Any]) -> Jet:
    return cat(tensors, dim=min(1, tensors[0].ndim - 1))


@rule(torch.vstack, torch.row_stack)
def vstack(tensors: Sequence[Any]) -> Jet:
    return cat([each if each.ndim > 1 else each[None] for each in tensors])


@rule(torch.column_stack)
def column_stack(tensors: Sequence[Any]) -> Jet:
    return cat([each if each.ndim > 1 else each[:, None] for each in tensors], dim=1)


# --- added up ---------------------------------------------------------------------------------


@rule(torch.sum)
def total(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
    return x.like(x.data.sum(after(all_dims(x, dim)), keepdim)) if x.ndim else x


@rule(torch.mean)
def mean(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
    return x.like(x.data.mean(after(all_dims(x, dim)), keepdim)) if x.ndim else x


linear(torch.cumsum, torch.diff, torch.trace, torch.trapezoid, torch.roll, torch.diagonal)
linear(torch.diag_embed, torch.tril, torch.triu, torch.repeat_interleave, torch.take_along_dim)
linear(F.interpolate, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
linear(F.unfold, F.fold, F.pixel_shuffle)


@rule(F.pad)
def pad(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    if value:
        return F.pad(x - value, pad) + value
    return x.like(torch.vmap(lambda row: F.pad(row, pad, mode))(x.data))


# --- copies, types and constants --------------------------------------------------------------


@rule(torch.clone)
def clone(x: Jet, *, memory_format: Any = torch.preserve_format) -> Jet:
    return x.like(x.data.clone())


@rule(torch.Tensor.contiguous)
def contiguous(x: Jet, *, memory_format: Any = torch.contiguous_format) -> Jet:
    return x.view_of(x.data.contiguous())


@rule(torch.Tensor.to)
def to(x: Any, *args: Any, **kwargs: Any) -> Any:
    rows = (x.data if isinstance(x, Jet) else x).to(*map(value_of, args), **kwargs)
    return x.view_of(rows) if isinstance(x, Jet) else rows


@rule(torch.Tensor.type_as)
def type_as(x: Any, other: Any) -> Any:
    return to(x, other)


def on_rows(function: Any) -> None:
    """Register a method that casts or moves the rows."""
    rule(function)(lambda x, *args, **kwargs: x.view_of(function(x.data, *args, **kwargs)))


for _cast in ("double", "float", "half", "bfloat16", "cpu", "cuda"):
    on_rows(getattr(torch.Tensor, _cast))


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
    rule(function)(lambda *args, **kwargs: function(*map(value_of, args), **kwargs))


for _name in ("lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf", "isfinite", "detach"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("greater", "greater_equal", "less", "less_equal", "not_equal", "isclose", "allclose"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("argmax", "argmin", "argsort", "heaviside", "logical_not", "signbit", "tolist"):
    on_value(getattr(torch.Tensor, _name))
for _name in ("new_zeros", "new_ones", "new_full", "new_tensor", "new_empty", "item"):
    on_value(getattr(torch.Tensor, _name))
