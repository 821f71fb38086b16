"""The one object from which every optimizer reads: residual and Jacobian of a closure.

The residuals of all terms are stacked and scaled, r = cat_k r_k / sqrt(N_k) (length R), so that the
loss is L = 1/2 ||r||^2 and the Gauss-Newton matrix J^T J, J = d r / d theta (R, P). Flat vectors of
length P hold the parameters in the order given.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor

from kfac_pinn.jacobian.blocks import LayerJacobian
from kfac_pinn.jacobian.layers import Block, Leaf
from kfac_pinn.jacobian.sampled import signs
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.linalg import (
    CountSketch,
    batches_of_rows,
    dimension,
    flatten,
    sum_of_squares,
    unflatten,
)
from kfac_pinn.processes import ALONE, Group

__all__ = ["Linearization", "sketches_of"]

# A block (size, size) of 128 MiB in float64, whose factorisation takes a second or two.
LARGEST_GRAMIAN = 4096
SMALL = 2**20  # numbers of J


class Linearization:
    """Residual r and Jacobian J of a closure at the current parameters, eqs. (1), (2).

    Attributes:
        parameters: the tensors, in the order of the flat vector.
        terms: one entry a residual term (several for a term with a convex loss).
        loss: L, a float; 1/2 ||r||^2 for least squares.
        linear_term: gradient of the loss beyond J^T r, shape (P,); None for least squares.
        ridge: the weights w of a term 1/2 sum_i w_i theta_i^2 of the loss (P,), or None. It adds w
            to the diagonal of the Gauss-Newton matrix, and its gradient to `linear_term`.
        data: what tells evaluations at the same points from others (`capture.data`), if asked for.
        others: leaves that others train, with what `backward()` in the closure adds to their grad.
        changes_gradients: whether the closure changed the gradients after backward(): clipped them.
        needs_gradients: whether the closure calls autograd itself, so that it cannot be evaluated
            with gradients disabled.
        processes: that share out the rows of J (`ShardedLinearization`).
    """

    processes: Group = ALONE
    ridge: Tensor | None = None
    data: Tensor | None = None
    others: Sequence[tuple[Tensor, Tensor]] = ()
    changes_gradients: bool = False
    needs_gradients: bool = False
    _sample: tuple[int, Tensor] | None = None
    _multiplied: bool = False  # by a vector, once at least

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
        return sum(map(dimension, self.parameters))

    @cached_property
    def blocks(self) -> list[Block]:
        """Layers and leaves that some residual depends on, in order of appearance."""
        return list(dict.fromkeys(block for t in self.terms for block in t.depends_on))

    @cached_property
    def residual(self) -> Tensor:
        """r, stacked and scaled, shape (R,)."""
        return torch.cat([t.scale * t.residual for t in self.terms])

    @cached_property
    def gradient(self) -> Tensor:
        """dL/dtheta = J^T r (+ linear_term), shape (P,)."""
        gradient = self.vjp(self.residual)
        return gradient if self.linear_term is None else gradient + self.linear_term

    def with_ridge(self, weights: Tensor) -> Linearization:
        """That of L(theta) + 1/2 sum_i w_i theta_i^2, for weights w (P,): weight decay."""
        theta = flatten(p.detach() for p in self.parameters)
        slope, result = weights * theta, copy.copy(self)
        result.ridge = weights if self.ridge is None else self.ridge + weights
        result.loss = self.loss + 0.5 * float(slope @ theta)
        result.linear_term = slope if self.linear_term is None else self.linear_term + slope
        result.gradient = self.gradient + slope
        return result

    def curvature(self, v: Tensor) -> Tensor:
        """(J^T J + diag(w)) v, the Gauss-Newton matrix on a flat vector (P,); w: the ridge.

        The first one is made as it comes; before the second J is arranged for many.
        """
        rows = self._arranged if self._multiplied else None
        product = self.vjp(self @ v) if rows is None else (rows @ v) @ rows
        # Most optimizers multiply once a step; arranging costs about two products
        self._multiplied = True
        return product if self.ridge is None else product + self.ridge * v

    @cached_property
    def _arranged(self) -> Tensor | None:
        """J's rows, where J is small; else its factors are arranged."""
        if self._is_small:
            return self.rows()
        for term in self.terms:
            term.arrange()
        return None

    @property
    def _is_small(self) -> bool:
        """J in the cache: measured, its rows pay from the third product on, with any layers."""
        # Rows of what is left to autograd cost a backward pass each
        products_only = any(term.rest is not None for term in self.terms)
        return not products_only and self.size * len(self.residual) <= SMALL

    def damped(self, damping: float | Tensor) -> float | Tensor:
        """damping + w: what is added to the diagonal of J^T J, a number if it is one."""
        if self.ridge is None:
            return damping
        lowest, highest = self.ridge.aminmax()
        # A number where it can be one: kernels and Woodbury's identity know no other
        return damping + (float(lowest) if lowest == highest else self.ridge)

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v, shape (R,), for a flat vector v (P,), or (R, m) for several as columns (P, m)."""
        return torch.cat([t.jvp(v) for t in self.terms])

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (P,), for u (R,)."""
        out = u.new_zeros(self.size)
        for term, part in zip(self.terms, self.split(u), strict=True):
            term.add_vjp(part, out)
        return out

    def parts(self) -> Iterator[Linearization]:
        """Linearisations with the rows that are held here, one after another: this one."""
        yield self

    @cached_property
    def totals(self) -> list[int]:
        """The number of points of each term, wherever they are held."""
        return [len(term.residual) for term in self.terms]

    @cached_property
    def places(self) -> list[slice]:
        """Of each term, which of its points are held here: all of them."""
        return [slice(None) for _ in self.terms]

    def mine(self, u: Tensor) -> Tensor:
        """The part of a stacked vector (R, ...) that belongs to the rows held here: all of it."""
        return u

    def whole(self, part: Tensor) -> Tensor:
        """The reverse of `mine`."""
        return part

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """A stacked vector (R, ...) term by term."""
        return u.split([len(t.residual) for t in self.terms])

    def restrict(self, block: Block) -> Linearization:
        """The same with all columns of J zero but those of one block."""
        return Linearization(self.parameters, [t.restrict(block) for t in self.terms], self.loss)

    def unflatten(self, v: Tensor) -> list[Tensor]:
        """A flat vector (P,) in the parameters' shapes: views, copies for complex ones."""
        return unflatten(v, self.parameters)

    def outline(self) -> Linearization:
        """All but J: blocks and sums, for whoever has the rows elsewhere."""
        result = copy.copy(self)
        result.terms = [term.outline() for term in self.terms]
        return result

    def rows(self, block: Block | None = None) -> Tensor:
        """J, shape (R, P), or its columns of one block, shape (R, block.size)."""
        if block is not None:
            return torch.cat([self._rows(t, slice(None), block) for t in self.terms])
        out = self.residual.new_zeros(len(self.residual), self.size)
        for term, part in zip(self.terms, self.split(out), strict=True):
            term.write_rows(slice(None), part)
        return out

    def sketched(self, rows: int, generator: Generator, hashes: int = 1) -> tuple[Tensor, Tensor]:
        """S J and S r, about `rows` random sums of rows, each term's in proportion to its points.

        Without J in memory: layers add up their factors. S is a `CountSketch` of each term.
        """
        counts = [len(term.residual) for term in self.terms]
        return self.sketched_by(sketches_of(counts, rows, generator, hashes))

    def sketched_by(self, sketches: Sequence[CountSketch]) -> tuple[Tensor, Tensor]:
        """S J and S r for one S a term."""
        sizes = [sketch.size for sketch in sketches]
        out = self.terms[0].residual.new_zeros(sum(sizes), self.size)
        for term, sketch, part in zip(self.terms, sketches, out.split(sizes), strict=True):
            term.write_sketch(sketch, part)
        pairs = zip(self.terms, sketches, strict=True)
        return out, torch.cat([sketch(t.scale * t.residual) for t, sketch in pairs])

    def batches(
        self, size: int | None = None, block: Block | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (rows of J, entries of r) in order, so many at once as `rows_at_once` allows.

        Of the rows that are held here; the other processes have theirs.

        Args:
            size: the most rows of one pair, instead.
            block: of its columns only, (n, block.size).
        """
        # Never across two terms: a batch has one scale, and one way to its rows
        columns = self.size if block is None else block.size
        for term in self.terms:
            for points in batches_of_rows(len(term.residual), columns, size):
                yield self._rows(term, points, block), term.scale * term.residual[points]

    def gramian(self, block: Block | None = None) -> Tensor:
        """J^T J, shape (P, P), or the diagonal block of one block, shape (size, size)."""
        return sum_of_squares(rows for rows, _ in self.batches(block=block))

    def leaf_gramian(self, leaf: Leaf, seed: int) -> Tensor:
        """J^T J of a leaf, for a preconditioner: exact (size, size) where its rows are known.

        Else, and where it is large, an estimate of the diagonal (size,), by one vector of random
        signs s: the mean of (J^T s)^2 has the right trace.
        """
        explicit = all(leaf in t.blocks for t in self.terms if leaf in t.depends_on)
        # A preconditioner: where exact costs too much, the right trace is enough
        if explicit and leaf.size <= LARGEST_GRAMIAN:
            return self.gramian(leaf)
        sample = self._sampled_gradient(seed)[leaf.place]
        # The mean: single entries of one random sample are far off, and zero ones would divide
        return sample.square().mean().expand(leaf.size).clone()

    def _sampled_gradient(self, seed: int) -> Tensor:
        """J^T s, shape (P,)."""
        # One backward pass serves all leaves of a step
        if self._sample is None or self._sample[0] != seed:
            self._sample = seed, self.vjp(signs(self.residual, seed))
        return self._sample[1]

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
            if self.factored_is_cheaper(block):
                self._add_factored_kernel(block, kernel)
            else:
                kernel += sum_of_squares([self.rows(block).mT])
        return kernel

    def _rows(self, term: TermJacobian, points: slice, block: Block | None = None) -> Tensor:
        if block is not None:
            return term.block_rows(points, block)
        out = term.residual.new_zeros(len(term.residual[points]), self.size)
        term.write_rows(points, out)
        return out

    def factored_is_cheaper(self, block: Block) -> bool:
        """Whether the kernel of a layer costs less from its factors than from its rows."""
        jacobians = [t.blocks.get(block) for t in self.terms if block in t.depends_on]
        layers = [j for j in jacobians if isinstance(j, LayerJacobian)]
        # A term that has this block by rows cannot meet another's factors
        if len(layers) < len(jacobians):
            return False
        # In multiplications: by factors S S' (d_in + d_out) a pair of points, by rows d_in d_out
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


def sketches_of(
    counts: Sequence[int], rows: int, generator: Generator, hashes: int
) -> list[CountSketch]:
    """One S a term of so many points, about `rows` rows in all, in proportion to the points."""
    # Term by term: a boundary of few points keeps its share of the rows whatever chance says
    sizes = [max(1, min(n, round(rows * n / sum(counts)))) for n in counts]
    pairs = zip(counts, sizes, strict=True)
    return [CountSketch(n, size, generator, min(hashes, size)) for n, size in pairs]
