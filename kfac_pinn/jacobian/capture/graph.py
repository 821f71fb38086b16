"""Where a residual's autograd graph reads trained tensors.

Every node of the graph, in the forward pass or in a first, second, ... backward pass that the
closure has differentiated through, is of one of three kinds:

    constant   nothing trained goes into it (points, data)
    shared     computed from trained tensors alone: W, W.T, W1 + B A, g v / ||v||, exp(a)
    point      everything else: its entries belong to points

With the *readers*, the point nodes with a shared tensor t among their inputs, the chain rule is

    d r_n / d t = sum over readers (d r_n / d y) (d y / d t),    y the reader's output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum, auto
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kfac_pinn.jacobian.capture.readers import (
    ELEMENTWISE,
    PRODUCTS,
    Product,
    Reader,
    Unknown,
    dtype_at,
    name_of,
    shape_at,
    shape_of,
)
from kfac_pinn.jacobian.capture.unsupported import forbid_half

__all__ = ["Graph"]

Node: TypeAlias = Any

SHAPING = {"View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias", "Transpose", "T"}
SHAPING |= {"Permute", "Clone", "ToCopy", "Expand"}


STATIC = {
    *ELEMENTWISE, "AccumulateGrad", "Cat", "Stack", "Sum", "Mean", "Neg", "Rsub", "Pow", "Where",
    "Exp", "Log", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Silu", "Gelu", "Relu", "Threshold",
    "Elu", "LeakyRelu", "Sqrt", "Rsqrt", "Reciprocal", "Abs", "Sgn", "Erf", "Sinh", "Cosh", "Mish",
    "Repeat", "Fill", "Zero", "Sign", "Atan", "LogSigmoid", "Expm1", "Log1p",
}  # fmt: skip
SLICING = {"Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Diagonal", "Narrow", "Chunk"}
PASSING = SHAPING | SLICING | set(ELEMENTWISE)
ROWWISE = {"Mm", "Addmm"}
COPYING = {"Unsqueeze", "Expand"}


class Kind(Enum):
    """What goes into a node."""

    CONSTANT = auto()
    SHARED = auto()
    POINT = auto()


class Graph:
    """The graph of one residual, and its readers.

    Args:
        output: the residual, with its graph.
        trained: the parameters, by their id.
        shared: numbers of nodes that count as shared although a constant enters them: the product
            of a trained matrix with a constant one, say.

    Attributes:
        nodes: inputs before outputs; a node's number is its place here.
        readers: in the order of the nodes.
        slot: which output of the last node the residual is.
        signature: equal for graphs of the same program.
    """

    def __init__(
        self, output: Tensor, trained: Mapping[int, Tensor], shared: Iterable[int] = ()
    ) -> None:
        self.trained, self.forced = trained, frozenset(shared)
        edge = get_gradient_edge(output)
        self.nodes, self.slot = inputs_first(edge.node), edge.output_nr
        self.number = {node: index for index, node in enumerate(self.nodes)}
        self.consumers = self._consumers()
        self.kind: dict[Node, Kind] = {}
        self.leaves: dict[Node, frozenset[int]] = {}
        for index, node in enumerate(self.nodes):
            self._classify(index, node)
        self.root = self.nodes[-1]
        self.readers = [reader for node in self.nodes for reader in self._readers(node)]

    @property
    def reads_points(self) -> bool:
        """Whether the residual is more than a function of trained tensors."""
        return self.kind[self.root] == Kind.POINT

    @property
    def signature(self) -> int:
        """A hash of the nodes, of their sizes, of what they slice and of what they read."""
        # By what decides which rows are read: values do not
        nodes = ((name_of(n), shape_of(n, 0), slicing(n), self._sources(n)) for n in self.nodes)
        return hash((self.slot, *nodes))

    def _sources(self, node: Node) -> tuple[tuple[int, int], ...]:
        """Numbers of the nodes that it reads, and which of their outputs."""
        # Two columns of one residual may differ in nothing else
        return tuple((self.number.get(source, -1), slot) for source, slot in node.next_functions)

    @cached_property
    def is_static(self) -> bool:
        """Whether the signature says which rows a residual reads: no index, no data decides it."""
        return all(self._keeps_rows(node) for node in self.nodes if self.kind[node] == Kind.POINT)

    def _keeps_rows(self, node: Node) -> bool:
        name = name_of(node)
        if name in PRODUCTS:
            points = [
                slot
                for slot, (source, _) in enumerate(node.next_functions)
                if source is not None and self.kind[source] != Kind.SHARED
            ]
            left = [slot for slot, (source, _) in enumerate(node.next_functions) if source is None]
            return name in ROWWISE and len(points) <= 1 and not (points and left)
        return name in STATIC or name in SHAPING or name in SLICING

    def leaves_of(self, edge: GradientEdge) -> frozenset[int]:
        """Ids of the trained tensors that a shared one is computed from."""
        return self.leaves[edge.node]

    def may_be_shared(self, reader: Reader) -> bool:
        """Whether a product of trained and constant tensors may be a matrix itself.

        That is W0 @ A or a hypernetwork's layer at one input, but not the layer of a network whose
        rows, many points, are mixed later on. Copies that several residuals read are shared, too.
        """
        if not isinstance(reader, Product):
            return name_of(reader.node) == "Expand"
        if name_of(reader.node) == "Expand" or not self._reads_no_points(reader.node):
            return False
        return len(reader.z) == 1 or self._feeds_products(reader.node)

    def sum_at(self, node: Node) -> Node:
        """The sum that the copies of a vector, one a point, go into; else the node itself."""
        users = self.consumers[node]
        copied = name_of(node) == "Expand" and len(users) == 1
        return users[0] if copied and name_of(users[0]) == "Add" else node

    def _reads_no_points(self, node: Node) -> bool:
        sources = [source for source, _ in node.next_functions if source is not None]
        return all(self.kind[source] == Kind.SHARED for source in sources)

    def _consumers(self) -> dict[Node, list[Node]]:
        found: dict[Node, list[Node]] = {node: [] for node in self.nodes}
        for node in self.nodes:
            for source, _ in node.next_functions:
                if source is not None:
                    found[source].append(node)
        return found

    def _classify(self, index: int, node: Node) -> None:
        sources = [source for source, _ in node.next_functions if source is not None]
        kinds = Counter(self.kind[source] for source in sources)
        # Only the node that accumulates into a leaf has one
        if hasattr(node, "variable"):
            mine = id(node.variable) in self.trained
            self.kind[node] = Kind.SHARED if mine else Kind.CONSTANT
            self.leaves[node] = frozenset([id(node.variable)]) if mine else frozenset()
            return
        self.leaves[node] = frozenset().union(*(self.leaves[source] for source in sources))
        if kinds[Kind.POINT]:
            self.kind[node] = Kind.POINT
        elif not kinds[Kind.SHARED]:
            self.kind[node] = Kind.CONSTANT
        elif index in self.forced or self._is_shared(node, kinds):
            self.kind[node] = Kind.SHARED
        else:
            self.kind[node] = Kind.POINT

    def _is_shared(self, node: Node, kinds: Counter[Kind]) -> bool:
        """Whether a node with shared inputs, and no point ones, computes a shared tensor."""
        # A constant may be the points: what it is was not said, so that rows decide (`forced`)
        if kinds[Kind.CONSTANT]:
            return False
        name, sizes = name_of(node), [numel(shape_of(*edge)) for edge in edges_of(node)]
        if name == "Expand" and numel(shape_of(node, 0)) > sizes[0]:
            return self._feeds_products(node)
        # Nothing else goes in: a function of trained tensors alone
        if len(sizes) == len(node.next_functions):
            return True
        # A number, or data that does not enlarge what is shared: no axis of points comes in
        return name in ELEMENTWISE and numel(shape_of(node, 0)) == max(sizes)

    def _feeds_products(self, node: Node) -> bool:
        """Whether a matrix is read by matrix products only, after sums and changes of shape."""
        users = self.consumers[node]
        return bool(users) and all(
            name_of(user) in PRODUCTS or (name_of(user) in PASSING and self._feeds_products(user))
            for user in users
        )

    def _readers(self, node: Node) -> list[Reader]:
        if self.kind[node] != Kind.POINT:
            return []
        return [
            self._reader(node, slot)
            for slot, (source, _) in enumerate(node.next_functions)
            if source is not None and self.kind[source] == Kind.SHARED
        ]

    def _reader(self, node: Node, slot: int) -> Reader:
        edge = GradientEdge(*node.next_functions[slot])
        if name_of(node) in PRODUCTS:
            forbid_half(dtype_at(GradientEdge(node, 0)))
        # A matrix of two trained parts, real and imaginary, has no factors of its own
        if dtype_at(edge).is_complex:
            return Unknown(node, edge)
        table = PRODUCTS if name_of(node) in PRODUCTS else ELEMENTWISE
        try:
            found = table[name_of(node)](node, slot, edge)
        # An unknown kind, or saved tensors that are gone: exact all the same, by autograd
        except (KeyError, AttributeError, RuntimeError):
            found = None
        if isinstance(found, Product):
            self._orient(found)
            self._follow_copies(found)
            found.bias_node = self._bias_node(found)
            if found.weight is None and numel(shape_at(edge)[:-2]) > 1:
                return Unknown(node, edge)  # a batch of different matrices
        return found or Unknown(node, edge)

    def _orient(self, product: Product) -> None:
        """Which leaf the matrix is, if it is one or the transpose of one."""
        node: Node = product.edge.node
        flips = 0
        while name_of(node) == "T":
            node, flips = node.next_functions[0][0], flips + 1
        if hasattr(node, "variable"):
            if node.variable.ndim == 2 or name_of(product.node) == "Convolution":
                product.weight, product.flips = node.variable, flips
                product.transposed = bool(flips % 2) == product.left
        elif name_of(node) in SHAPING and len(self.leaves[node]) == 1:
            product.find_weight(self.trained[next(iter(self.leaves[node]))])

    def _follow_copies(self, product: Product) -> None:
        """Rows that are computed once and copied to all points are read where they are copies.

        So does a jet's first layer with its directions, which are the same at all points.
        """
        # A bias that is added before would still be read once by all of them
        if product.left or name_of(product.node) != "Mm":
            return
        node, (rows, width) = product.node, shape_of(product.node, 0)
        index = torch.arange(rows, device=product.z.device)
        while len(users := self.consumers[node]) == 1 and name_of(users[0]) in COPYING:
            shape = shape_of(users[0], 0)
            if shape[-1] != width:
                return
            copies = name_of(users[0]) == "Expand"
            index = index.expand(shape[:-1]) if copies else index.reshape(shape[:-1])
            node = users[0]
        if index.numel() > rows:
            product.node, product.z = node, product.z[index.flatten()]
            product.rows = lambda gradient: gradient.flatten(0, -2)

    def _bias_node(self, product: Product) -> Node | None:
        """The node that adds a vector to the product and is the only one to read it."""
        if name_of(product.node) == "Addmm":
            return product.node
        node = product.node
        while len(self.consumers[node]) == 1:
            (node,) = self.consumers[node]
            if name_of(node) == "Add" and numel(shape_of(node, 0)) == numel(
                shape_of(product.node, 0)
            ):
                return node
            if name_of(node) not in {"View", "UnsafeView", "Squeeze", "Alias"}:
                break
        return None


def inputs_first(root: Node) -> list[Node]:
    """All nodes behind one, every node after the nodes that it reads."""
    # A stack, not recursion: graphs of derivatives are deeper than Python allows
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(source, False) for source, _ in node.next_functions if source is not None]
    return order


def slicing(node: Node) -> tuple[Any, ...]:
    """What a node that changes shapes has to say about how."""
    if name_of(node) not in SLICING | SHAPING | {"Cat", "Stack"}:
        return ()
    names = ("dim", "dim0", "dim1", "dims", "start", "end", "step", "index", "split_size")
    return tuple(getattr(node, f"_saved_{name}", None) for name in names)


def edges_of(node: Node) -> list[tuple[Node, int]]:
    """The inputs that are part of the graph."""
    return [(source, slot) for source, slot in node.next_functions if source is not None]


def numel(shape: tuple[int, ...]) -> int:
    """The number of entries."""
    total = 1
    for length in shape:
        total *= length
    return total
