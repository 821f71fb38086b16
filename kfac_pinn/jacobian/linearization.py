"""The one object from which every optimizer reads: residual and Jacobian of a closure.

The residuals of all terms are stacked and scaled, r = cat_k r_k / sqrt(N_k) (length R), so that the
loss is L = 1/2 ||r||^2 and the Gauss-Newton matrix J^T J, J = d r / d theta (R, P). Flat vectors of
length P hold the parameters in the order given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn.jacobian.blocks import BlockJacobian, Layer, LayerJacobian, Leaf
from kfac_pinn.linalg import rows_at_once, sum_of_squares

__all__ = ["Block", "Linearization", "TermJacobian"]

Block: TypeAlias = Layer | Leaf


@dataclass(frozen=True)
class TermJacobian:
    """One residual term, linearised: N rows of J, unscaled.

    Attributes:
        name: of the term.
        residual: r_k, shape (N,).
        blocks: the Jacobian with respect to each block that it depends on.
    """

    name: str
    residual: Tensor
    blocks: dict[Block, BlockJacobian]

    @property
    def scale(self) -> float:
        """1 / sqrt(N), by which residual and rows enter the stacked ones."""
        return 1 / math.sqrt(len(self.residual))


class Linearization:
    """Residual r and Jacobian J of a closure at the current parameters.

    Attributes:
        parameters: the tensors, in the order of the flat vector.
        terms: one entry a residual term (several for a term with a convex loss).
        loss: L, a float; 1/2 ||r||^2 for least squares.
        linear_term: gradient of the loss beyond J^T r, shape (P,); None for least squares.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        terms: Sequence[TermJacobian],
        loss: float,
        linear_term: Tensor | None = None,
    ) -> None:
        self.parameters, self.terms = list(parameters), list(terms)
        self.loss, self.linear_term = loss, linear_term

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(p.numel() for p in self.parameters)

    @cached_property
    def blocks(self) -> list[Block]:
        """Layers and leaves that some residual depends on, in order of appearance."""
        return list(dict.fromkeys(block for t in self.terms for block in t.blocks))

    @cached_property
    def residual(self) -> Tensor:
        """r, stacked and scaled, shape (R,)."""
        return torch.cat([t.scale * t.residual for t in self.terms])

    @cached_property
    def gradient(self) -> Tensor:
        """dL/dtheta = J^T r (+ linear_term), shape (P,)."""
        gradient = self.vjp(self.residual)
        return gradient if self.linear_term is None else gradient + self.linear_term

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v, shape (R,), for a flat vector v (P,), or (R, m) for several as columns (P, m)."""
        return torch.cat([self._jvp(t, v) for t in self.terms])

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (P,), for u (R,)."""
        out = u.new_zeros(self.size)
        for term, part in zip(self.terms, self.split(u), strict=True):
            for block in term.blocks.values():
                block.add_vjp(term.scale * part, out)
        return out

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """A stacked vector (R, ...) term by term."""
        return u.split([len(t.residual) for t in self.terms])

    def restrict(self, block: Block) -> Linearization:
        """The same with all columns of J zero but those of one block."""
        terms = [
            TermJacobian(t.name, t.residual, {b: j for b, j in t.blocks.items() if b is block})
            for t in self.terms
        ]
        return Linearization(self.parameters, terms, self.loss)

    def unflatten(self, v: Tensor) -> list[Tensor]:
        """A flat vector (P,) as views of the parameters' shapes."""
        parts = v.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def rows(self, block: Block | None = None) -> Tensor:
        """J, shape (R, P), or its columns of one block, shape (R, block.size)."""
        return torch.cat([self._rows(t, slice(None), block) for t in self.terms])

    def batches(
        self, size: int | None = None, block: Block | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (rows of J, entries of r) in order, so many at once as `rows_at_once` allows.

        Args:
            size: the most rows of one pair, instead.
            block: of its columns only, (n, block.size).
        """
        size = size or rows_at_once(self.size if block is None else block.size)
        for term in self.terms:
            for start in range(0, len(term.residual), size):
                points = slice(start, start + size)
                yield self._rows(term, points, block), term.scale * term.residual[points]

    def gramian(self, block: Block | None = None) -> Tensor:
        """J^T J, shape (P, P), or the diagonal block of one block, shape (size, size)."""
        return sum_of_squares(rows for rows, _ in self.batches(block=block))

    def gramian_diagonal(self) -> Tensor:
        """diag(J^T J), shape (P,)."""
        diagonal = self.terms[0].residual.new_zeros(self.size)
        for rows, _ in self.batches():
            diagonal += rows.square().sum(0)
        return diagonal

    def kernel(self) -> Tensor:
        """J J^T, shape (R, R): layer by layer, from rows or from factors, whichever is cheaper."""
        kernel = torch.zeros(len(self.residual), len(self.residual)).to(self.residual)
        for block in self.blocks:
            if self._factored_is_cheaper(block):
                self._add_factored_kernel(block, kernel)
            else:
                kernel += sum_of_squares([self.rows(block).mT])
        return kernel

    def _jvp(self, term: TermJacobian, v: Tensor) -> Tensor:
        product = v.new_zeros(len(term.residual), *v.shape[1:])
        for block in term.blocks.values():
            product += block.jvp(v)
        return term.scale * product

    def _rows(self, term: TermJacobian, points: slice, block: Block | None = None) -> Tensor:
        if block is not None:
            if block in term.blocks:
                return term.scale * term.blocks[block].rows(points)
            return term.residual.new_zeros(len(term.residual[points]), block.size)
        out = term.residual.new_zeros(len(term.residual[points]), self.size)
        for place, jacobian in term.blocks.items():
            rows, start = jacobian.rows(points), 0
            for columns in place.slices:
                width = columns.stop - columns.start
                torch.mul(rows[:, start : start + width], term.scale, out=out[:, columns])
                start += width
        return out

    def _factored_is_cheaper(self, block: Block) -> bool:
        jacobians = [t.blocks[block] for t in self.terms if block in t.blocks]
        layers = [j for j in jacobians if isinstance(j, LayerJacobian)]
        if len(layers) < len(jacobians):
            return False
        factored = sum(a.kernel_cost(b) for a in layers for b in layers)
        return factored < len(self.residual) ** 2 * block.size

    def _add_factored_kernel(self, block: Block, kernel: Tensor) -> None:
        sizes = [len(t.residual) for t in self.terms]
        for i, row in enumerate(kernel.split(sizes)):
            for j, cell in enumerate(row.split(sizes, dim=1)):
                a, b = self.terms[i].blocks.get(block), self.terms[j].blocks.get(block)
                if isinstance(a, LayerJacobian) and isinstance(b, LayerJacobian):
                    scale = self.terms[i].scale * self.terms[j].scale
                    cell.add_(a.kernel(b), alpha=scale)
