"""The nodes of an autograd graph that square a residual, or take a robust loss of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.jacobian.capture.graph import SHAPING, SLICING, edges_of, slicing
from kfac_pinn.jacobian.capture.readers import dtype_at, name_of, shape_of
from kfac_pinn.jacobian.losses import Rho

__all__ = ["HEADS", "Edge", "Head", "Node", "base", "exponent_of"]

Node: TypeAlias = Any
Edge: TypeAlias = tuple[Node, int]


@dataclass(frozen=True, eq=False)
class Head:
    """A node of the loss's graph that squares a residual, or takes rho of it.

    Attributes:
        node: of the square.
        residual: r, with its graph; of a complex one its two parts, in a last dimension.
        spread: brings weights of the node's output to r's shape.
        rho: None for a square.
        exact: whether the loss is linear in what the node computes, and that in the squares.
    """

    node: Node
    residual: Tensor
    spread: Callable[[Tensor], Tensor]
    rho: Rho | None = None
    exact: bool = True

    def __post_init__(self) -> None:
        # A graph keeps tensors of the closure's own class, but without that class's attributes.
        residual, spread = self.residual.as_subclass(Tensor), self.spread
        if residual.is_complex():  # |h|^2 = Re(h)^2 + Im(h)^2
            residual = torch.view_as_real(residual.resolve_conj())
            object.__setattr__(self, "spread", lambda weight: spread(weight)[..., None])
        object.__setattr__(self, "residual", residual)


def squared(node: Node) -> Head | None:
    """r ** 2, and r ** 4 as the square of r ** 2; the square of a norm is that of its vector."""
    exponent, value = exponent_of(node), node._saved_self
    vector = name_of(value.grad_fn) == "LinalgVectorNorm"
    if exponent == 2 and vector and (head := norm(value.grad_fn, node)) is not None:
        return head
    if exponent == 2 and name_of(value.grad_fn) == "Abs" and value.grad_fn._saved_self.is_complex():
        return Head(node, value.grad_fn._saved_self, same)
    if exponent > 0 and exponent % 2 == 0 and not value.is_complex():
        return Head(node, value if exponent == 2 else value ** (exponent / 2), same)
    return None


def exponent_of(node: Node) -> float:
    """A number, or nan for one exponent an entry."""
    exponent = node._saved_exponent
    return math.nan if isinstance(exponent, Tensor) and exponent.numel() > 1 else float(exponent)


def norm(node: Node, square: Node) -> Head | None:
    """||r||^2 along some dimensions or all."""
    if float(node._saved_ord) != 2:
        return None
    value, dims, kept = node._saved_self, node._saved_dim, node._saved_keepdim

    def spread(weight: Tensor) -> Tensor:
        if not kept and dims is not None:
            for dim in sorted(d % value.ndim for d in map(signed, dims)):
                weight = weight.unsqueeze(dim)
        return weight

    return Head(square, value, spread)


def length(node: Node) -> Head | None:
    """||r||, the root of its square: the slope there is 1 / (2 ||r||)."""
    if (head := norm(node, node)) is None:
        return None
    twice = 2 * node._saved_result.detach()
    return replace(head, spread=lambda weight: head.spread(weight / twice), exact=False)


def signed(dim: int) -> int:
    """Dimensions are saved as unsigned numbers."""
    return dim - 2**64 if dim >= 2**63 else dim


def product(node: Node) -> Head | None:
    """r * r, h * conj(h), w r * r."""
    # One edge: the other factor is a constant
    if len(edges := edges_of(node)) < 2:
        return None
    r, other = node._saved_self, node._saved_other
    c = quotient(edges, (r, other), conjugate=is_complex(node))
    return None if c is None else Head(node, r, lambda weight: weight * c)


def inner(names: tuple[str, str]) -> Callable[[Node], Head | None]:
    """r . r, r.T @ r, h.mH @ h, r . (w r)."""

    def read(node: Node) -> Head | None:
        # A matrix r^T r has products of different residuals beside the diagonal
        if math.prod(shape_of(node, 0)) != 1 or len(edges_of(node)) < 2:
            return None
        (first, flipped), (second, flipped_too) = (behind(e, RESHAPED) for e in node.next_functions)
        # vdot conjugates the first itself
        conjugate = is_complex(node) and name_of(node) != "Vdot"
        r, other = (getattr(node, f"_saved_{name}") for name in names)
        both = r, other.reshape(r.shape)
        c = quotient((first, second), both, conjugate ^ flipped ^ flipped_too, RESHAPED)
        return None if c is None else Head(node, r, lambda weight: weight.reshape(-1)[0] * c)

    return read


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


def mse(node: Node) -> Head:
    """(r - target)^2, its mean or its sum."""
    # From what the node saved: the difference itself is no node of the graph
    return Head(node, node._saved_self - node._saved_target, reduced(node))


def robust(loss: Callable[..., Tensor], parameter: str) -> Callable[[Node], Head]:
    """rho(r - target) of torch's own robust losses, its mean or its sum.

    Args:
        loss: F.huber_loss, ...
        parameter: where the parabola ends, as the loss and its node call it.
    """

    def read(node: Node) -> Head:
        width = {parameter: float(getattr(node, f"_saved_{parameter}"))}
        rho = lambda r: loss(r, torch.zeros_like(r), reduction="none", **width)  # noqa: E731
        return Head(node, node._saved_self - node._saved_target, reduced(node), rho)

    return read


def absolute(node: Node) -> Head | None:
    """|r|, as in F.l1_loss; |h| of a complex h is a length, |h conj(h)| a square already."""
    if not is_complex(source := node.next_functions[0][0]):
        return Head(node, node._saved_self, same, torch.abs)
    square = HEADS.get(name_of(source), none)(source)
    if square is not None:
        return replace(square, node=node)
    twice = 2 * node._saved_self.detach().abs()
    return Head(node, node._saved_self, lambda weight: weight / twice, exact=False)


def log_cosh(node: Node) -> Head | None:
    """log(cosh(r))."""
    cosh = node.next_functions[0][0]
    if name_of(cosh) != "Cosh":
        return None
    # log cosh r itself overflows beyond r = 700
    return Head(node, cosh._saved_self, same, lambda r: torch.logaddexp(r, -r) - math.log(2))


def none(node: Node) -> None:
    """No head."""


def same(weight: Tensor) -> Tensor:
    """Weights of a node that works entry by entry."""
    return weight


def reduced(node: Node) -> Callable[[Tensor], Tensor]:
    """Weights of a node that takes the mean or the sum itself."""
    # The weight arrives for the node's output, one number, and is spread over its entries
    count = node._saved_self.numel() if node._saved_reduction == 1 else 1
    return lambda weight: weight / count


HEADS: dict[str, Callable[[Node], Head | None]] = {
    "Pow": squared,
    "Mul": product,
    "MseLoss": mse,
    "Dot": inner(("self", "tensor")),
    "Vdot": inner(("self", "other")),
    "Mm": inner(("self", "mat2")),
    "Bmm": inner(("self", "mat2")),
    "HuberLoss": robust(F.huber_loss, "delta"),
    "SmoothL1Loss": robust(F.smooth_l1_loss, "beta"),
    "Abs": absolute,
    "Log": log_cosh,
    "LinalgVectorNorm": length,
}
