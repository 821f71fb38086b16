"""Symmetries: a network sees its task in a frame of the task's own, moved in space or time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Shifted", "in_frame", "shifted"]


class Shifted(nn.Module):
    """u(x) = network(x - offset), the offset being that of the last q coordinates.

    Args:
        network: of points (N, d).
        offset: (q,), q <= d.
    """

    offset: Tensor

    def __init__(self, network: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = self.network(x - padded(self.offset, x.shape[-1]).to(x.device, x.dtype))
        return values


def in_frame(network: nn.Module, offset: Tensor) -> nn.Module:
    """The network as a task sees it whose last q coordinates are moved by (q,); q may be 0."""
    return Shifted(network, offset) if len(offset) else network


def shifted(x: Tensor, offsets: Tensor) -> Tensor:
    """Points (T n, d), or a jet of them, minus the offsets (T, q) of their tasks."""
    if not offsets.shape[1]:
        return x
    each = padded(offsets, x.shape[1]).repeat_interleave(len(x) // len(offsets), dim=0)
    return x - each.to(x.device, x.dtype)


def padded(offset: Tensor, dim: int) -> Tensor:
    """(..., q) -> (..., d): zero for the first coordinates."""
    return torch.nn.functional.pad(offset, (dim - offset.shape[-1], 0))
