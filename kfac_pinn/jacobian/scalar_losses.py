"""The residuals behind a scalar loss, read off its autograd graph.

A loss L = sum_k sum_e w_ke r_ke^2 is linear in its squares: from the loss down, sums, means,
weights and changes of shape lead to the nodes that square something, and one backward pass to those
nodes says with which weights w. So L = 1/2 ||r||^2 for the residuals sqrt(2 w) r.

Where the squares stand under a function, a root of a mean or a logarithm say, that pass brings the
slopes w of the loss in its squares. The residuals sqrt(2 w) r then have the gradient of the loss,
and J^T J is the part of its Hessian that is never negative.

Robust losses rho(r) (Huber, L1, log cosh, ...) are least squares with the weights rho'(r) / r,
which are held constant for a step: their gradient is exact, their curvature that of the parabola
that touches rho from above (iteratively reweighted least squares).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kfac_pinn.jacobian.capture.graph import SHAPING, edges_of, inputs_first
from kfac_pinn.jacobian.capture.readers import name_of, shape_of
from kfac_pinn.jacobian.heads import head_of
from kfac_pinn.jacobian.losses import BROADCAST, LeastSquares, Reweighted, Sloped
from kfac_pinn.jacobian.products import base
from kfac_pinn.jacobian.squares import Edge, Head, Node

__all__ = ["ends_in_squares", "refuse_broadcast", "residual_terms"]


COLUMNS = 8  # a residual with at most so many columns is a system: one term an equation


def residual_terms(loss: Tensor, trained: Iterable[Tensor] | None = None) -> list[LeastSquares]:
    """The residuals of a scalar loss, each as a term: their losses add up to it.

    Args:
        loss: one number, with its graph (not freed by a backward pass).
        trained: the parameters; what does not depend on them is constant. None: every leaf counts.

    Raises:
        ValueError: where the loss is no sum of squares; the operation is named.
    """
    if not loss.requires_grad:
        raise ValueError(
            "the loss carries no gradient: do not detach it, nor compute it under torch.no_grad()"
        )
    loss = loss.as_subclass(Tensor)
    walk = Walk(loss, trained)
    if not walk.heads:
        raise ValueError(
            "the loss does not depend on any trained parameter: nothing is squared in it"
        )
    edges = [GradientEdge(head.node, 0) for head in walk.heads]
    # Where the loss is linear in its squares, these derivatives are exactly the weights
    weights = torch.autograd.grad(loss.sum(), edges, retain_graph=True, allow_unused=True)
    terms = [
        term
        for i, (head, weight) in enumerate(zip(walk.heads, weights, strict=True))
        if weight is not None
        for term in terms_of(
            head, weight.detach(), f"loss term {i} ({name_of(head.node)})", walk.linear
        )
    ]
    # A constant that was added belongs to the loss, and to no residual
    if walk.linear and not walk.constants:
        refuse_difference(loss, terms)
    return terms


def ends_in_squares(value: Tensor) -> bool:
    """Whether one number is a sum of squares already, and so rather a loss than a residual."""
    if not value.requires_grad or value.numel() > 1:
        return False
    try:
        walk = Walk(value, None)
    except ValueError:
        return False
    return (
        walk.linear and not walk.constants and sum(head.residual.numel() for head in walk.heads) > 1
    )


class Walk:
    """From a loss down to the nodes that square something.

    Attributes:
        heads: those nodes.
        constants: whether anything was added that is not trained.
        linear: whether the loss is linear in the squares.
    """

    def __init__(self, loss: Tensor, trained: Iterable[Tensor] | None) -> None:
        root = get_gradient_edge(loss).node
        ids = None if trained is None else {id(p) for p in trained}
        self.depends = dependent(root, ids)
        self.heads: list[Head] = []
        self.constants, self.linear = False, True
        seen: set[Node] = set()
        # Each with the function that it stands under, which is to be named if it is none of squares
        stack: list[tuple[Node, Node | None]] = [(root, None)] if root in self.depends else []
        while stack:
            node, under = stack.pop()
            if node not in seen:
                seen.add(node)
                stack += self._step(node, under)

    def _step(self, node: Node, under: Node | None) -> Iterator[tuple[Node, Node | None]]:
        """The head that a node is, or the nodes that it is a function of."""
        name, sources = name_of(node), [source for source, _ in node.next_functions]
        mine = [i for i, source in enumerate(sources) if source in self.depends]
        factors = FACTORS.get(name, ())
        if (head := head_of(name, node)) is not None:
            self.heads.append(head)
            self.linear &= head.exact
            # What a product is added to, as by addcmul
            mine = [i for i in mine if i not in factors] if name in ADDING else []
        elif name in FACTORS:
            # A product with what is not trained is linear; of two functions of squares it is not
            trained = [i for i in mine if i in factors]
            if len(trained) > 1 or DIVISORS.get(name) in mine:
                self.linear, under = False, under or node
            # A layer: what is behind it is no loss
            layer = any(name_of(base(sources[i], 0)[0]) == "AccumulateGrad" for i in trained)
            if name in MATRICES and (len(trained) > 1 or layer):
                raise ValueError(refusal(node, under))
            if name == "Lerp" and {name_of(source) for source in sources[:2]} == {"Gather"}:
                raise ValueError(refusal(node, node))
        elif name in CURVED:
            self.linear, under = False, under or node
        elif name not in SUMS | LINEAR:
            raise ValueError(refusal(node, under))
        if name in SUMS | ADDING:
            # Rsub is c - r with a number c, which is in no node
            added = [i for i in range(len(sources)) if i not in factors]
            self.constants |= name == "Rsub" or any(i not in mine for i in added)
        yield from ((sources[i], under) for i in mine)


def dependent(root: Node, trained: set[int] | None) -> set[Node]:
    """The nodes with a trained tensor behind them."""
    found: set[Node] = set()
    for node in inputs_first(root):
        if hasattr(node, "variable"):
            mine = trained is None or id(node.variable) in trained
        else:
            mine = any(source in found for source, _ in edges_of(node))
        if mine:
            found.add(node)
    return found


def terms_of(head: Head, weight: Tensor, name: str, linear: bool) -> Iterator[LeastSquares]:
    """One term a column of the residual."""
    if head.mixed is not None:
        residual = head.mixed(weight)
        head, weight = replace(head, residual=residual, mixed=None), torch.ones_like(residual)
    refuse_broadcast(head.residual, name)
    # the loss reads |h|^2 as a complex number without an imaginary part
    weights = head.spread(weight.real if weight.is_complex() else weight)
    weights = weights.expand(torch.broadcast_shapes(weights.shape, head.residual.shape))
    residual = head.residual
    if residual.shape != weights.shape:
        residual = residual.expand(weights.shape)
    # A root has no slope at 0, where the slope of its square is 0 whatever the weight
    weights = weights.where(weights.isfinite() | (residual.detach() != 0), 0)
    if (weights < 0).any():
        behind = head.residual.grad_fn
        why = WEIGHTED if behind is None or is_weight(behind) else FALLING
        raise ValueError(
            f"{name} enters with a negative weight: the loss is not a sum of squares{why}. "
            f"{WAYS_OUT}"
        )
    pairs = list(zip(*columns(residual, weights), strict=True))
    for c, (r, w) in enumerate(pairs):
        label = name if len(pairs) == 1 else f"{name}, column {c}"
        if head.rho is None:
            # `LeastSquares` takes half the mean
            found = LeastSquares((2 * len(r) * w).sqrt() * r, label)
        else:
            found = Reweighted(r, w, head.rho, label)
        yield found if linear else Sloped(found.residual, label)


def refuse_broadcast(residual: Tensor, name: str) -> None:
    """(N, 1) - (M,) is (N, M): the network would learn the mean of the data."""
    if residual.ndim != 2 or residual.shape[1] < 2 or residual.grad_fn is None:
        return
    N, M = residual.shape
    shapes = {shape_of(*source) for source in compared(residual.grad_fn)}
    if shapes and shapes <= {(N, 1), (1, M), (M,)} and (N == M or (N, 1) in shapes):
        raise ValueError(BROADCAST.format(name=name, shape=(N, M), N=N, M=M))


def compared(node: Node) -> Iterator[Edge]:
    """What a sum or difference is of, before it was expanded (as F.mse_loss does)."""
    node, _ = base(node, 0)
    for edge in edges_of(node) if name_of(node) in DIFFERENCES else ():
        source = base(*edge)
        yield from edges_of(source[0]) if name_of(source[0]) == "Expand" else [source]


def columns(residual: Tensor, weights: Tensor) -> list[list[Tensor]]:
    """Both in a system's equations, each of shape (N,); a parameter is one vector."""
    both, shape = (residual, weights), residual.shape
    # A leaf is a penalty on a parameter: its rows and columns are no equations
    if not residual.is_leaf and residual.ndim > 1:
        if 1 < shape[-1] <= COLUMNS:
            return [[part.reshape(-1) for part in each.unbind(-1)] for each in both]
        if 1 < shape[0] <= COLUMNS < math.prod(shape[1:]):
            return [[part.reshape(-1) for part in each.unbind(0)] for each in both]
    return [[each.reshape(-1)] for each in both]


def refuse_difference(loss: Tensor, terms: list[LeastSquares]) -> None:
    """What was read must be the loss."""
    found, value = float(sum(term.loss().detach() for term in terms)), float(loss.detach())
    # Of the coarsest of the numbers that went in
    eps = max(torch.finfo(each.dtype).eps for each in (loss, *(t.residual for t in terms)))
    # A thousand roundings of sums in another order; eps^(3/2) where the loss itself is nothing
    rounding = 1e3 * eps * abs(value) + eps**1.5
    # log(cosh(r)) is the logarithm of a number near 1, and rounded as that number is
    rounding += 10 * eps * sum(term.rounded for term in terms)
    if math.isfinite(value) and abs(found - value) > rounding:
        raise ValueError(
            f"the residuals read off the loss give {found:.8g}, but the loss is {value:.8g}. "
            f"{WAYS_OUT}"
        )


def is_weight(node: Node) -> bool:
    """Whether it is a function of trained numbers, and of no network."""
    return all(name_of(each) not in MATRICES for each in inputs_first(node))


def refusal(node: Node, under: Node | None) -> str:
    """Name the operation, and what to write instead."""
    named = under or node
    name = name_of(named)
    # Of a product the factors; a layer is not meant
    asked = (
        edges_of(named) if name in PRODUCTS else [(node, 0)] * (name_of(node) == "AccumulateGrad")
    )
    weight = any(is_weight(source) for source, _ in asked)
    hint = WEIGHTED if weight else HINTS.get(name, "")
    return (
        f"the loss is no sum of squares of residuals: it contains {name} ({type(named).__name__}, "
        f"shape {shape_of(named, 0)}) between the squares and the loss{hint}. {WAYS_OUT}"
    )


DIFFERENCES = {"Add", "Sub", "Rsub"}
SUMS = {
    "Add", "Sub", "Rsub", "Sum", "Mean", "Stack", "Cat", "Neg", "Where", "CopySlices",
    "ScatterAdd", "IndexAdd", "Scatter", "SliceScatter", "SelectScatter", "ConstantPadNd",
}  # fmt: skip
LINEAR = {
    *SHAPING, "Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Index", "IndexSelect",
    "Nansum", "Trace", "Diagonal", "AsStrided", "MaskedFill", "Gather", "Cumsum", "Flip", "Roll",
    "Repeat", "MaskedSelect", "IndexPut", "Topk", "Sort", "ViewAsReal", "Conj", "Unfold",
    "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "MeanPool",
}  # fmt: skip
CURVED = {
    "Sqrt", "Log", "Log2", "Log10", "Log1P", "Exp", "Expm1", "Logsumexp", "Pow", "Clamp",
    "ClampMin", "ClampMax", "Sigmoid", "LogSigmoid", "Tanh", "Atan", "Asinh", "Erf", "Softplus",
    "Softmax", "Reciprocal", "Rsqrt", "Maximum", "Minimum", "Logaddexp", "Prod",
}  # fmt: skip
# The numbers of what is multiplied among a node's inputs; the others are added
FACTORS = {
    **dict.fromkeys(("Mul", "Div", "Dot", "Vdot", "Mv", "Mm", "Bmm", "Convolution"), (0, 1)),
    **dict.fromkeys(("Addcmul", "Addcdiv", "Addmm", "Addmv", "Addr"), (1, 2)),
    **dict.fromkeys(("Baddbmm", "Addbmm", "SparseAddmm"), (1, 2)),
    "Lerp": (2,),
}
# A layer of a network is one of the matrices
PRODUCTS = {"Mul", "Div", "Dot", "Mv"}
MATRICES = FACTORS.keys() - {"Mul", "Div", "Addcmul", "Addcdiv", "Lerp"}
ADDING = {name for name, factors in FACTORS.items() if 0 not in factors}
DIVISORS = {"Div": 1, "Addcdiv": 2}

WAYS_OUT = (
    "Return the residuals themselves (a tensor, a tuple or a dict of them: the optimizer squares "
    "them; for one number, a prior say, r.reshape(1)), or a kfac_pinn.ConvexLoss of the outputs "
    "for a loss that is not a square"
)
QUADRATIC = (
    ": a product of two residuals; for r . M r take a constant, square M that has no negative "
    "eigenvalue, or write (L.T @ r).square(), M = L L.T"
)
LARGEST = (
    ": one error out of all is not smooth; write (r ** 8).mean(), or "
    "torch.logsumexp(k * r ** 2, 0) / k, which is near the largest for large k"
)
WEIGHTED = (
    ": a trained tensor that is not squared. If it is a weight that is trained along, s in "
    "exp(-s) * L + s say, descent on all together prefers to solve the easiest term alone. Write "
    "torch.log(L) instead, the least of that over s but for a constant, or leave s out of the "
    "parameters and give it to another optimizer, torch.optim.Adam say, which steps beside this one"
)
FALLING = (
    ", for the loss falls where this square rises. Where terms weigh each other, by a softmax or "
    "by exp(-sum) say, hold the weights constant with detach()"
)
HINTS = {
    "LinalgVectorNorm": ": a norm that is not Euclid's; take the Euclidean one, or its square",
    "Mul": ": two trained factors; write a square as w * r ** 2, and r . M r with a constant M; "
    "hold a weight constant with detach()",
    "Div": ": a trained divisor; hold it constant with detach(). For a cosine, 1 - cos(u, v), "
    "write (normalize(u) - normalize(v)) ** 2 / 2 of torch.nn.functional, which is the same",
    **dict.fromkeys(("Max", "Amax", "Kthvalue", "Median", "Nanmedian", "Lerp"), LARGEST),
    "Var": ": a variance; write (u - u.mean()).square()",
    "Std": ": a standard deviation; write (u - u.mean()).square() for its square",
    **dict.fromkeys(("Dot", "Mm", "Bmm", "Mv"), QUADRATIC),
    "Addmm": ": values of a layer themselves, not their squares",
    "Relu": ": a hinge; square it, relu(...).square()",
    "CompiledFunction": ": compiled code; compile the model, or hand step(closure) a closure",
}
