"""The graph of one residual: what reads trained tensors in it, and whose rows those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.jacobian.capture.graph import Graph
from kfac_pinn.jacobian.capture.readers import Factor, Product, Reader, Unknown, shape_at, shape_of
from kfac_pinn.jacobian.capture.rows import Owners, Tagged, arrange

__all__ = ["ProgramMemory", "ReadResidual", "dense_rows", "leaf_at", "numel", "positions"]

ATTEMPTS = 8  # computations that all points share, one inside the other: more go to autograd


@dataclass
class GraphMemory:
    """What is known of one residual's graph.

    Attributes:
        shared: numbers of the nodes that count as shared.
        owners: of the readers' rows, by those numbers and by the reader's.
        entries: owners of the entries of each leaf, for a residual that reads no points.
    """

    shared: frozenset[int] = frozenset()
    owners: dict[frozenset[int], dict[int, Owners | None]] = field(default_factory=dict)
    entries: dict[int, Owners | None] = field(default_factory=dict)


@dataclass
class ProgramMemory:
    """What is known of a program from its earlier runs: a guess, which is compared.

    Attributes:
        levels: which source each residual's Jacobian came from.
        graphs: by their signature, the number of points, and that of the residual.
    """

    levels: list[int] = field(default_factory=list)
    graphs: dict[tuple[int, int, int], GraphMemory] = field(default_factory=dict)


class ReadResidual:
    """The readers of one residual's graph, with the owners of their rows.

    Args:
        output: r, shape (N,), with its graph.
        trained: the parameters, by their id.
        memory: what earlier evaluations of the same program have found.
        number: of the residual. Others that are computed alike may have other rows: a weight that
            is zero at some points hides whose those are.

    Attributes:
        graph: with its nodes classified such that rows have one owner, as far as possible.
        reached: the readers that a gradient reaches, with the number of their edge.
        owners: of those readers' rows; None where there are several or they cannot be read.
    """

    def __init__(
        self,
        output: Tensor,
        trained: Mapping[int, Tensor],
        memory: ProgramMemory,
        number: int,
    ) -> None:
        self.output, self.points = output, len(output)
        self.graph = Graph(output, trained)
        key = self.graph.signature, self.points, number
        self.memory = memory.graphs.setdefault(key, GraphMemory())
        # Each round counts one more node as shared, and what follows it
        for _ in range(ATTEMPTS):
            if self.memory.shared:
                self.graph = Graph(output, trained, self.memory.shared)
            self._attribute()
            if not self._share_more():
                break

    def rows_of(self, reader: Product | Factor) -> Any:
        """Brings a gradient at its node to the rows (M, d) that owners are known of."""
        return reader.rows if isinstance(reader, Product) else partial(rows_of_factor, reader)

    def _attribute(self) -> None:
        readers = self.graph.readers
        edges = [GradientEdge(reader.node, 0) for reader in readers]
        known = self.memory.owners.setdefault(self.memory.shared, {})
        # A static graph reads the same rows in every run: its owners need no second pass
        self.tagged = Tagged(self.output, edges, known, self.graph.is_static)
        pairs = enumerate(zip(readers, self.tagged.first, strict=True))
        self.reached = {reader: i for i, (reader, first) in pairs if first is not None}
        self.owners: dict[Reader, Owners | None] = {}
        for reader, i in self.reached.items():
            self.owners[reader] = self._owners(reader, i)

    def _owners(self, reader: Reader, i: int) -> Owners | None:
        if isinstance(reader, Unknown):
            return None
        found = self.tagged.owners(i, self.rows_of(reader), i)
        # Entries may have owners where rows have several: t is broadcast along a row
        if found is None and isinstance(reader, Factor) and not reader.entrywise:
            reader.entrywise = True
            found = self.tagged.owners(i, self.rows_of(reader), i)
        return found

    def _share_more(self) -> bool:
        """Count as shared what has rows of several owners though no point enters it."""
        mixed = [
            self.graph.number[reader.node]
            for reader, owners in self.owners.items()
            if owners is None and self.graph.may_be_shared(reader)
        ]
        if mixed:
            # The first alone: those behind it are mixed only through it, perhaps
            self.memory.shared |= {min(mixed)}
        return bool(mixed)


def leaf_at(edge: GradientEdge) -> Tensor | None:
    """The leaf that an edge leads to directly."""
    return getattr(edge.node, "variable", None)


def numel(shape: tuple[int, ...]) -> int:
    """The number of entries."""
    return int(torch.Size(shape).numel())


def spread(reader: Factor, gradient: Tensor) -> Tensor:
    """conj(c) times the gradient at y, of y's shape; its real part, as t is real."""
    c = reader.c.conj() if isinstance(reader.c, Tensor) else reader.c
    product = gradient * c
    shape = shape_of(reader.node, 0)
    return (product.real if product.is_complex() else product).expand(shape)


def leading(reader: Factor) -> int | None:
    """How many of y's first dimensions t is broadcast over, None if not just over those."""
    if reader.entrywise:
        return None
    shape = shape_of(reader.node, 0)
    pairs = list(zip(shape, reader.shape, strict=True))
    count = next((i for i, (_, mine) in enumerate(pairs) if mine != 1), len(pairs))
    plain = all(full == mine for full, mine in pairs[count:])
    return count if plain and (count == 0 or numel(shape[:count]) > 1) else None


def rows_of_factor(reader: Factor, gradient: Tensor) -> Tensor:
    """(M, d) where t, with d entries, is broadcast over M rows; else every entry is a row."""
    product, count = spread(reader, gradient), leading(reader)
    if count:
        return product.reshape(numel(product.shape[:count]), -1)
    return product.reshape(-1, 1)


def positions(read: ReadResidual, product: Product, like: Tensor) -> tuple[Tensor, Tensor]:
    """z (S, N, d) and g (S, N, d') of one product."""
    owners = read.owners[product]
    assert owners is not None
    g = read.tagged.gradient(read.reached[product], product.rows, owners).to(like)
    z, places = product.z.to(like), arrange(owners, read.points)
    if places is None:
        return z[None], g[None]
    kept = (places >= 0)[..., None]
    # Residuals with fewer rows than others get rows of zeros
    places = places.clamp_min(0)
    return torch.where(kept, z[places], 0), torch.where(kept, g[places], 0)


def dense_rows(read: ReadResidual, reader: Reader, like: Tensor) -> Any:
    """d r_n / d t of a slice of the points, shape (n, numel t), as a function of the slice."""
    if isinstance(reader, Product):
        z, g = positions(read, reader, like)
        left, right = (g, z) if reader.left else (z, g)
        return lambda points: torch.bmm(
            left[:, points].permute(1, 2, 0), right[:, points].transpose(0, 1)
        ).flatten(1)
    assert isinstance(reader, Factor)
    owners, rows = read.owners[reader], partial(rows_of_factor, reader)
    assert owners is not None
    g = read.tagged.gradient(read.reached[reader], rows, owners).to(like)
    kept = owners.index >= 0
    dense = like.new_zeros(read.points, numel(shape_at(reader.edge)))
    if leading(reader):
        # Added: a residual may read t on several rows
        dense.index_add_(0, owners.index[kept], g[kept])
    else:
        shape = shape_of(reader.node, 0)
        columns = torch.arange(dense.shape[1], device=dense.device).view(reader.shape)
        columns = columns.expand(shape).reshape(-1)
        dense.index_put_((owners.index[kept], columns[kept]), g[kept, 0], accumulate=True)
    return dense.__getitem__
