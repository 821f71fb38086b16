"""Functions that move, join, cut or add up entries: linear, so every row alike.

The rows are one more leading axis: dimensions counted from the front move by one.
"""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import IN_PLACE, rule
from kfac_pinn.taylor_mode.rules.registration import (
    aligned,
    as_jets,
    jointly_linear,
    linear,
    tensor_like,
    value_of,
)


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
    return x.view_of(x.rows.reshape(len(x.rows), *sizes_of(shape)))


@rule(torch.Tensor.view)
def view(x: Jet, *shape: Any) -> Jet:
    return x.view_of(x.rows.view(len(x.rows), *sizes_of(shape)))


@rule(torch.Tensor.reshape_as, torch.Tensor.view_as)
def reshape_as(x: Jet, other: Any) -> Jet:
    return reshape(x, other.shape)


@rule(torch.flatten)
def flatten(x: Jet, start_dim: int = 0, end_dim: int = -1) -> Jet:
    return x.view_of(x.rows.flatten(after(start_dim), after(end_dim)))


@rule(torch.unflatten)
def unflatten(x: Jet, dim: int, sizes: Any) -> Jet:
    return x.view_of(x.rows.unflatten(after(dim), sizes))


@rule(torch.squeeze)
def squeeze(x: Jet, dim: Any = None) -> Jet:
    ones = [i for i, size in enumerate(x.shape) if size == 1]
    return x.view_of(x.rows.squeeze(after(ones if dim is None else dim)))


@rule(torch.unsqueeze)
def unsqueeze(x: Jet, dim: int) -> Jet:
    return x.view_of(x.rows.unsqueeze(after(dim)))


@rule(torch.Tensor.expand, torch.broadcast_to)
def expand(x: Jet, *sizes: Any) -> Jet:
    shape = sizes_of(sizes)
    return x.view_of(aligned(x.rows, len(shape)).expand(-1, *shape))


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
    return x.like(aligned(x.rows, len(times)).repeat(1, *times))


# --- another order ----------------------------------------------------------------------------


@rule(torch.t, torch.adjoint)
def transpose_matrix(x: Jet) -> Jet:
    return x.view_of(x.rows.mT) if x.ndim >= 2 else x


@rule(torch.transpose, torch.swapaxes, torch.swapdims)
def transpose(x: Jet, dim0: int, dim1: int) -> Jet:
    return x.view_of(x.rows.transpose(after(dim0), after(dim1)))


@rule(torch.permute)
def permute(x: Jet, *given: Any, dims: Any = None) -> Jet:
    return x.view_of(x.rows.permute(0, *after(sizes_of(given) if dims is None else dims)))


@rule(torch.movedim, torch.moveaxis)
def movedim(x: Jet, source: Any, destination: Any) -> Jet:
    return x.view_of(x.rows.movedim(after(source), after(destination)))


@rule(torch.flip)
def flip(x: Jet, *given: Any, dims: Any = None) -> Jet:
    return x.like(x.rows.flip(after(sizes_of(given) if dims is None else dims)))


# --- added up ---------------------------------------------------------------------------------


@rule(torch.sum)
def total(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
    return x.like(x.rows.sum(after(all_dims(x, dim)), keepdim)) if x.ndim else x


@rule(torch.mean)
def mean(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
    return x.like(x.rows.mean(after(all_dims(x, dim)), keepdim)) if x.ndim else x


linear(
    torch.view_as_real, torch.view_as_complex, torch.real, torch.imag, torch.conj,
    torch.conj_physical, torch.resolve_conj, torch.resolve_neg, torch.diag, torch.diagflat,
    torch.fliplr, torch.flipud, torch.rot90, torch.ravel, torch.Tensor.sum_to_size,
    torch.cumulative_trapezoid, torch.trapz, torch.gradient, F.pixel_unshuffle, F.channel_shuffle,
    F.avg_pool3d, F.adaptive_avg_pool3d, torch.linalg.diagonal,
)  # fmt: skip
# By name, so that transforms of later versions have their rule
_transforms = [name for name in dir(torch.fft) if re.fullmatch("[a-z]*(fft[2n]?|shift)", name)]
linear(*(getattr(torch.fft, name) for name in _transforms))
linear(torch.stft, torch.istft)
jointly_linear(torch.block_diag, torch.cartesian_prod, torch.combinations, torch.complex)
linear(torch.cumsum, torch.diff, torch.trace, torch.trapezoid, torch.roll, torch.diagonal)
linear(torch.diag_embed, torch.tril, torch.triu, torch.repeat_interleave, torch.take_along_dim)
linear(F.interpolate, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
linear(F.unfold, F.fold, F.pixel_shuffle)


@rule(F.pad)
def pad(x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    # A border of c is one of zeros around x - c, which is linear
    if value:
        return F.pad(x - value, pad) + value
    return x.like(torch.vmap(lambda row: F.pad(row, pad, mode))(x.rows))


# --- copies, types and constants --------------------------------------------------------------


@rule(torch.clone)
def clone(x: Jet, *, memory_format: Any = torch.preserve_format) -> Jet:
    return x.like(x.rows.clone())


@rule(torch.Tensor.copy_)
def copy(x: Jet, source: Any, non_blocking: bool = False) -> Jet:
    return as_jets([source, x])[0].expand(x.shape).to(x.dtype)


@rule(torch.Tensor.fill_)
def fill(x: Jet, value: Any) -> Jet:
    return copy(x, value if isinstance(value, Jet) else tensor_like(value, x))


@rule(torch.Tensor.zero_)
def zero(x: Jet) -> Jet:
    return Jet.constant(torch.zeros_like(x.value), x.basis)


IN_PLACE.update((torch.Tensor.copy_, torch.Tensor.fill_, torch.Tensor.zero_))


@rule(torch.Tensor.contiguous)
def contiguous(x: Jet, *, memory_format: Any = torch.contiguous_format) -> Jet:
    return x.view_of(x.rows.contiguous())


@rule(torch.Tensor.to)
def to(x: Any, *args: Any, memory_format: Any = None, **kwargs: Any) -> Any:
    rows = (x.rows if isinstance(x, Jet) else x).to(*map(value_of, args), **kwargs)
    return x.view_of(rows) if isinstance(x, Jet) else rows


@rule(torch.Tensor.type_as)
def type_as(x: Any, other: Any) -> Any:
    return to(x, other)


@rule(torch.Tensor.type)
def as_type(x: Jet, dtype: Any = None, non_blocking: bool = False) -> Any:
    return x.value.type() if dtype is None else x.view_of(x.rows.type(dtype))


def on_rows(function: Any) -> None:
    """Register a method that casts or moves the rows."""
    rule(function)(lambda x, *_, memory_format=None, **kw: x.view_of(function(x.rows, *_, **kw)))


for _cast in ("double", "float", "half", "bfloat16", "cpu", "cuda", "cdouble", "cfloat"):
    on_rows(getattr(torch.Tensor, _cast))
