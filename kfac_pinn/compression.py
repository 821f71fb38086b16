"""Making a linearised problem small enough for its singular value decomposition.

Rows of J are reduced exactly, by a blocked QR decomposition, or sketched; columns are kept or
sketched. J is assembled from its factors in batches of at most BATCH_BYTES, so that a sketched
problem of any number of points and parameters fits into memory. Everything here is in float64,
whatever the parameters are: the decomposition is where digits are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from kfac_pinn.linalg import CosineSketch, CountSketch, reduce_rows
from kfac_pinn.linearize import Linearization
from kfac_pinn.trust_region import Decomposition

__all__ = ["Compression", "Exact", "Sketch"]

BATCH_BYTES = 2**28


class Compression(Protocol):
    """From a linearisation to the decomposed model of one step."""

    def __call__(self, linearization: Linearization, generator: Generator) -> Decomposition:
        """The model; `generator` is the source of whatever is random, on the CPU."""


@dataclass(frozen=True)
class Exact:
    """All of J: R and Q^T r of a blocked QR decomposition where it has more rows than columns.

    Time O(R P min(R, P)), memory O(min(R, P) P) numbers.
    """

    def __call__(self, linearization: Linearization, generator: Generator) -> Decomposition:
        batches = row_batches(linearization)
        if len(linearization.residual) > linearization.size:
            J, r = reduce_rows(batches)
        else:
            parts = list(batches)
            J, r = torch.cat([J for J, _ in parts]), torch.cat([r for _, r in parts])
        return Decomposition(J, r, excess_of(linearization))


@dataclass(frozen=True)
class Sketch:
    """At most `rows` random combinations of the rows, at most `columns` of the columns, of J.

    New ones every step, so that in the long run nothing is missed. The step lies in the random
    subspace S^T of the columns: J S^T is decomposed, S (columns, P) with orthonormal rows.

    Args:
        rows, columns: None keeps all.
    """

    rows: int | None = None
    columns: int | None = None

    def __call__(self, linearization: Linearization, generator: Generator) -> Decomposition:
        J, r = self._rows(linearization, generator)
        excess = excess_of(linearization)
        if self.columns is None or self.columns >= linearization.size:
            return Decomposition(J, r, excess)
        sketch = CosineSketch(linearization.size, self.columns, generator)
        narrow = Decomposition(
            sketch(J) / sketch.scale, r, None if excess is None else sketch(excess) / sketch.scale
        )
        return narrow.within(lambda y: sketch.transpose(y) / sketch.scale)

    def _rows(self, linearization: Linearization, generator: Generator) -> tuple[Tensor, Tensor]:
        """S J and S r, or J and r where there are few rows anyway."""
        total = len(linearization.residual)
        batches = row_batches(linearization)
        if self.rows is None or self.rows >= total:
            parts = list(batches)
            return torch.cat([J for J, _ in parts]), torch.cat([r for _, r in parts])
        sketch, start = CountSketch(total, self.rows, generator), 0
        out = torch.zeros(self.rows, linearization.size + 1, dtype=torch.float64)
        out = out.to(linearization.residual.device)
        for J, r in batches:
            place = slice(start, start + len(r))
            signed = sketch.sign[place].to(J)[:, None] * torch.cat([J, r[:, None]], dim=1)
            out.index_add_(0, sketch.bucket[place].to(J.device), signed)
            start += len(r)
        return out[:, :-1], out[:, -1]


def row_batches(linearization: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of J and entries of r in float64, at most BATCH_BYTES at once."""
    size = max(1, BATCH_BYTES // (8 * linearization.size))
    for J, r in linearization.row_batches(size):
        yield J.double(), r.double()


def excess_of(linearization: Linearization) -> Tensor | None:
    """The excess gradient in float64."""
    return None if linearization.excess is None else linearization.excess.double()
