"""What each kind of node does with a shared tensor: one line a kind, in two tables.

A node of another kind, or one whose saved tensors cannot be had, is `Unknown`: what is trained
behind it is left to autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = [
    "ELEMENTWISE",
    "PRODUCTS",
    "Factor",
    "Product",
    "Reader",
    "Unknown",
    "dtype_at",
    "name_of",
    "shape_at",
    "shape_of",
]

Node: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]


@dataclass(eq=False)
class Product:
    """y_m = z_m T, or T z_m where the shared matrix T stands on the left; m = 1, ..., M.

    Attributes:
        node, edge: of y and of T.
        z: shape (M, d).
        rows: brings a gradient at y to the shape (M, d').
        left: where T stands.
        weight: the trained matrix that T is, or is the transpose of; None if it is computed.
        transposed: whether the weight is stored as (d, d') of this product, not as (d', d).
        flips: how often the weight was transposed on the way.
        bias_node: the node that adds the bias, if one does.
    """

    node: Node
    edge: GradientEdge
    z: Tensor
    rows: Callable[[Tensor], Tensor]
    left: bool = False
    weight: Tensor | None = None
    transposed: bool = False
    flips: int = 0
    bias_node: Node | None = None

    @property
    def stored_transposed(self) -> bool:
        """Whether the layer's weight is stored as (d_in, d_out).

        A weight that was transposed twice is that of a derivative: F.linear transposes it once, the
        derivative with respect to the input once more, and swaps the roles of z and g.
        """
        return self.transposed if self.flips < 2 else not self.transposed

    def find_weight(self, leaf: Tensor) -> None:
        """Look through views, copies and casts: send numbered entries back to the leaf."""
        if leaf.is_complex():
            return  # the matrix is one of its parts
        shape = shape_at(self.edge)
        numbers = torch.arange(1.0, 1.0 + leaf.numel(), device=leaf.device, dtype=torch.float64)
        # Beyond 2^24 float32 no longer tells whole numbers apart
        if leaf.numel() != shape[-2] * shape[-1] or leaf.ndim != 2 or leaf.numel() >= 2**24:
            return
        copies = 1
        for length in shape[:-2]:
            copies *= length
        # Entries carry their numbers: what arrives is the leaf's order, whatever lies between
        sent = numbers.to(dtype_at(self.edge)).view(shape[-2:]).expand(shape)
        (found,) = torch.autograd.grad(self.edge, leaf, sent, retain_graph=True, allow_unused=True)
        if found is None:
            return
        for flipped in (False, True):
            order = numbers.view(shape[-2:])
            # A batch of the same matrix sends each number as often as it is copied
            order = copies * (order.T if flipped else order)
            if order.shape == leaf.shape and torch.equal(found.double(), order):
                self.weight, self.transposed = leaf, flipped == self.left
                return


@dataclass(eq=False)
class Factor:
    """y = ... + c * t, entry by entry, t broadcast.

    Attributes:
        node, edge: of y and of t.
        c: broadcastable to y's shape.
        shape: of t, with ones where it is broadcast, as many dimensions as y.
        entrywise: whether every entry of y has an owner of its own.
    """

    node: Node
    edge: GradientEdge
    c: Tensor | float
    shape: Shape
    entrywise: bool = False


@dataclass(eq=False)
class Unknown:
    """A node that does something else with t."""

    node: Node
    edge: GradientEdge


Reader: TypeAlias = Product | Factor | Unknown


def name_of(node: Node) -> str:
    """AddmmBackward0 -> Addmm."""
    return type(node).__name__.split("Backward")[0]


def shape_of(node: Node, output: int) -> Shape:
    """Of one of a node's outputs."""
    return tuple(int(length) for length in node._input_metadata[output].shape)


def shape_at(edge: GradientEdge) -> Shape:
    """Of the tensor at an edge."""
    return shape_of(edge.node, edge.output_nr)


def dtype_at(edge: GradientEdge) -> torch.dtype:
    """Of the tensor at an edge."""
    return edge.node._input_metadata[edge.output_nr].dtype


def saved(node: Node, name: str) -> Tensor:
    """A tensor that a node has kept for its backward pass."""
    # These names are torch's own, not promised to stay: what is missing makes the node `Unknown`
    value = getattr(node, f"_saved_{name}")
    if not isinstance(value, Tensor):
        raise AttributeError(name)
    return value.as_subclass(Tensor).detach()


def matrix_product(node: Node, edge: GradientEdge, left: bool, other: Tensor) -> Product:
    """y = Z T or T Z, of matrices or of batches of them."""
    if not left:
        return Product(node, edge, other.flatten(0, -2), lambda g: g.flatten(0, -2))
    z = other.mT.flatten(0, -2)
    return Product(node, edge, z, lambda g: g.mT.flatten(0, -2), left=True)


def mm(node: Node, slot: int, edge: GradientEdge) -> Product:
    """Of two matrices, self and mat2, or of batches of them."""
    return matrix_product(node, edge, slot == 0, saved(node, "self" if slot else "mat2"))


def addmm(names: tuple[str, str]) -> Callable[..., Reader]:
    """beta self + alpha mat1 mat2."""

    def read(node: Node, slot: int, edge: GradientEdge) -> Reader:
        if slot == 0:
            return factor(node, edge, float(node._saved_beta))
        other = saved(node, names[0] if slot == 2 else names[1])
        alpha = float(node._saved_alpha)
        return matrix_product(node, edge, slot == 1, other if alpha == 1 else alpha * other)

    return read


def mv(node: Node, slot: int, edge: GradientEdge) -> Product:
    """Of self and vec: one row, or rows that meet a vector."""
    if slot == 0:
        return Product(node, edge, saved(node, "vec")[None], lambda g: g[None], left=True)
    return Product(node, edge, saved(node, "self"), lambda g: g[:, None])


def dot(second: str) -> Callable[..., Product]:
    """Of self and a second vector: one row that meets a vector."""

    def read(node: Node, slot: int, edge: GradientEdge) -> Product:
        other = saved(node, "self" if slot else second)
        return Product(node, edge, other[None], lambda g: g.reshape(1, 1))

    return read


def linear(node: Node, slot: int, edge: GradientEdge) -> Reader:
    """F.linear, on devices where it is one operation."""
    if slot == 0:
        raise AttributeError("a shared input")
    if slot == 2:
        return factor(node, edge, 1.0)
    z = saved(node, "input").flatten(0, -2)
    return Product(node, edge, z, lambda g: g.flatten(0, -2), left=True)


def convolution(node: Node, slot: int, edge: GradientEdge) -> Reader:
    """A convolution: a product on patches, each pixel a row."""
    shape = shape_of(node, 0)
    if node._saved_transposed or node._saved_groups != 1 or slot == 0 or len(shape) > 4:
        raise AttributeError("another kind of convolution")
    if slot == 2:
        return Factor(node, edge, 1.0, (1, shape[1], *[1] * (len(shape) - 2)))
    images, kernel = saved(node, "input"), tuple(saved(node, "weight").shape[2:])
    options = [node._saved_dilation, node._saved_padding, node._saved_stride]
    geometry = [(0 if i == 1 else 1, *o)[-2:] for i, o in enumerate(map(tuple, options))]
    if images.ndim == 3:
        images, kernel = images[:, :, None], (1, *kernel)
    # Patches by torch's own function, in the order in which a kernel is stored
    z = F.unfold(images, kernel, *geometry).transpose(1, 2).flatten(0, 1)
    return Product(node, edge, z, pixels_to_rows, left=True)


def pixels_to_rows(gradient: Tensor) -> Tensor:
    """(N, d', *pixels) -> (M, d')."""
    return gradient.flatten(2).transpose(1, 2).flatten(0, 1)


def factor(node: Node, edge: GradientEdge, c: Tensor | float) -> Factor:
    """t broadcast from the left, as usual."""
    shape, out = shape_at(edge), shape_of(node, 0)
    return Factor(node, edge, c, (*[1] * (len(out) - len(shape)), *shape))


def add(node: Node, slot: int, edge: GradientEdge) -> Factor:
    """self + alpha other."""
    return factor(node, edge, float(node._saved_alpha) if slot else 1.0)


def sub(node: Node, slot: int, edge: GradientEdge) -> Factor:
    """self - alpha other."""
    return factor(node, edge, -float(node._saved_alpha) if slot else 1.0)


def mul(node: Node, slot: int, edge: GradientEdge) -> Factor:
    """self * other."""
    return factor(node, edge, saved(node, "self" if slot else "other"))


def div(node: Node, slot: int, edge: GradientEdge) -> Factor:
    """self / other."""
    other = saved(node, "other")
    if slot == 0:
        return factor(node, edge, 1 / other)
    # Its slope at this t: that is all that J asks for
    return factor(node, edge, -saved(node, "self") / other.square())


def expand(node: Node, slot: int, edge: GradientEdge) -> Factor:
    """One copy a point."""
    return factor(node, edge, 1.0)


def shift(node: Node, slot: int, edge: GradientEdge) -> Factor:
    """A bias added to the value of a jet, the first of its stacked coefficients (S, ...)."""
    out = shape_of(node, 0)
    first = torch.zeros(out[0], *[1] * (len(out) - 1), dtype=dtype_at(edge))
    first[0] = 1
    return factor(node, edge, first.to(node._input_metadata[0].device))


PRODUCTS: dict[str, Callable[[Node, int, GradientEdge], Reader]] = {
    "Mm": mm,
    "Bmm": mm,
    "Addmm": addmm(("mat1", "mat2")),
    "Baddbmm": addmm(("batch1", "batch2")),
    "Mv": mv,
    "Dot": dot("tensor"),
    "Vdot": dot("other"),
    "Linear": linear,
    "Convolution": convolution,
}

ELEMENTWISE: dict[str, Callable[[Node, int, GradientEdge], Reader]] = {
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Expand": expand,
    "Shift": shift,
}
