"""Which rank each layer gets: one for all, or by name; whole, and no more than the layer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import nn

from hyperlora_ext.rewiring import linear_layers
from kfac_pinn.settings import whole_number

__all__ = ["Ranks", "ranks_for", "widest"]

Ranks: TypeAlias = int | Mapping[str, int]


def ranks_for(model: nn.Module, rank: Ranks, cap: bool = True) -> dict[str, int]:
    """The rank of each layer by name; arguments and errors as `adapt`."""
    full = full_ranks(model)
    if isinstance(rank, Mapping):
        if not rank:
            raise ValueError(f"ranks of no layer at all; the model has {list(full)}")
        if unknown := [name for name in rank if name not in full]:
            raise ValueError(f"no linear layer {unknown[0]!r}; the model has {list(full)}")
        return {name: whole(r, full[name], f"layer {name}") for name, r in rank.items()}
    rank = whole(rank, max(full.values()) if cap else None, "the largest layer")
    return {name: min(rank, bound) if cap else rank for name, bound in full.items()}


def full_ranks(model: nn.Module) -> dict[str, int]:
    """min(d_in, d_out) of each layer by name."""
    return {name: min(layer.weight.shape) for name, layer in linear_layers(model).items()}


def widest(model: nn.Module) -> int:
    """The largest rank that some layer can take."""
    return max(full_ranks(model).values())


def whole(rank: Any, bound: int | None, layer: str) -> int:
    """The rank as an int, 1 <= rank <= min(d_in, d_out) where there is a bound."""
    try:
        # Also whole numbers of NumPy and torch, and neither 4.0 nor True
        found = whole_number("rank", rank, None)
    except TypeError:
        raise ValueError(f"rank {rank!r} for {layer}: a rank is a whole number") from None
    if found < 1 and bound is None:
        raise ValueError(f"rank {found}: give at least 1")
    if bound is not None and not 1 <= found <= bound:
        raise ValueError(f"rank {found} for {layer}, whose full rank is {bound}: give 1 to {bound}")
    return found
