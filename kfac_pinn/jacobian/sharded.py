"""A Jacobian whose rows are shared out: among processes, and among micro-batches of a process.

Shard s holds the rows J_s of its points, scaled by 1 / sqrt(N_k) with N_k the number of points of
*all* shards, so that J = [J_0; J_1; ...] is that of one process with all points in one batch:

    J^T u = sum_s J_s^T u_s,      J^T J = sum_s J_s^T J_s,      L = sum_s L_s,      J v = [J_s v]_s.

Sums are reduced. Vectors of R numbers, one a residual, are whole in every process; rows of J, of P
numbers each, stay where they are, but for the kernel J J^T, which needs all pairs of them.

Shards go through `map`, which lets each go before the next is linearised: a loop's variable would
hold it, and `zip` and `enumerate` their last pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from typing import TypeAlias, TypeVar

import torch
from torch import Generator, Tensor

from kfac_pinn.jacobian.blocks import LayerInputs, LayerJacobian
from kfac_pinn.jacobian.layers import Block
from kfac_pinn.jacobian.linearization import Linearization, sketches_of
from kfac_pinn.processes import Group

__all__ = ["Layout", "ShardedLinearization", "Shards"]

T = TypeVar("T")

Shards: TypeAlias = Callable[
    [], Iterator[Linearization]
]  # those of this process, one after another


@dataclass(frozen=True)
class Layout:
    """Where rows stand in a whole vector (R,): term after term, in a term shard after shard.

    Attributes:
        sizes: of every shard, its number of rows of every term.
        counts: of every process, its number of shards.
        rank: of this process.
    """

    sizes: list[list[int]]
    counts: list[int]
    rank: int

    @property
    def totals(self) -> list[int]:
        """N_k."""
        return [sum(column) for column in zip(*self.sizes, strict=True)]

    @property
    def rows(self) -> list[int]:
        """Of every shard."""
        return [sum(sizes) for sizes in self.sizes]

    @property
    def of_ranks(self) -> list[int]:
        """The rows of every process."""
        parts = torch.tensor(self.rows).split(self.counts)
        return [int(part.sum()) for part in parts]

    @property
    def own(self) -> range:
        """The shards of this process."""
        start = sum(self.counts[: self.rank])
        return range(start, start + self.counts[self.rank])

    def places(self, shard: int) -> list[slice]:
        """The rows of a shard, within each term."""
        starts = [sum(sizes[k] for sizes in self.sizes[:shard]) for k in range(len(self.totals))]
        pairs = zip(starts, self.sizes[shard], strict=True)
        return [slice(start, start + size) for start, size in pairs]

    def of(self, shard: int, u: Tensor) -> Tensor:
        """The part of a whole vector (R, ...) that belongs to a shard."""
        parts = zip(u.split(self.totals), self.places(shard), strict=True)
        return torch.cat([part[place] for part, place in parts])

    def arranged(self, gathered: Tensor) -> Tensor:
        """A whole vector (R, ...) from one that has shard after shard."""
        parts = zip(gathered.split(self.rows), self.sizes, strict=True)
        pieces = [part.split(sizes) for part, sizes in parts]
        return torch.cat([piece for term in zip(*pieces, strict=True) for piece in term])


class ShardedLinearization(Linearization):
    """r and J of all shards, of which this process has some.

    Args:
        shards: r_s, J_s and L_s of this process, scaled by the points of all.
        processes: who has the others.
        layout: of the rows; None: it is asked for, and what is summed is summed.
    """

    def __init__(self, shards: Shards, processes: Group, layout: Layout | None = None) -> None:
        self.shards, self.processes = shards, processes
        with processes.together():
            seen = Totals(shards)
        first = seen.first
        super().__init__(first.parameters, first.terms, 0.0)
        self.layout = layout or layout_of(seen, processes)
        self.needs_gradients, self.others = first.needs_gradients, first.others
        self.changes_gradients = first.changes_gradients
        self.residual = self.whole(torch.cat(seen.residuals))
        known = [data for data in seen.data if data is not None]
        self.data = processes.gather(torch.cat(known)) if known else None
        own = [seen.loss, float(seen.linear_term is not None)]
        numbers = torch.tensor(own, dtype=torch.float64, device=self.residual.device)
        self.loss, linear = processes.sum(numbers)[0].tolist()
        (self.gradient,) = processes.sum(seen.gradient)
        if linear:
            zero = torch.zeros_like(seen.gradient)
            part = zero if seen.linear_term is None else seen.linear_term
            (self.linear_term,) = processes.sum(part)

    @property
    def totals(self) -> list[int]:
        """The number of points of each term, wherever they are held."""
        return self.layout.totals

    def parts(self) -> Iterator[Linearization]:
        """The shards of this process, one after another, with their places in the whole."""
        return map(self._placed, self.layout.own, self.shards())

    def _placed(self, number: int, shard: Linearization) -> Linearization:
        shard.totals, shard.places = self.layout.totals, self.layout.places(number)
        return shard

    def _each(self, of: Callable[[Linearization], T]) -> list[T]:
        """Of all shards of this process."""
        return list(map(of, self.parts()))

    def mine(self, u: Tensor) -> Tensor:
        """The part of a whole vector (R, ...) that belongs to the rows of this process."""
        return torch.cat([self.layout.of(shard, u) for shard in self.layout.own])

    def whole(self, part: Tensor) -> Tensor:
        """The reverse of `mine`: (R, ...) from the parts (R_q, ...) of all processes."""
        return self.layout.arranged(self.processes.gather(part, self.layout.of_ranks))

    def _there(self, part: Linearization, block: Block | None) -> Block | None:
        """A block of this one in a part, which may have been linearised anew."""
        return None if block is None else part.blocks[self.blocks.index(block)]

    def curvature(self, v: Tensor) -> Tensor:
        """(J^T J + diag(w)) v: one exchange of P numbers."""
        product = self._sum(lambda part: part.curvature(v))
        return product if self.ridge is None else product + self.ridge * v

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v, shape (R,) or (R, m)."""
        return self.whole(torch.cat(self._each(lambda part: part @ v)))

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u, shape (P,), for u (R,)."""
        own = iter(self.layout.own)
        return self._sum(lambda part: part.vjp(self.layout.of(next(own), u)))

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """A whole vector (R, ...) term by term."""
        return u.split(self.layout.totals)

    def restrict(self, block: Block) -> Linearization:
        """The same with all columns of J zero but those of one block."""
        number = self.blocks.index(block)
        restricted = lambda shard: shard.restrict(shard.blocks[number])  # noqa: E731
        return ShardedLinearization(
            lambda: map(restricted, self.shards()), self.processes, self.layout
        )

    def rows(self, block: Block | None = None) -> Tensor:
        """J, shape (R, P), or its columns of one block: all rows of all processes."""
        return self.whole(torch.cat(self._each(lambda part: part.rows(self._there(part, block)))))

    def batches(
        self, size: int | None = None, block: Block | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (rows of J, entries of r) of this process, in the order of `mine`."""
        of = lambda part: part.batches(size, self._there(part, block))  # noqa: E731
        return chain.from_iterable(map(of, self.parts()))

    def sketched(self, rows: int, generator: Generator, hashes: int = 1) -> tuple[Tensor, Tensor]:
        """S J and S r for the same S as in one process, each shard adding up its own rows."""
        sketches = sketches_of(self.layout.totals, rows, generator, hashes)

        def of(part: Linearization) -> tuple[Tensor, Tensor]:
            pairs = zip(sketches, part.places, strict=True)
            return part.sketched_by([sketch.at(place) for sketch, place in pairs])

        J, r = reduce(added, map(of, self.parts()))
        J, r = self.processes.sum(J, r)
        return J, r

    def gramian(self, block: Block | None = None) -> Tensor:
        """J^T J, shape (P, P), or the diagonal block of one block."""
        return self._sum(lambda part: part.gramian(self._there(part, block)))

    def gramian_diagonal(self) -> Tensor:
        """diag(J^T J), shape (P,)."""
        return self._sum(lambda part: part.gramian_diagonal())

    def kernel(self) -> Tensor:
        """J J^T, shape (R, R): each process computes its rows of it, against everybody's of J."""
        one_each = all(count == 1 for count in self.layout.counts)
        mine = self._kernel_by_layers() if one_each else self._kernel_by_rows()
        return self.whole(self.layout.arranged(mine.T).T)  # the columns are shard after shard

    def _kernel_by_rows(self) -> Tensor:
        """J_q J^T, shape (R_q, R): a shard's rows of J in memory at once, J_q from its factors."""
        columns = []
        for rank, count in enumerate(self.layout.counts):
            here = self.parts() if rank == self.processes.rank else None
            for _ in range(count):
                like = self.residual.new_zeros(0) if here is None else next(here).rows()
                (rows,) = self.processes.of_rank([like], rank)
                columns.append(torch.cat(self._each(partial(times, rows.T))))
        return torch.cat(columns, dim=1)

    def _kernel_by_layers(self) -> Tensor:
        """The same with one shard a process, from factors where they are cheaper than rows."""
        (share,) = self.parts()
        mine = share.residual.new_zeros(len(share.residual), len(self.residual))
        for block in share.blocks:
            if self._all_factored(share, block):
                for rank, part in enumerate(mine.split(self.layout.rows, dim=1)):
                    self._add_factored(share, block, rank, part)
            else:
                rows = share.rows(block)
                mine.addmm_(rows, self.processes.gather(rows, self.layout.rows).T)
        return mine

    def _all_factored(self, share: Linearization, block: Block) -> bool:
        """Whether factors are cheaper than rows, for most of the processes."""
        vote = self.residual.new_tensor([float(share.factored_is_cheaper(block))])
        return float(self.processes.sum(vote)[0]) > self.processes.count / 2

    def _add_factored(self, share: Linearization, block: Block, rank: int, out: Tensor) -> None:
        """out += J_q J_rank^T of one layer, (R_q, R_rank)."""
        columns = out.split(self.layout.sizes[rank], dim=1)
        for term, cells in zip(share.terms, columns, strict=True):
            if not isinstance(own := term.blocks.get(block), LayerJacobian):
                continue
            z, unit, g = self.processes.of_rank([own.inputs.z, own.inputs.unit, own.g], rank)
            other = LayerJacobian(own.layer, LayerInputs(z, unit), g)
            parts = cells.split(self.layout.sizes[self.processes.rank])
            for mine, cell in zip(share.terms, parts, strict=True):
                if isinstance(found := mine.blocks.get(block), LayerJacobian):
                    cell.add_(found.kernel(other), alpha=mine.scale * term.scale)

    def _sum(self, of: Callable[[Linearization], Tensor]) -> Tensor:
        """Over all shards."""
        return self.processes.sum(reduce(torch.add, map(of, self.parts())))[0]


class Totals:
    """What one look at each shard of a process finds: nothing of J is kept.

    Args:
        shards: of this process.
    """

    def __init__(self, shards: Shards) -> None:
        self.residuals: list[Tensor] = []
        self.sizes: list[list[int]] = []
        self.structures: list[str] = []
        self.data: list[Tensor | None] = []
        self.loss = 0.0
        self.linear_term: Tensor | None = None
        self.gradient: Tensor
        self.first: Linearization
        for _ in map(self._add, shards()):
            pass

    def _add(self, shard: Linearization) -> None:
        self.residuals.append(shard.residual)
        self.sizes.append([len(t.residual) for t in shard.terms])
        self.structures.append(structure(shard))
        self.data.append(None if shard.data is None else shard.data.to(shard.residual.device))
        self.loss += shard.loss
        gradient = shard.gradient
        # The sum is what is read: P numbers less of each shard that is kept
        vars(shard).pop("gradient", None)
        if len(self.residuals) == 1:
            self.first, self.gradient = shard.outline(), gradient
            self.linear_term = shard.linear_term
            return
        self.gradient = self.gradient + gradient
        if shard.linear_term is not None:
            known = self.linear_term
            self.linear_term = shard.linear_term + (0 if known is None else known)


def times(v: Tensor, part: Linearization) -> Tensor:
    """J_s v."""
    return part @ v


def added(sums: tuple[Tensor, Tensor], parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One by one."""
    return sums[0] + parts[0], sums[1] + parts[1]


def layout_of(seen: Totals, processes: Group) -> Layout:
    """Which rows every process holds.

    Raises:
        RuntimeError: if the closures were read in different ways.
    """
    differ = [b for b, found in enumerate(seen.structures) if found != seen.structures[0]]
    with processes.together():
        if differ:
            raise RuntimeError(f"batches 0 and {differ[0]} differ: {DIFFERENT}")
    processes.alike(seen.structures[0], DIFFERENT)
    own = torch.tensor(seen.sizes, device=seen.residuals[0].device)
    counts = processes.gather(own.new_tensor([len(own)]), [1] * processes.count)
    return Layout(processes.gather(own).tolist(), counts.tolist(), processes.rank)


def structure(share: Linearization) -> str:
    """What all shards must have in common: terms, their blocks, and how these are known."""
    parts: list[str] = []
    for term in share.terms:
        places = [(b.slices, type(j).__name__) for b, j in term.blocks.items()]
        rest = [b.slices for b in term.rest.blocks] if term.rest is not None else []
        parts.append(f"{places} {rest}")
    return f"{parts} {share.data is None}"


DIFFERENT = (
    "their residuals depend on different parameters, or on the same ones in different ways. Every "
    "closure returns the same terms, of some of the points"
)
