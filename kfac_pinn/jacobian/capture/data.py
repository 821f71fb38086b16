"""What a loss was computed from besides parameters: points, targets, weights, dropout masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from kfac_pinn.jacobian.capture.graph import inputs_first

__all__ = ["data_of", "same_data"]

ROUNDING = 1e-10  # of sums: the same points in another order are the same data


def data_of(outputs: Iterable[Tensor], trained: Sequence[Tensor]) -> Tensor:
    """(sum t, sum t^2) of every constant t in the graphs, a flat float64 vector.

    Two evaluations of a closure with the same numbers here have read the same points.
    """
    ids = {id(p) for p in trained}
    found = {t for output in outputs for t in constants(output) if id(t) not in ids}
    unique = {(t.data_ptr(), t.shape, t.stride(), t.dtype): t for t in found}
    # A graph keeps tensors of somebody's own class, but without that class's attributes
    plain = [t.as_subclass(Tensor).detach() for t in unique.values()]
    # Squares tell apart what has equal sums: antithetic points, say
    values = [t.abs() if t.is_complex() else t for t in plain]
    sums = [part for t in values for part in (t.double().sum(), t.double().square().sum())]
    # Sorted: nodes of a graph have no order that evaluations share
    return torch.stack(sums).sort().values.cpu() if sums else torch.zeros(0, dtype=torch.float64)


def same_data(first: Tensor, second: Tensor) -> bool:
    """Whether two of these are of the same points."""
    if first.shape != second.shape:
        return False
    second = second.to(first)
    return bool(((first - second).abs() <= ROUNDING * first.abs()).all())


def constants(output: Tensor) -> Iterator[Tensor]:
    """Leaves of a graph, and what its nodes saved that no gradient goes through.

    Masks are left out: the one of a relu changes with the parameters.
    """
    for node in inputs_first(get_gradient_edge(output).node):
        if hasattr(node, "variable"):
            yield node.variable
            continue
        for name in saved_by(type(node)):  # type: ignore[arg-type]
            t = getattr(node, name)
            if isinstance(t, Tensor) and not t.requires_grad and t.dtype != torch.bool:
                yield t


@cache
def saved_by(kind: type[Any]) -> list[str]:
    """The names of what a kind of node saves."""
    return [name for name in dir(kind) if name.startswith("_saved_")]
