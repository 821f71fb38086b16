"""Making a linearised problem small enough for its singular value decomposition.

Rows of J are reduced exactly, by a blocked QR decomposition, or sketched; columns are kept or
sketched. J is assembled from its factors in batches of bounded memory, so that a sketched
problem of any number of points and parameters fits into memory. Everything here is in float64,
whatever the parameters are: the decomposition is where digits are lost.

While the damping is large, eigenvalues of the smaller of J^T J and J J^T serve as well as singular
values of J, at half the cost or less: their error, eps sigma_1^2, must stay far below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from kfac_pinn.curvature.decomposition import (
    Decomposition,
    GramianDecomposition,
    KernelDecomposition,
)
from kfac_pinn.jacobian.closure import Linearization
from kfac_pinn.linalg import (
    CosineSketch,
    CountSketch,
    normal_equations,
    reduce_rows,
    rows_at_once,
)

__all__ = ["Compression", "Exact", "Sketch"]

LARGE_DAMPING = 1e-9  # relative to sigma_1^2; far above GramianDecomposition.rounding


class Compression(Protocol):
    """From a linearisation to the decomposed model of one step."""

    def __call__(
        self, linearization: Linearization, generator: Generator, damping: float
    ) -> Decomposition:
        """The model.

        Args:
            generator: the source of whatever is random, on the CPU.
            damping: the last lambda / sigma_1^2, by which to choose how many digits are needed.
        """


@dataclass(frozen=True)
class Exact:
    """All of J: R and Q^T r of a blocked QR decomposition where it has more rows than columns.

    Time O(R P min(R, P)), memory O(min(R, P) P) numbers.
    """

    def __call__(
        self, linearization: Linearization, generator: Generator, damping: float
    ) -> Decomposition:
        tall = row_count(linearization) > linearization.size
        return decomposed(batches(linearization), tall, linear_term_of(linearization), damping)


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

    def __call__(
        self, linearization: Linearization, generator: Generator, damping: float
    ) -> Decomposition:
        J, r = self._rows(linearization, generator)
        linear_term = linear_term_of(linearization)
        if self.columns is None or self.columns >= linearization.size:
            return decomposed([(J, r)], len(r) > linearization.size, linear_term, damping)
        sketch = CosineSketch(linearization.size, self.columns, generator)
        narrow, scale = sketch(J) / sketch.scale, sketch.scale
        linear_term = None if linear_term is None else sketch(linear_term) / scale
        model = decomposed([(narrow, r)], len(r) > self.columns, linear_term, damping)
        return model.within(lambda y: sketch.transpose(y) / scale)

    def _rows(self, linearization: Linearization, generator: Generator) -> tuple[Tensor, Tensor]:
        """S J and S r, or J and r where there are few rows anyway."""
        total = row_count(linearization)
        blocks = batches(linearization)
        if self.rows is None or self.rows >= total:
            parts = list(blocks)
            return torch.cat([J for J, _ in parts]), torch.cat([r for _, r in parts])
        sketch, start = CountSketch(total, self.rows, generator), 0
        out = torch.zeros(self.rows, linearization.size + 1, dtype=torch.float64)
        out = out.to(linearization.residual.device)
        for J, r in blocks:
            place = slice(start, start + len(r))
            signed = sketch.sign[place].to(J)[:, None] * torch.cat([J, r[:, None]], dim=1)
            out.index_add_(0, sketch.bucket[place].to(J.device), signed)
            start += len(r)
        return out[:, :-1], out[:, -1]


def decomposed(
    blocks: Iterable[tuple[Tensor, Tensor]], tall: bool, linear_term: Tensor | None, damping: float
) -> Decomposition:
    """From blocks of rows of (J, r): reduced first if J is tall, by a product if that is enough."""
    large = damping > LARGE_DAMPING
    if not tall:
        parts = list(blocks)
        J, r = torch.cat([J for J, _ in parts]), torch.cat([r for _, r in parts])
        return (KernelDecomposition if large else Decomposition)(J, r, linear_term)
    if large:
        gramian, gradient = normal_equations(blocks)
        whole = gradient if linear_term is None else gradient + linear_term
        return GramianDecomposition(gramian, whole)
    return Decomposition(*reduce_rows(blocks), linear_term)


def batches(linearization: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of J, and of the ridge, and entries of r in float64, a bounded number at once."""
    for J, r in linearization.batches():
        yield J.double(), r.double()
    yield from ridge_rows(linearization)


def row_count(linearization: Linearization) -> int:
    """How many rows `batches` yields."""
    return len(linearization.residual) + (0 if linearization.ridge is None else linearization.size)


def ridge_rows(linearization: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows sqrt(w_i) e_i of a ridge, with zeros: its gradient is in the linear term."""
    if linearization.ridge is None:
        return
    roots = linearization.ridge.double().sqrt()
    start = 0
    for part in roots.split(rows_at_once(len(roots))):
        rows = part.new_zeros(len(part), len(roots)).diagonal_scatter(part, offset=start)
        yield rows, torch.zeros_like(part)
        start += len(part)


def linear_term_of(linearization: Linearization) -> Tensor | None:
    """The gradient of the linear term in float64."""
    return None if linearization.linear_term is None else linearization.linear_term.double()
