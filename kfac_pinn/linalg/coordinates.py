"""Tensors as one vector of real numbers.

A complex entry w = a + i b has two coordinates, a and b. autograd's gradient of a real L with
respect to it is dL/da + i dL/db, so that both slopes are read off as a and b are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["dimension", "flatten", "real", "unflatten"]


def real(t: Tensor) -> Tensor:
    """A tensor itself, or real and imaginary parts (..., 2) of a complex one."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def dimension(t: Tensor) -> int:
    """The number of its coordinates."""
    return t.numel() * (2 if t.is_complex() else 1)


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """The coordinates of tensors of one precision, one after the other, shape (P,)."""
    return torch.cat([real(t).reshape(-1) for t in tensors])


def unflatten(v: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The reverse of `flatten`, for tensors like these: views of v, copies where complex."""
    parts = v.split([dimension(t) for t in like])
    return [shaped(part, t) for part, t in zip(parts, like, strict=True)]


def shaped(part: Tensor, like: Tensor) -> Tensor:
    """Coordinates as one tensor."""
    if not like.is_complex():
        return part.view(like.shape)
    # A copy: a pair must begin at an even place in memory to be seen as one number
    return torch.view_as_complex(part.view(*like.shape, 2).clone())
