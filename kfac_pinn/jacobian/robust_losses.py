"""The nodes of an autograd graph that take a robust loss of a residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kfac_pinn.jacobian.capture.graph import edges_of
from kfac_pinn.jacobian.capture.readers import name_of
from kfac_pinn.jacobian.products import SQUARED, is_complex, unscaled
from kfac_pinn.jacobian.squares import SQUARES, Edge, Head, Node, reduced, rooted, same

__all__ = ["ROBUST"]


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
    for table in (SQUARES, SQUARED):
        name = name_of(source)
        if name in table and (square := table[name](source)) is not None:
            return replace(square, node=node)
    value = node._saved_self
    return rooted(Head(node, value, same), value.abs())


def log_cosh(node: Node) -> Head | None:
    """log(cosh(r))."""
    cosh = node.next_functions[0][0]
    if name_of(cosh) != "Cosh":
        return None
    # log cosh r itself overflows beyond r = 700
    return Head(node, cosh._saved_self, same, lambda r: torch.logaddexp(r, -r) - math.log(2))


def log_of_exponentials(node: Node) -> Head | None:
    """log(exp(r) + exp(-r)) = log(cosh(r)) + log(2)."""
    r, other = node._saved_self, node._saved_other
    one, minus = (unscaled(edge, ()) for edge in node.next_functions)
    if one != minus or not torch.equal(r, -other):
        return None
    return Head(node, r, same, lambda r: torch.logaddexp(r, -r))


def sum_with_softplus(node: Node) -> Head | None:
    """r + softplus(-2 r) = log(cosh(r)) + log(2); with beta, 1 / beta times that of beta r."""
    if len(edges_of(node)) < 2 or float(node._saved_alpha) != 1:
        return None
    for one, (other, _) in permutations(node.next_functions):
        if name_of(other) == "Softplus" and multiple(other._saved_self, one) == -2:
            kind = {"beta": float(other._saved_beta), "threshold": float(other._saved_threshold)}
            rho = lambda r: r + F.softplus(-2 * r, **kind)  # noqa: B023, E731
            # A sum keeps neither of its summands
            return Head(node, other._saved_self / -2, same, rho)
    return None


def multiple(value: Tensor, edge: Edge) -> float | None:
    """c with value = c x, for the tensor x of an edge; None where there is no one number c."""
    if unscaled(get_gradient_edge(value)[:2], ()) != unscaled(edge, ()):
        return None
    (slope,) = torch.autograd.grad(
        value.sum(), GradientEdge(*edge), retain_graph=True, allow_unused=True
    )
    if slope is None or (slope != (c := slope.reshape(-1)[0])).any():
        return None
    return float(c)


ROBUST: dict[str, Callable[[Node], Head | None]] = {
    "HuberLoss": robust(F.huber_loss, "delta"),
    "SmoothL1Loss": robust(F.smooth_l1_loss, "beta"),
    "Abs": absolute,
    "Log": log_cosh,
    "Logaddexp": log_of_exponentials,
    "Add": sum_with_softplus,
}
