"""The nodes of an autograd graph that square a residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kfac_pinn.jacobian.capture.readers import name_of
from kfac_pinn.jacobian.losses import Rho

__all__ = ["SQUARES", "Edge", "Head", "Node", "reduced", "rooted", "same"]

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
        mixed: from the weights to the residual with weights of one, where they mix its entries.
    """

    node: Node
    residual: Tensor
    spread: Callable[[Tensor], Tensor]
    rho: Rho | None = None
    exact: bool = True
    mixed: Callable[[Tensor], Tensor] | None = None

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
    source = value.grad_fn
    if name_of(source) in LENGTHS and (head := norm(source, node, exponent)) is not None:
        return head
    if exponent == 2 and name_of(source) == "Abs" and source._saved_self.is_complex():
        return Head(node, source._saved_self, same)
    if exponent > 0 and exponent % 2 == 0 and not value.is_complex():
        return Head(node, value if exponent == 2 else value ** (exponent / 2), same)
    return None


def exponent_of(node: Node) -> float:
    """A number, or nan for one exponent an entry."""
    exponent = node._saved_exponent
    return math.nan if isinstance(exponent, Tensor) and exponent.numel() > 1 else float(exponent)


def norm(node: Node, square: Node, exponent: float) -> Head | None:
    """||r||^2 along some dimensions or all; ||r||_p^p = sum |r|^p for an even p."""
    order = float(getattr(node, f"_saved_{LENGTHS[name_of(node)]}"))
    value = node._saved_self
    if order != exponent or order % 2 != 0 or math.isinf(order) or order <= 0:
        return None
    if name_of(node) == "Dist":
        value = value - node._saved_other
    if order > 2:
        value = value.abs() ** (order / 2)
    dims, kept = getattr(node, "_saved_dim", None), getattr(node, "_saved_keepdim", False)

    def spread(weight: Tensor) -> Tensor:
        if not kept and dims is not None:
            for dim in sorted(d % value.ndim for d in map(signed, dims)):
                weight = weight.unsqueeze(dim)
        return weight

    return Head(square, value, spread)


def length(node: Node) -> Head | None:
    """||r||, the root of its square: the slope there is 1 / (2 ||r||)."""
    if (head := norm(node, node, 2)) is None:
        return None
    return rooted(head, node._saved_result)


def hypotenuse(node: Node) -> Head:
    """The root of a^2 + b^2, entry by entry."""
    both = torch.stack(torch.broadcast_tensors(node._saved_self, node._saved_other), -1)
    return rooted(Head(node, both, lambda weight: weight[..., None]), node._saved_result)


def rooted(head: Head, value: Tensor) -> Head:
    """The head of a root, from that of its square: d sqrt(s) = ds / (2 sqrt(s))."""
    twice = 2 * value.detach()
    return replace(head, spread=lambda weight: head.spread(weight / twice), exact=False)


def signed(dim: int) -> int:
    """Dimensions are saved as unsigned numbers."""
    return dim - 2**64 if dim >= 2**63 else dim


def mse(node: Node) -> Head:
    """(r - target)^2, its mean or its sum."""
    # From what the node saved: the difference itself is no node of the graph
    return Head(node, node._saved_self - node._saved_target, reduced(node))


def same(weight: Tensor) -> Tensor:
    """Weights of a node that works entry by entry."""
    return weight


def reduced(node: Node) -> Callable[[Tensor], Tensor]:
    """Weights of a node that takes the mean or the sum itself."""
    # The weight arrives for the node's output, one number, and is spread over its entries
    count = node._saved_self.numel() if node._saved_reduction == 1 else 1
    return lambda weight: weight / count


# By the name that each has for p
LENGTHS = {"LinalgVectorNorm": "ord", "Norm": "p", "Dist": "p"}

SQUARES: dict[str, Callable[[Node], Head | None]] = {
    "Pow": squared,
    "MseLoss": mse,
    "Hypot": hypotenuse,
    **dict.fromkeys(LENGTHS, length),
}
