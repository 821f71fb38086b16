"""A Jacobian whose rows are shared out among processes.

Process q holds the rows J_q of its points, scaled by 1 / sqrt(N_k) with N_k the number of points of
*all* processes, so that J = [J_0; J_1; ...] is that of one process with all points:

    J^T u = sum_q J_q^T u_q,      J^T J = sum_q J_q^T J_q,      L = sum_q L_q,      J v = [J_q v]_q.

Sums are reduced. Vectors of R numbers, one a residual, are whole in every process; rows of J, of P
numbers each, stay where they are, but for the kernel J J^T, which needs all pairs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from kfac_pinn.jacobian.blocks import LayerInputs, LayerJacobian
from kfac_pinn.jacobian.layers import Block
from kfac_pinn.jacobian.linearization import Linearization, sketches_of
from kfac_pinn.processes import Processes

__all__ = ["ShardedLinearization"]


@dataclass(frozen=True)
class Layout:
    """Where the rows of a process stand among all: term after term, in a term rank after rank.

    Attributes:
        sizes: of every rank, its number of rows of every term.
        rank: this one.
    """

    sizes: list[list[int]]
    rank: int

    @property
    def totals(self) -> list[int]:
        """N_k."""
        return [sum(column) for column in zip(*self.sizes, strict=True)]

    @property
    def of_ranks(self) -> list[int]:
        """R_q."""
        return [sum(row) for row in self.sizes]

    @property
    def offsets(self) -> list[int]:
        """Where the own rows of a term begin in it."""
        before = self.sizes[: self.rank]
        return [sum(row[k] for row in before) for k in range(len(self.sizes[0]))]

    def places(self) -> list[slice]:
        """The own rows of every term, within the term."""
        pairs = zip(self.offsets, self.sizes[self.rank], strict=True)
        return [slice(start, start + size) for start, size in pairs]

    def mine(self, u: Tensor) -> Tensor:
        """The own part of a whole vector (R, ...)."""
        parts = zip(u.split(self.totals), self.places(), strict=True)
        return torch.cat([part[place] for part, place in parts])

    def arranged(self, gathered: Tensor) -> Tensor:
        """A whole vector (R, ...) from one that has rank after rank."""
        parts = gathered.split(self.of_ranks)
        pieces = [part.split(sizes) for part, sizes in zip(parts, self.sizes, strict=True)]
        return torch.cat([piece for term in zip(*pieces, strict=True) for piece in term])


class ShardedLinearization(Linearization):
    """r and J of all processes, of which this one holds the rows of its points.

    Args:
        share: r_q, J_q and L_q of this process, scaled by the points of all.
        processes: who holds the others.
        layout: of the rows; None: it is asked for.
    """

    def __init__(
        self, share: Linearization, processes: Processes, layout: Layout | None = None
    ) -> None:
        self.share, self.processes = share, processes
        self.layout = layout or layout_of(share, processes)
        like = share.terms[0].residual
        own = [share.loss, float(share.linear_term is not None)]
        numbers = torch.tensor(own, dtype=torch.float64, device=like.device)
        loss, linear = processes.sum(numbers)[0].tolist()
        super().__init__(share.parameters, share.terms, loss)
        if linear:
            zero = like.new_zeros(share.size)
            part = zero if share.linear_term is None else share.linear_term
            self.linear_term = processes.sum(part)[0]
        self.data = None if share.data is None else processes.gather(share.data.to(like.device))
        self.changes_gradients = share.changes_gradients
        self.needs_gradients, self.others = share.needs_gradients, share.others

    @property
    def places(self) -> list[slice]:
        """Of each term, which of its points are held here."""
        return self.layout.places()

    def mine(self, u: Tensor) -> Tensor:
        """The part of a whole vector (R, ...) that belongs to the rows of this process."""
        return self.layout.mine(u)

    def whole(self, part: Tensor) -> Tensor:
        """The reverse of `mine`: (R, ...) from the parts (R_q, ...) of all processes."""
        gathered = self.processes.gather(part, self.layout.of_ranks)
        return self.layout.arranged(gathered)

    @cached_property
    def residual(self) -> Tensor:
        """r, stacked and scaled, shape (R,)."""
        return self.whole(self.share.residual)

    @cached_property
    def gradient(self) -> Tensor:
        """dL/dtheta, shape (P,)."""
        return self.processes.sum(self.share.gradient)[0]

    def curvature(self, v: Tensor) -> Tensor:
        """(J^T J + diag(w)) v: one exchange of P numbers."""
        (product,) = self.processes.sum(self.share.curvature(v))
        return product if self.ridge is None else product + self.ridge * v

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v, shape (R,) or (R, m)."""
        return self.whole(self.share @ v)

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (P,), for u (R,)."""
        return self.processes.sum(self.share.vjp(self.mine(u)))[0]

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """A whole vector (R, ...) term by term."""
        return u.split(self.layout.totals)

    def restrict(self, block: Block) -> Linearization:
        """The same with all columns of J zero but those of one block."""
        return ShardedLinearization(self.share.restrict(block), self.processes, self.layout)

    def rows(self, block: Block | None = None) -> Tensor:
        """J, shape (R, P), or its columns of one block: all rows of all processes."""
        return self.whole(self.share.rows(block))

    def sketched(self, rows: int, generator: Generator, hashes: int = 1) -> tuple[Tensor, Tensor]:
        """S J and S r for the same S as in one process, each adding up its own rows."""
        sketches = sketches_of(self.layout.totals, rows, generator, hashes)
        pairs = zip(sketches, self.layout.places(), strict=True)
        parts = self.share.sketched_by([sketch.at(place) for sketch, place in pairs])
        J, r = self.processes.sum(*parts)
        return J, r

    def gramian(self, block: Block | None = None) -> Tensor:
        """J^T J, shape (P, P), or the diagonal block of one block."""
        return self.processes.sum(self.share.gramian(block))[0]

    def gramian_diagonal(self) -> Tensor:
        """diag(J^T J), shape (P,)."""
        return self.processes.sum(self.share.gramian_diagonal())[0]

    def kernel(self) -> Tensor:
        """J J^T, shape (R, R): each process computes its rows of it, against everybody's of J."""
        like, columns = self.share.residual, sum(self.layout.of_ranks)
        mine = like.new_zeros(len(like), columns)  # the columns rank after rank
        for block in self.blocks:
            if self._all_factored(block):
                for rank, part in enumerate(mine.split(self.layout.of_ranks, dim=1)):
                    self._add_factored(block, rank, part)
            else:
                rows = self.share.rows(block)
                mine.addmm_(rows, self.processes.gather(rows, self.layout.of_ranks).T)
        return self.whole(self.layout.arranged(mine.T).T)

    def _all_factored(self, block: Block) -> bool:
        """Whether factors are cheaper than rows, for most of the processes."""
        vote = self.residual.new_tensor([float(self.share.factored_is_cheaper(block))])
        return float(self.processes.sum(vote)[0]) > self.processes.count / 2

    def _add_factored(self, block: Block, rank: int, out: Tensor) -> None:
        """out += J_q J_rank^T of one layer, (R_q, R_rank)."""
        columns = out.split(self.layout.sizes[rank], dim=1)
        for k, (term, cells) in enumerate(zip(self.terms, columns, strict=True)):
            own = term.blocks.get(block)
            if not isinstance(own, LayerJacobian):
                continue
            other = self._of_rank(own, rank)
            parts = cells.split(self.layout.sizes[self.layout.rank])
            for mine, cell in zip(self.terms, parts, strict=True):
                if isinstance(found := mine.blocks.get(block), LayerJacobian):
                    scale = mine.scale * self.terms[k].scale
                    cell.add_(found.kernel(other), alpha=scale)

    def _of_rank(self, own: LayerJacobian, rank: int) -> LayerJacobian:
        """The factors of a layer and a term that another process holds."""
        tensors = [own.inputs.z, own.inputs.unit, own.g]
        z, unit, g = self.processes.of_rank(tensors, rank)
        return LayerJacobian(own.layer, LayerInputs(z, unit), g)


def layout_of(share: Linearization, processes: Processes) -> Layout:
    """Which rows every process holds.

    Raises:
        RuntimeError: if the processes have read their closures in different ways.
    """
    processes.alike(structure(share), DIFFERENT)
    counts = torch.tensor([[len(t.residual) for t in share.terms]], device=processes.device)
    sizes = processes.gather(counts, [1] * processes.count).tolist()
    return Layout(sizes, processes.rank)


def structure(share: Linearization) -> str:
    """What all processes must have in common: terms, their blocks, and how these are known."""
    parts: list[str] = []
    for term in share.terms:
        places = [(b.slices, type(j).__name__) for b, j in term.blocks.items()]
        rest = [b.slices for b in term.rest.blocks] if term.rest is not None else []
        parts.append(f"{places} {rest}")
    return f"{parts} {share.data is None}"


DIFFERENT = (
    "their residuals depend on different parameters, or on the same ones in different ways. Every "
    "rank's closure returns the same terms, of some of the points"
)
