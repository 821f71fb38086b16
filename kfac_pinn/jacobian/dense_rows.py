"""The rows d r_n / d p of trained tensors p that are no layer's weight: coefficients, norms, ...

Where all points read one trained tensor t, each was given a copy (`Broadcast`), or t is a weight
that was computed: one backward pass gave d r_n / d t, and the chain rule (d r_n / d t) (d t / d p)
gives the rest. Whatever reaches the residual on other ways is noticed by one more backward pass;
its rows are then computed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.linalg import batches_of_rows

__all__ = [
    "BroadcastJacobian",
    "MixedError",
    "chain",
    "leaf_rows",
    "probe",
    "strided",
    "tolerance",
    "uses_tf32",
]

# Backward passes that the rows of one tensor may cost before the graph is read instead, which costs
# a few in all: a coefficient of the equation has one column.
MOST_PASSES = 16


class MixedError(Exception):
    """The captured calls do not tell the rows of a residual apart, or not cheaply."""


@dataclass(frozen=True, eq=False)
class BroadcastJacobian:
    """d r_n / d t of a trained tensor t that all points read.

    Attributes:
        tensor: t, a parameter or computed from parameters, or where it stands in the graph.
        rows: of a slice of the points, shape (n, numel t).
    """

    tensor: Tensor | GradientEdge
    rows: Callable[[slice], Tensor]


def leaf_rows(
    output: Tensor, leaves: Sequence[Tensor], broadcasts: Sequence[BroadcastJacobian]
) -> list[Tensor | None]:
    """d r_n / d p of shape (N, numel p) for each leaf p, None where r does not depend on it.

    Args:
        output: r, shape (N,), with its graph.
        leaves: the tensors p.
        broadcasts: what is known of the tensors between them and r.

    Raises:
        MixedError: for a leaf that is read in other ways too, whose rows cost many backward passes.
    """
    # What the broadcasts explain is compared with one backward pass: other ways may lead to a leaf
    u = probe(output)
    expected = torch.autograd.grad(output, leaves, u, retain_graph=True, allow_unused=True)
    found = chain(broadcasts, leaves, len(output))
    flat = [None if rows is None else rows.reshape(len(output), -1) for rows in found]
    return [
        None
        if product is None
        else rows
        if agrees(rows, u, strided(product))
        else dense(output, leaf)
        for leaf, product, rows in zip(leaves, expected, flat, strict=True)
    ]


def probe(output: Tensor) -> Tensor:
    """A random vector u of the residual's shape, the same every time."""
    # Not torch's own generator: a look must not change the user's random numbers
    generator = torch.Generator().manual_seed(0)
    return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)


def agrees(rows: Tensor | None, u: Tensor, product: Tensor) -> bool:
    """Whether u^T J is the product, to the rounding of its terms |u|^T |J|."""
    if rows is None:
        return False
    # Against the terms and not their sum, which may cancel
    error, size = u @ rows - product.reshape(-1), u.abs() @ rows.abs()
    return bool(error.norm() <= tolerance(rows) * size.norm())


def tolerance(like: Tensor) -> float:
    """Relative error above which two ways to the same product differ: the root of the rounding."""
    # TF32 keeps ten bits behind the leading one, whatever the dtype says
    rounding = 2.0**-11 if uses_tf32(like) else torch.finfo(like.dtype).eps
    return math.sqrt(rounding)


def uses_tf32(like: Tensor) -> bool:
    """Whether products of such tensors are rounded to TF32, by the newer setting or the older."""
    if not like.is_cuda or like.dtype != torch.float32:
        return False
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return bool(matmul.fp32_precision == "tf32")
    return torch.get_float32_matmul_precision() != "highest"


def chain(
    broadcasts: Sequence[BroadcastJacobian],
    targets: Sequence[Tensor] | Sequence[GradientEdge],
    points: int,
) -> list[Tensor | None]:
    """sum_t (d r_n / d t) (d t / d target), (N, *target); None where no t depends on it."""
    totals: list[Tensor | None] = [None] * len(targets)
    for broadcast in by_tensor(broadcasts) if targets else ():
        for i, rows in enumerate(pulled_back(broadcast, targets, points)):
            total = totals[i]
            totals[i] = rows if total is None else total if rows is None else total + rows
    return totals


def by_tensor(broadcasts: Sequence[BroadcastJacobian]) -> list[BroadcastJacobian]:
    """One for each t, however often it is read."""
    found: dict[Tensor | GradientEdge, list[BroadcastJacobian]] = {}
    for broadcast in broadcasts:
        found.setdefault(broadcast.tensor, []).append(broadcast)

    def total(some: slice, each: list[BroadcastJacobian]) -> Tensor:
        return reduce(torch.add, (one.rows(some) for one in each))

    return [
        each[0] if len(each) == 1 else BroadcastJacobian(t, partial(total, each=each))
        for t, each in found.items()
    ]


def pulled_back(
    broadcast: BroadcastJacobian, targets: Sequence[Tensor] | Sequence[GradientEdge], points: int
) -> list[Tensor | None]:
    """(d r_n / d t) (d t / d target), so many points at once as fit the memory."""
    t = broadcast.tensor
    like = t if isinstance(t, Tensor) else t.node._input_metadata[t.output_nr]
    shape = torch.Size(like.shape)
    batches = batches_of_rows(points, size := shape.numel())
    # Of a complex t: i times a row is not pulled back to i times what the row is
    if points <= size or like.dtype.is_complex:
        parts = [pulled(t, targets, broadcast.rows(some).reshape(-1, *shape)) for some in batches]
    else:
        # Fewer entries than points: d t / d target once, and a product
        identity = torch.eye(size, dtype=like.dtype, device=like.device)
        found = pulled(t, targets, identity.view(-1, *shape))
        parts = [
            [None if J is None else torch.tensordot(rows.to(J), J, 1) for J in found]
            for rows in map(broadcast.rows, batches)
        ]
    return [catenated(part) for part in zip(*parts, strict=True)]


def pulled(
    t: Tensor | GradientEdge, targets: Sequence[Tensor] | Sequence[GradientEdge], rows: Tensor
) -> Sequence[Tensor | None]:
    """u^T (d t / d target) for every row u (*t) of (M, *t), so many at once as fit the memory."""
    parts = [
        torch.autograd.grad(
            t,
            targets,
            rows[some],
            retain_graph=True,
            allow_unused=True,
            # From t on the graph is small: batched, its copies fit the memory
            is_grads_batched=True,
        )
        for some in batches_of_rows(len(rows), rows[0].numel())
    ]
    return [catenated(part) for part in zip(*parts, strict=True)]


def catenated(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One after the other, None if they are."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def dense(output: Tensor, leaf: Tensor) -> Tensor:
    """d r_n / d p, shape (N, numel p), by rows or by columns, whichever are fewer."""
    if min(len(output), leaf.numel()) > MOST_PASSES:
        raise MixedError
    # Few columns: a coefficient of the equation has one, and thousands of rows
    if len(output) > leaf.numel():
        try:
            return by_columns(output, leaf)
        except RuntimeError:  # a function without a second derivative says so
            pass
    return torch.stack([gradient(each, leaf) for each in output])


def by_columns(output: Tensor, leaf: Tensor) -> Tensor:
    """G(v) = J^T v is linear in v, so the derivatives of its entries with respect to v are columns.

    Raises:
        RuntimeError: where autograd cannot differentiate twice.
    """
    # Any v does, as J^T v is linear in it
    v = torch.ones_like(output, requires_grad=True)
    (product,) = torch.autograd.grad(output, leaf, v, create_graph=True, retain_graph=True)
    if not product.requires_grad:
        return v.new_zeros(len(v), leaf.numel())
    return torch.stack([gradient(each, v) for each in strided(product).reshape(-1)], dim=1)


def gradient(scalar: Tensor, tensor: Tensor) -> Tensor:
    """Its gradient, flat; zero where it does not depend on the tensor."""
    (found,) = torch.autograd.grad(
        scalar, tensor, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return strided(found).reshape(-1)


def strided(gradient: Tensor) -> Tensor:
    """That of `nn.Embedding(sparse=True)` as an ordinary tensor."""
    return gradient.to_dense() if gradient.is_sparse else gradient
