"""The nodes of an autograd graph that square a residual, or take a robust loss of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
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
        node: of the square; the loss is linear in what it computes.
        residual: r, with its graph; of a complex one its two parts, in a last dimension.
        spread: brings weights of the node's output to r's shape.
        rho: None for a square.
    """

    node: Node
    residual: Tensor
    spread: Callable[[Tensor], Tensor]
    rho: Rho | None = None

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


def signed(dim: int) -> int:
    """Dimensions are saved as unsigned numbers."""
    return dim - 2**64 if dim >= 2**63 else dim


def product(node: Node) -> Head | None:
    """r * r, h * conj(h)."""
    edges = node.next_functions
    # One edge: the other factor is a number
    if len(edges) < 2 or not alike(edges[0], edges[1], conjugate=is_complex(node)):
        return None
    return Head(node, node._saved_self, same)


def inner(names: tuple[str, str]) -> Callable[[Node], Head | None]:
    """r . r, r.T @ r, h.mH @ h."""

    def read(node: Node) -> Head | None:
        (first, flipped), (second, flipped_too) = (behind(e, RESHAPED) for e in node.next_functions)
        # vdot conjugates the first itself
        conjugate = is_complex(node) and name_of(node) != "Vdot"
        # A matrix r^T r has products of different residuals beside the diagonal
        one = math.prod(shape_of(node, 0)) == 1
        if not one or not alike(first, second, conjugate ^ flipped ^ flipped_too):
            return None
        r = getattr(node, f"_saved_{names[0]}")
        return Head(node, r, lambda weight: weight.reshape(-1)[0].expand(r.shape))

    return read


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
    """|r|, as in F.l1_loss; |h conj(h)| of a complex h is a square already."""
    if not is_complex(source := node.next_functions[0][0]):
        return Head(node, node._saved_self, same, torch.abs)
    square = HEADS.get(name_of(source), none)(source)
    return None if square is None else replace(square, node=node)


def log_cosh(node: Node) -> Head | None:
    """log(cosh(r))."""
    cosh = node.next_functions[0][0]
    if name_of(cosh) != "Cosh":
        return None
    # log cosh r itself overflows beyond r = 700
    return Head(node, cosh._saved_self, same, lambda r: torch.logaddexp(r, -r) - math.log(2))


def square_root(node: Node) -> Head | None:
    """sqrt(r^2 + c^2) entry by entry, Charbonnier's or the pseudo-Huber loss."""
    total = node.next_functions[0][0]
    shape = shape_of(node, 0)
    if name_of(total) != "Add" or math.prod(shape) == 1:
        return None
    squares = [source for source, _ in edges_of(total)]
    head = HEADS.get(name_of(squares[0]), none)(squares[0]) if len(squares) == 1 else None
    if head is None or head.rho is not None or head.residual.shape != shape:
        return None
    # c^2 from values: what was added is a constant, and constants are not in the graph
    shift = (node._saved_result.detach().square() - head.residual.detach().square()).clamp_min(0)
    return Head(node, head.residual, same, lambda r: (r.square() + shift.view_as(r)).sqrt())


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
    "Sqrt": square_root,
}
