"""Symmetries: a network sees its task in a frame of the task's own, moved in space or time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kfac_pinn.pinn.windows import Shifted

__all__ = ["Shifted", "in_frame", "shifted"]


def in_frame(network: nn.Module, offset: Tensor) -> nn.Module:
    """The network as a task sees it whose last q coordinates are moved by (q,); q may be 0."""
    return Shifted(network, offset) if len(offset) else network


def shifted(x: Tensor, offsets: Tensor) -> Tensor:
    """Points (T n, d), or a jet of them, minus the offsets (T, q) of their tasks."""
    if not offsets.shape[1]:
        return x
    # The last q coordinates are moved: time comes first and stays
    padded = torch.nn.functional.pad(offsets, (x.shape[1] - offsets.shape[1], 0))
    each = padded.repeat_interleave(len(x) // len(offsets), dim=0)
    return x - each.to(x.device, x.dtype)
