"""r . M r with a constant matrix M, as the square of L^T r where (M + M^T) / 2 = L L^T."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations

import torch
from torch import Tensor

from kfac_pinn.jacobian.capture.graph import SLICING
from kfac_pinn.jacobian.capture.readers import name_of, shape_of
from kfac_pinn.jacobian.products import Factors, base, is_inner, one_each, twins
from kfac_pinn.jacobian.squares import Edge, Head, Node

__all__ = ["elementwise_form", "gram", "inner_form"]


def inner_form(factors: Factors) -> Callable[[Node], Head | None]:
    """r . (M r), r.T @ M @ r, and as many of them as a batch has rows."""

    def read(node: Node) -> Head | None:
        found = form(node, factors) if is_inner(node) else None
        if found is None:
            return None
        residual, _ = found
        scale = factors.times(node)
        return Head(node, residual, lambda weight: one_each(weight, residual) * scale)

    return read


def elementwise_form(factors: Factors) -> Callable[[Node], Head | None]:
    """r * (M r), to be summed: the sum over an entry alone is no square."""

    def read(node: Node) -> Head | None:
        found = form(node, factors)
        if found is None:
            return None
        residual, dim = found
        scale = factors.times(node)

        def spread(weight: Tensor) -> Tensor:
            weight = weight.expand(residual.shape)
            if (weight != weight.narrow(dim, 0, 1)).any():
                raise ValueError(WEIGHTED)
            return weight * scale

        return Head(node, residual, spread)

    return read


def gram(factors: Factors) -> Callable[[Node], Head | None]:
    """G = r^T r or r^T M r, all products of columns: a loss linear in it is trace(W G).

    With M = L L^T and the weights W = K K^T that is the square of L^T r K.
    """

    def read(node: Node) -> Head | None:
        if (edges := factors.edges(node)) is None:
            return None
        turned, r = factors.values(node)
        # einsum puts a dimension of one before both
        if r.is_complex() or r.shape[:-2].numel() != 1 or turned.shape[-2] != r.shape[-1]:
            return None
        whole_r, turned = r.reshape(r.shape[-2:]), turned.detach().reshape(turned.shape[-2:])
        left = left_of(edges, whole_r.detach(), turned)
        if left is None:
            return None
        scale = factors.times(node)

        def mixed(weight: Tensor) -> Tensor:
            return left.mT @ whole_r @ root(scale * weight.reshape(weight.shape[-2:]))

        return Head(node, whole_r, lambda weight: weight, mixed=mixed)

    return read


def left_of(edges: tuple[Edge, Edge], r: Tensor, turned: Tensor) -> Tensor | None:
    """L with r^T L L^T for the first factor of a product with r; None where it is none."""
    one, other = (whole(edge) for edge in edges)
    if (one == other or twins(one, other)) and torch.equal(turned.mT, r):
        return torch.eye(len(r), dtype=r.dtype, device=r.device)
    matrix = matrix_between(edges[1], edges[0])
    if matrix is None or matrix.ndim > 2 or summed(matrix, r, turned.mT) != -2:
        return None
    return root(matrix)


def form(node: Node, factors: Factors) -> tuple[Tensor, int] | None:
    """L^T r in the shape of r, and the dimension that M sums over; None if it is no such form."""
    if (edges := factors.edges(node)) is None:
        return None
    pairs = zip(permutations(edges), permutations(factors.values(node)), strict=True)
    for (one, other), (r, moved) in pairs:
        matrix = matrix_between(one, other)
        if matrix is None or r.is_complex() or not r.ndim:
            continue
        # r @ M @ r, r.T @ M @ r, ...: what is one vector is summed over as one
        if max(r.shape) == r.numel():
            vector = r.reshape(-1)
            if summed(matrix, vector.detach(), moved.detach().reshape(-1)) is not None:
                return (vector @ root(matrix)).reshape(r.shape), r.shape.index(r.numel()) - r.ndim
            continue
        dim = summed(matrix, r.detach(), moved.detach().reshape(r.shape))
        if dim is not None:
            return times(r.movedim(dim, -1), root(matrix)).movedim(-1, dim), dim
    return None


def summed(matrix: Tensor, r: Tensor, moved: Tensor) -> int | None:
    """The dimension with moved = M r along it, or M^T r, as the values tell."""
    # A graph tells what was multiplied, not how a transposed r was turned before: values do
    size = float(moved.abs().max()) * 1e3 * torch.finfo(moved.dtype).eps
    for dim in range(-1, -1 - min(r.ndim, 2), -1):
        if r.shape[dim] != matrix.shape[-1] or (matrix.ndim > 2 and dim != -1):
            continue
        turned, expected = r.movedim(dim, -1), moved.movedim(dim, -1)
        for each in (matrix, matrix.mT):
            if torch.allclose(times(turned, each), expected, rtol=0, atol=size):
                return dim
    return None


def times(r: Tensor, matrix: Tensor) -> Tensor:
    """r M for vectors in the last dimension of r; M of shape (N, N), or one a point (B, N, N)."""
    if matrix.ndim == 2:
        return r @ matrix
    return (r.reshape(len(matrix), -1, r.shape[-1]) @ matrix).reshape(r.shape)


def matrix_between(one: Edge, other: Edge) -> Tensor | None:
    """The product of the constant matrices that lead from one tensor to the other, up to order."""
    source, place = whole(one), whole(other)
    matrix: Tensor | None = None
    while name_of(place[0]) in MATRICES:
        found = constant(place[0])
        if found is None:
            return None
        here, edge = found
        if matrix is not None and matrix.shape[-1] != here.shape[-1]:
            return None  # one from the left, one from the right
        matrix = here if matrix is None else matrix @ here
        place = whole(edge)
        if place == source or twins(place, source):
            return matrix
    return None


def whole(edge: Edge) -> Edge:
    """The tensor that was reshaped, or sliced or expanded to all of itself."""
    while True:
        node, output = base(*edge)
        if name_of(node) not in SLICING | {"Expand"} or numel(node, output) != numel(
            *node.next_functions[0]
        ):
            return node, output
        edge = node.next_functions[0]


def numel(node: Node, output: int) -> int:
    """Of a node's output."""
    return math.prod(shape_of(node, output))


def constant(node: Node) -> tuple[Tensor, Edge] | None:
    """K of K v or of v K^T, and v's edge; None where both are trained, or K is not square."""
    first, saved = MATRICES[name_of(node)]
    edges = node.next_functions[first : first + 2]
    trained = [i for i, (source, _) in enumerate(edges) if source is not None]
    if len(trained) != 1:
        return None
    (v,) = trained
    matrix = saved[1 - v](node)
    matrix = matrix.to_dense() if matrix.layout != torch.strided else matrix
    # One for all vectors of a batch
    if matrix.ndim == 3 and (matrix == matrix[:1]).all():
        matrix = matrix[0]
    if matrix.ndim < 2 or matrix.shape[-2] != matrix.shape[-1]:
        return None
    return (matrix if v == 1 else matrix.mT).detach(), edges[v]


def root(matrix: Tensor) -> Tensor:
    """L with L L^T = (M + M^T) / 2.

    Raises:
        ValueError: where that has a negative eigenvalue.
    """
    symmetric = (matrix + matrix.mT) / 2
    lower, failed = torch.linalg.cholesky_ex(symmetric)
    if not failed.any():
        return lower
    values, vectors = torch.linalg.eigh(symmetric)
    # A matrix without full rank has eigenvalues that are rounding
    rounding = 10 * values.shape[-1] * torch.finfo(values.dtype).eps
    if (values < -rounding * values.abs().amax(-1, keepdim=True)).any():
        raise ValueError(INDEFINITE.format(least=float(values.min())))
    return vectors * values.clamp_min(0).sqrt()[..., None, :]


def inverse(node: Node) -> Tensor:
    """(L L^T)^-1 of a system that is solved by the factor L."""
    return torch.cholesky_inverse(node._saved_input2, upper=node._saved_upper)


Saved = Callable[[Node], Tensor]


def keeps(*names: str) -> tuple[Saved, ...]:
    """The operands that a node saves under these names."""
    return tuple(lambda node, name=name: getattr(node, f"_saved_{name}") for name in names)


# The number of the first operand among a node's inputs, and where it keeps both
MATRICES: dict[str, tuple[int, tuple[Saved, ...]]] = {
    "Mv": (0, keeps("self", "vec")),
    "Mm": (0, keeps("self", "mat2")),
    "Bmm": (0, keeps("self", "mat2")),
    "SparseAddmm": (1, keeps("mat1", "mat2")),
    "CholeskySolve": (0, (*keeps("self"), inverse)),
    "LinalgSolveEx": (0, (lambda node: torch.linalg.inv(node._saved_A), *keeps("result"))),
}

INDEFINITE = (
    "r . M r with a matrix M whose eigenvalue {least:.3g} is negative is no sum of squares: leave "
    "out what is negative in it, or return the residuals themselves"
)
WEIGHTED = (
    "r * (M r) with weights that differ between the entries of one vector is no square: put the "
    "weights into the matrix, r @ (w[:, None] * M) @ r, or return the residuals L.T @ r, M = L L.T"
)
