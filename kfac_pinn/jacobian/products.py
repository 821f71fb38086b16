"""The nodes of an autograd graph that multiply a residual by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.jacobian.capture.graph import SHAPING, SLICING, edges_of, slicing
from kfac_pinn.jacobian.capture.readers import dtype_at, name_of, shape_of
from kfac_pinn.jacobian.squares import Edge, Head, Node

__all__ = [
    "INNER",
    "PRODUCTS",
    "SQUARED",
    "Factors",
    "base",
    "is_complex",
    "is_inner",
    "one_each",
    "twins",
    "unscaled",
]


@dataclass(frozen=True)
class Factors:
    """Where a node that multiplies keeps its two factors.

    Attributes:
        names: as it saves them.
        scale: what the product is multiplied by, as it is saved; empty: by nothing.
        first: the first factor's number among the node's inputs; what is before is added.
    """

    names: tuple[str, str]
    scale: str = ""
    first: int = 0

    def edges(self, node: Node) -> tuple[Edge, Edge] | None:
        """Theirs; None where one of them is constant."""
        edges = node.next_functions[self.first : self.first + 2]
        # A factor that is a number is no input of the node
        return None if len(edges) < 2 or any(source is None for source, _ in edges) else edges

    def values(self, node: Node) -> tuple[Tensor, Tensor]:
        """Both, with their graphs."""
        first, second = (getattr(node, f"_saved_{name}") for name in self.names)
        return first, second

    def times(self, node: Node) -> float:
        """The number that multiplies them."""
        return float(getattr(node, f"_saved_{self.scale}")) if self.scale else 1.0


def product(factors: Factors) -> Callable[[Node], Head | None]:
    """r * r, h * conj(h), w r * r."""

    def read(node: Node) -> Head | None:
        if (edges := factors.edges(node)) is None:
            return None
        r, other = factors.values(node)
        c = quotient(edges, (r, other), conjugate=is_complex(node))
        times = factors.times(node)
        return None if c is None else Head(node, r, lambda weight: weight * (times * c))

    return read


def inner(factors: Factors) -> Callable[[Node], Head | None]:
    """r . r, r.T @ r, h.mH @ h, r . (w r), and as many of them as a batch has rows."""

    def read(node: Node) -> Head | None:
        # A matrix r^T r has products of different residuals beside the diagonal
        if not is_inner(node) or (edges := factors.edges(node)) is None:
            return None
        (first, flipped), (second, flipped_too) = (behind(e, RESHAPED) for e in edges)
        # vdot conjugates the first itself
        conjugate = is_complex(node) and name_of(node) != "Vdot"
        r, other = factors.values(node)
        both = r, other.reshape(r.shape)
        c = quotient((first, second), both, conjugate ^ flipped ^ flipped_too, RESHAPED)
        times = factors.times(node)
        return (
            None if c is None else Head(node, r, lambda weight: one_each(weight, r) * (times * c))
        )

    return read


def is_inner(node: Node) -> bool:
    """Whether a product of vectors, or of a batch of them, is one number each."""
    shape = shape_of(node, 0)
    return math.prod(shape[-2:]) == 1


def one_each(weight: Tensor, r: Tensor) -> Tensor:
    """Weights of inner products, (B, 1, 1) or one number, for the vectors r, (B, 1, N) or (N,)."""
    return weight if weight.numel() > 1 else weight.reshape([1] * r.ndim)


def quotient(
    edges: Sequence[Edge],
    values: tuple[Tensor, Tensor],
    conjugate: bool,
    through: Collection[str] = (),
) -> Tensor | float | None:
    """c with b = c a, constant, for factors a and b of a product; None where there is none.

    Args:
        edges: of a and b.
        values: theirs.
        conjugate: whether b is the conjugate of a.
        through: names of what may lie between a vector and its factors.
    """
    (first, second), (a, b) = edges, values
    if alike(first, second, conjugate):
        return 1.0
    if a.is_complex() or b.is_complex():
        return None
    # The same residual computed twice: what is subtracted is in no node, so that values decide
    if twins(first, second) and torch.equal(a, b):
        return 1.0
    if alike(unscaled(first, through), unscaled(second, through)):
        # Where a is 0, so is the square, and its slope
        return torch.where(a == 0, 0.0, b / a).detach()
    return None


def unscaled(edge: Edge, through: Collection[str]) -> Edge:
    """The tensor that was multiplied by constants, or the vector that was reshaped as well."""
    while True:
        node, output = edge
        sources = edges_of(node)
        # c / r is no multiple of r
        multiple = name_of(node) == "Mul" or (
            name_of(node) in {"Div", "Neg"} and node.next_functions[0][0] is not None
        )
        # Entries of a matrix would change their order
        vector = name_of(node) in through and sum(n > 1 for n in shape_of(node, output)) < 2
        if len(sources) != 1 or not (multiple or vector):
            return edge
        edge = sources[0]


def twins(first: Edge, second: Edge) -> bool:
    """Whether two tensors were computed from the same leaves by the same operations."""
    seen: set[tuple[Edge, Edge]] = set()
    stack = [(first, second)]
    while stack:
        pair = a, b = stack.pop()
        if a == b or pair in seen:
            continue
        seen.add(pair)
        if None in (a[0], b[0]) or name_of(a[0]) != name_of(b[0]) or a[1] != b[1]:
            return False
        # Leaves that are not the same one have nothing behind them that could be
        sources = a[0].next_functions, b[0].next_functions
        if not sources[0] or len(sources[0]) != len(sources[1]):
            return False
        stack += zip(*sources, strict=True)
    return True


RESHAPED = SHAPING - {"Expand"}


def base(node: Node, output: int) -> Edge:
    """The tensor that was reshaped or transposed."""
    while name_of(node) in RESHAPED:
        node, output = node.next_functions[0]
    return node, output


def behind(edge: Edge, names: Collection[str] = ()) -> tuple[Edge, bool]:
    """The tensor behind nodes of these names, and whether it is conjugated on the way."""
    (node, output), conjugated = edge, False
    while name_of(node) == "Conj" or name_of(node) in names:
        conjugated ^= name_of(node) == "Conj"
        node, output = node.next_functions[0]
    return (node, output), conjugated


def is_complex(node: Node) -> bool:
    """Whether what a node computes is."""
    return dtype_at(GradientEdge(node, 0)).is_complex


def alike(first: Edge, second: Edge, conjugate: bool = False) -> bool:
    """Whether two tensors are the same one, the same slice of one, or conjugates of each other."""
    if first[0] is None or second[0] is None:
        return False
    (first, flipped), (second, flipped_too) = behind(first), behind(second)
    conjugate ^= flipped ^ flipped_too
    if first == second:
        return not conjugate
    names, cuts = zip(*((name_of(node), slicing(node)) for node, _ in (first, second)), strict=True)
    if names[0] not in SHAPING | SLICING or names[0] != names[1] or cuts[0] != cuts[1]:
        return False
    a, b = (node.next_functions[0] for node, _ in (first, second))
    return first[1] == second[1] and alike(a, b, conjugate=conjugate)


PRODUCTS = {
    "Mul": Factors(("self", "other")),
    "Addcmul": Factors(("tensor1", "tensor2"), "value", first=1),
}
INNER = {
    "Dot": Factors(("self", "tensor")),
    "Vdot": Factors(("self", "other")),
    "Mm": Factors(("self", "mat2")),
    "Bmm": Factors(("self", "mat2")),
    "Addmm": Factors(("mat1", "mat2"), "alpha", first=1),
    "Baddbmm": Factors(("batch1", "batch2"), "alpha", first=1),
}

SQUARED: dict[str, Callable[[Node], Head | None]] = {
    **{name: product(factors) for name, factors in PRODUCTS.items()},
    **{name: inner(factors) for name, factors in INNER.items()},
}
