"""From the autograd graph to Jacobians: every residual's readers, sorted by layer and by leaf.

What a reader does with a trained tensor is exact (`capture.readers`), and which residual its rows
belong to is measured (`capture.rows`). A parameter behind any other node, or behind a row that
several residuals share, is left to autograd: products are exact, and nothing is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kfac_pinn.jacobian.assembly import LARGEST_LEAF, joined
from kfac_pinn.jacobian.blocks import (
    BlockJacobian,
    EntriesJacobian,
    LayerInputs,
    LayerJacobian,
    LeafJacobian,
    ManyPositions,
)
from kfac_pinn.jacobian.capture.readers import Factor, Product, Reader, shape_at, shape_of
from kfac_pinn.jacobian.capture.rows import Tagged
from kfac_pinn.jacobian.dense_rows import BroadcastJacobian, chain
from kfac_pinn.jacobian.layers import Block, Layer, Leaf
from kfac_pinn.jacobian.matrix_free import AutogradJacobian
from kfac_pinn.jacobian.partition import Pair, Partition
from kfac_pinn.jacobian.residual_graph import (
    ProgramMemory,
    ReadResidual,
    dense_rows,
    leaf_at,
    numel,
    positions,
)
from kfac_pinn.jacobian.sampled import Sampler
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.linalg import real
from kfac_pinn.linalg.memory import NUMBERS

__all__ = ["GraphAssembly"]


Entries = tuple[Tensor, Tensor, Tensor]


class GraphAssembly:
    """The Jacobians of several residuals of one closure, read off their graphs.

    Args:
        names: of the parameters, which are in the order of the flat vector.
        outputs: the residuals by their numbers, each of shape (N_k,) with its graph.
        memory: what earlier evaluations of the same program have found.

    Attributes:
        partition: of the parameters, to be set from all pairs of the closure.
    """

    partition: Partition

    def __init__(
        self, names: Mapping[Tensor, str], outputs: Mapping[int, Tensor], memory: ProgramMemory
    ) -> None:
        trained = {id(p): p for p in names}
        self.read = {k: ReadResidual(output, trained, memory, k) for k, output in outputs.items()}

    @property
    def pairs(self) -> list[Pair]:
        """Weights and the biases that go with them; those in the forward pass say how they lie."""
        products = [p for read in self.read.values() for p in self._products(read)]
        # First those with a bias, then the oldest: derivatives read the weight as well, transposed
        products.sort(key=lambda pair: (pair[1] is None, pair[0].node._sequence_nr()))
        return [Pair(p.weight, b, p.stored_transposed) for p, b in products if p.weight is not None]

    def term(self, k: int, name: str, value: Tensor) -> TermJacobian:
        """The Jacobian of residual k."""
        read = self.read[k]
        # No rows to be told apart: one entry of a weight may be a residual of its own
        if not read.graph.reads_points:
            return self._of_parameters(read, name, value)
        lost = self._lost(read)
        blocks: dict[Block, BlockJacobian] = {
            **self._layers(read, value, lost),
            **self._leaves(read, value, lost),
        }
        rest = AutogradJacobian(read.output, lost) if lost else None
        return TermJacobian(name, value, blocks, rest, self._sampler(read, lost))

    def _sampler(self, read: ReadResidual, lost: list[Block]) -> Sampler | None:
        """Kronecker factors of the layers that are left to autograd."""
        found: dict[Layer, list[Product]] = {}
        biased = set()
        for product, bias in self._products(read):
            layer = self.partition.layers.get(id(product.weight))
            if layer is not None and layer in lost:
                found.setdefault(layer, []).append(product)
                if bias is not None and bias is layer.bias:
                    biased.add(product)
        return Sampler(read.output, found, biased) if found else None

    def _products(self, read: ReadResidual) -> list[tuple[Product, Tensor | None]]:
        """Products with the trained bias that is added to them, if one is."""
        added = {
            read.graph.sum_at(reader.node): bias
            for reader in read.reached
            if isinstance(reader, Factor) and (bias := leaf_at(reader.edge)) is not None
        }
        found = []
        for reader in read.reached:
            if isinstance(reader, Product):
                bias = added.get(reader.bias_node)
                # Something that is added but has another shape is no bias of this layer
                fits = bias is not None and not reader.left and bias.shape == width_of(reader)
                found.append((reader, bias if fits else None))
        return found

    def alone(self) -> set[int]:
        """Biases that something else than the sum with a product reads as well."""
        found = set()
        for read in self.read.values():
            joint = {p.bias_node for p, bias in self._products(read) if bias is not None}
            for reader in read.reached:
                if not isinstance(reader, Factor) or read.graph.sum_at(reader.node) not in joint:
                    found |= set(read.graph.leaves_of(reader.edge))
        # A weight that is added somewhere is a layer's weight all the same
        return found - {
            id(p.weight)
            for read in self.read.values()
            for p in read.reached
            if isinstance(p, Product) and p.weight is not None
        }

    def _lost(self, read: ReadResidual) -> list[Block]:
        """Blocks with a reader that cannot be read, or too large for dense rows."""
        found: dict[Block, None] = {}
        joint = {p.bias_node: bias for p, bias in self._products(read) if bias is not None}
        for reader in read.reached:
            bias = joint.get(read.graph.sum_at(reader.node))
            if bias is not None and leaf_at(reader.edge) is bias and self._layered(bias):
                continue  # its rows are those of the product
            layered = isinstance(reader, Product) and id(reader.weight) in self.partition.layers
            for parameter in read.graph.leaves_of(reader.edge):
                block = self.partition.block(parameter)
                clear = read.owners[reader] is not None
                # One reader that is not exact spoils the whole block: J is a sum over readers
                if not clear or not (layered or self._fits(read, reader, block)):
                    found[block] = None
        return list(found)

    def _layered(self, bias: Tensor) -> bool:
        return isinstance(self.partition.block(id(bias)), Layer)

    def _fits(self, read: ReadResidual, reader: Reader, block: Block) -> bool:
        if isinstance(block, Layer):
            return isinstance(reader, Factor) and leaf_at(reader.edge) is block.bias
        width = numel(shape_at(reader.edge))
        # Its dense rows, N times the width of t, have to fit the memory
        return block.size <= LARGEST_LEAF and read.points * width <= NUMBERS

    def _layers(
        self, read: ReadResidual, value: Tensor, lost: list[Block]
    ) -> dict[Block, BlockJacobian]:
        grouped: dict[Layer, list[tuple[Product, Tensor | None]]] = {}
        for product, bias in self._products(read):
            layer = self.partition.layers.get(id(product.weight))
            if layer is not None and layer not in lost:
                grouped.setdefault(layer, []).append((product, bias))
        return {
            layer: self._layer_jacobian(read, layer, products, value)
            for layer, products in grouped.items()
        }

    def _layer_jacobian(
        self,
        read: ReadResidual,
        layer: Layer,
        products: list[tuple[Product, Tensor | None]],
        value: Tensor,
    ) -> LayerJacobian:
        """Every product of a weight is one more shared position, or several."""
        z, g, unit = [], [], []
        for product, bias in products:
            inside, outside = positions(read, product, value)
            if product.transposed != layer.transposed:
                # J_n^T = z g^T: a product with the transpose swaps the roles
                inside, outside = outside, inside
            # A derivative's product adds no bias
            e = float(bias is not None and bias is layer.bias)
            z.append(inside)
            g.append(outside)
            unit.append(value.new_full((len(inside),), e))
        inputs, outside = LayerInputs(joined(z), joined(unit)), joined(g)
        # A product reads S (d_in + d_out) numbers a point in factors, d_in d_out by rows: twice as
        # many pay for forming the rows, which must not take much of the memory
        many = len(outside) * (inputs.z.shape[2] + outside.shape[2]) > 2 * layer.size
        small = read.points * layer.size <= NUMBERS // 8
        return (ManyPositions if many and small else LayerJacobian)(layer, inputs, outside)

    def _leaves(
        self, read: ReadResidual, value: Tensor, lost: list[Block]
    ) -> dict[Block, BlockJacobian]:
        broadcasts = []
        wanted: dict[Leaf, None] = {}
        for reader in read.reached:
            blocks = [self.partition.block(p) for p in read.graph.leaves_of(reader.edge)]
            mine = [b for b in blocks if isinstance(b, Leaf) and b not in lost]
            if mine:
                broadcasts.append(
                    BroadcastJacobian(place_of(reader), dense_rows(read, reader, value))
                )
                wanted.update(dict.fromkeys(mine))
        leaves = list(wanted)
        found = chain(broadcasts, [leaf.parameter for leaf in leaves], read.points)
        return {
            leaf: LeafJacobian(leaf, real(rows).reshape(read.points, -1))
            for leaf, rows in zip(leaves, found, strict=True)
            if rows is not None
        }

    def _of_parameters(self, read: ReadResidual, name: str, value: Tensor) -> TermJacobian:
        """A residual that reads no points: a penalty on weights, or a function of them."""
        found = read.graph.leaves[read.graph.root]
        leaves = [p for i, p in read.graph.trained.items() if i in found]
        by_block: dict[Block, list[Entries | None]] = {}
        for leaf, entries in zip(leaves, self._entries(read, leaves, value), strict=True):
            by_block.setdefault(self.partition.block(id(leaf)), []).append(entries)
        lost = [block for block, parts in by_block.items() if None in parts]
        blocks: dict[Block, BlockJacobian] = {
            block: joined_entries(block, [part for part in parts if part], read.points)
            for block, parts in by_block.items()
            if block not in lost
        }
        rest = AutogradJacobian(read.output, lost) if lost else None
        return TermJacobian(name, value, blocks, rest)

    def _entries(
        self, read: ReadResidual, leaves: list[Tensor], value: Tensor
    ) -> Iterator[Entries | None]:
        """Columns, owners and values of every leaf's entries, None where several own one."""
        edges = [get_gradient_edge(leaf) for leaf in leaves]
        tagged = Tagged(read.output, edges, read.memory.entries)
        for i, leaf in enumerate(leaves):
            # Each entry is a row of one number, told apart as points are; a complex one has two
            owners = None if leaf.is_complex() else tagged.owners(i, each_entry, i)
            if owners is None:
                yield None
                continue
            # Entries that reach no residual are no entries of J
            kept = (owners.index >= 0).nonzero()[:, 0]
            values = tagged.gradient(i, each_entry, owners)[kept, 0].to(value)
            yield kept + self.partition.places[id(leaf)].start, owners.index[kept], values


def joined_entries(block: Block, parts: list[Entries], points: int) -> EntriesJacobian:
    """Those of a layer's weight and bias together."""
    columns, owners, values = (torch.cat(part) for part in zip(*parts, strict=True))
    return EntriesJacobian(block, columns, owners, values, points)


def each_entry(gradient: Tensor) -> Tensor:
    """Every entry a row of its own."""
    return gradient.reshape(-1, 1)


def width_of(product: Product) -> tuple[int, ...]:
    """(d',) of a product with the matrix on the right."""
    return shape_of(product.node, 0)[-1:]


def place_of(reader: Reader) -> Tensor | GradientEdge:
    """t, the leaf itself if it is one."""
    leaf = leaf_at(reader.edge)
    return reader.edge if leaf is None else leaf
