"""Differential operators of a function u of points x (N, d), each one Taylor-mode forward pass.

u is any callable of points: it maps (N, d) to (N,), (N, 1) or (N, c), each row on its own.  Along
a straight line t -> x + t v the k-th derivative of u is (v . ∇)^k u, so an operator of order k is
a weighted sum of such powers over a few directions (`directions_of`); the sum is carried through
the network in place of its terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode import rules  # noqa: F401  (fills the table)
from kfac_pinn.taylor_mode.arguments import (
    Function,
    as_jet,
    called,
    check_axes,
    check_directions,
    check_function,
    check_number,
    check_order,
    check_points,
    check_terms,
)
from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.polarisation import Axes, directions_of, roots

__all__ = [
    "bilaplacian",
    "divergence",
    "gradient",
    "hessian",
    "homogeneous",
    "laplacian",
    "partial",
    "taylor",
]


def taylor(
    u: Function,
    x: Tensor,
    order: int = 2,
    directions: Tensor | None = None,
    weights: Tensor | Sequence[float] | float | None = None,
) -> tuple[Tensor, ...]:
    """The value and the derivatives of u along directions: d^k/dt^k u(x + t v_d) at t = 0.

        u, (u_t, u_x), u_xx = taylor(model, x, weights=[0.0, 1.0])

    Args:
        u: the function; plain tensors in it are constants.
        x: points (N, d).
        order: the highest order K >= 1.
        directions: v, (D, d) or one set a point (D, N, d); the d unit vectors by default.
        weights: w (D,) or (C, D): the top order is kept as its sums over directions only, which is
            cheaper.  They may be trained, all of them or some entries of a list.  One number is the
            weight of every direction.

    Returns:
        K + 1 tensors: the value (N, *), orders 1 .. K-1 (D, N, *), and the top order: (D, N, *)
        without weights, sum_d w_d (...) of shape (N, *) for (D,) or a number, (C, N, *) for (C, D).

    Raises:
        ValueError, TypeError: for shapes that do not fit, an x that is not a floating tensor, a u
            that is no function of one argument or returns what does not depend on it, and operators
            within operators.
        RuntimeError: for a part of u that is detached or under torch.no_grad().

    Source: Dangel et al. (2025), "Collapsing Taylor mode" (arXiv:2505.13644).
    """
    check_function(u)
    check_points(x)
    check_order(order)
    v = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) if directions is None else directions
    check_directions(v, x)
    w: Tensor | float | None
    if weights is None or isinstance(weights, (int, float)):
        check_number(weights)
        w = weights
    else:
        w = coefficients(weights, x)
    if isinstance(w, Tensor) and (w.ndim not in (1, 2) or w.shape[-1] != len(v)):
        raise ValueError(f"weights must be ({len(v)},) or (C, {len(v)}), found {tuple(w.shape)}")
    basis = Basis(order, len(v), w.reshape(-1, len(v)) if isinstance(w, Tensor) else w)
    # What u returns may be a jet of another call, or no jet at all: `as_jet` refuses both
    *lower, top = as_jet(called(u, line(x, v, basis)), basis).coefficients()
    alone = w.ndim == 1 if isinstance(w, Tensor) else w is not None
    return (*lower, top[0] if alone else top)


def coefficients(weights: Tensor | Sequence[Any], like: Tensor) -> Tensor:
    """Weights as one tensor; trained ones, among numbers too, stay in the autograd graph."""
    nested = isinstance(weights, (list, tuple))
    if nested and not all(isinstance(w, (int, float)) for w in weights):
        return torch.stack([coefficients(each, like) for each in weights])
    try:
        return torch.as_tensor(weights, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"weights must be numbers or tensors, found {weights!r}") from error


def line(x: Tensor, v: Tensor, basis: Basis) -> Jet:
    """The jet of t -> x + t v_d: its higher derivatives vanish."""
    velocity = (v.unsqueeze(1) if v.ndim == 2 else v).expand(-1, *x.shape)
    # The first order is the top one, which is kept as its sums
    if basis.order == 1:
        velocity = basis.collapse(velocity)
    # An expanded zero: cat is the only pass over this memory
    zeros = x.new_zeros(()).expand(sum(basis.sizes[2:]), *x.shape)
    jet = Jet(torch.cat([x.unsqueeze(0), velocity, zeros]), basis)
    # A first layer whose directions are the same at all points multiplies them once
    jet.velocity = v if v.ndim == 2 else None
    return jet


def gradient(u: Function, x: Tensor) -> Tensor:
    """∇u at x (N, d): (N, d) for a scalar u (N,) or (N, 1), the Jacobian (N, c, d) for (N, c).

    Raises:
        As `taylor`.
    """
    first = taylor(u, x, 1)[1].movedim(0, -1)
    return first.squeeze(1) if first.ndim == 3 and first.shape[1] == 1 else first


def divergence(u: Function, x: Tensor) -> Tensor:
    """∇ · u = sum_i d_i u_i of a vector field u (N, d): shape (N,).

    Raises:
        ValueError: if u(x) is not (N, d).
    """
    value, first = taylor(u, x, 1)
    if value.shape != x.shape:
        found = tuple(value.shape)
        raise ValueError(f"the divergence needs a field of shape {tuple(x.shape)}, found {found}")
    return first.diagonal(dim1=0, dim2=2).sum(-1)


def laplacian(u: Function, x: Tensor, weights: Tensor | Sequence[float] | None = None) -> Tensor:
    """Δu = sum_i d_i^2 u, or with weights sum_i w_i d_i^2 u or sum_ij A_ij d_i d_j u.

    Args:
        u: the function.
        x: points (N, d).
        weights: w (d,) or one a point (N, d); A (d, d) or one a point (N, d, d), not necessarily
            symmetric or definite.  They may be trained.

    Returns:
        A tensor of the shape of u(x).

    Raises:
        ValueError: if the shape of the weights is none of these, or could be two of them (N = d).
    """
    check_points(x)
    if weights is None:
        return taylor(u, x, weights=1.0)[-1]
    w = coefficients(weights, x)
    N, d = x.shape
    if w.shape == (d,):
        return taylor(u, x, weights=w)[-1]
    # Guessing would be right for one and silently wrong for the other
    if w.ndim == 2 and d == N and w.shape == (d, d):
        raise ValueError(
            f"weights {tuple(w.shape)} could be one row a point or one matrix, as N = d = {d}: "
            "pass weights.expand(N, d, d) for a matrix, torch.diag_embed(weights) for rows."
        )
    if w.shape not in ((N, d), (d, d), (N, d, d)):
        shapes = f"({d},), ({N}, {d}), ({d}, {d}) or ({N}, {d}, {d})"
        raise ValueError(f"weights must be {shapes}, found {tuple(w.shape)}")
    if w.requires_grad:  # roots and eigenvectors are not differentiable everywhere
        return contracted(hessians(u, x), torch.diag_embed(w) if w.shape == (N, d) else w)
    directions, signs = roots(w, diagonal=w.shape == (N, d))
    return taylor(u, x, 2, directions, signs)[-1]


def contracted(H: Tensor, A: Tensor) -> Tensor:
    """sum_ij A_ij H_ij of second derivatives (N, *, d, d) and a matrix (d, d) or (N, d, d)."""
    A = A[:, None] if A.ndim == 3 and H.ndim == 4 else A
    return (H * A).sum((-2, -1))


def hessian(u: Function, x: Tensor) -> Tensor:
    """All d_i d_j u at x (N, d): (N, d, d) for a scalar field, (N, c, d, d) for (N, c).

    Raises:
        As `taylor`.
    """
    H = hessians(u, x)
    return H.squeeze(1) if H.ndim == 4 and H.shape[1] == 1 else H


def hessians(u: Function, x: Tensor) -> Tensor:
    """The second derivatives of each output, (N, *, d, d), from d (d + 1) / 2 directions.

    Polarised: d_i d_j = ((d_i + d_j)^2 - d_i^2 - d_j^2) / 2.
    """
    check_points(x)
    d = x.shape[1]
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    pairs = list(combinations(range(d), 2))
    sums = [eye[i] + eye[j] for i, j in pairs]
    squares = taylor(u, x, 2, torch.cat([eye, torch.stack(sums)]) if pairs else eye)[-1]
    entries = {(i, i): squares[i] for i in range(d)}
    for (i, j), square in zip(pairs, squares[d:], strict=True):
        entries[i, j] = entries[j, i] = (square - squares[i] - squares[j]) / 2
    rows = [entries[i, j] for i in range(d) for j in range(d)]
    return torch.stack(rows, -1).unflatten(-1, (d, d))


def partial(u: Function, x: Tensor, axes: Sequence[int]) -> Tensor:
    """One partial derivative of any order: d_0 d_0 d_1 u for the axes (0, 0, 1).

    Returns a tensor of the shape of u(x).  See `homogeneous`.

    Raises:
        TypeError: if the axes are one number; the others of `homogeneous`.
    """
    check_axes(axes)
    return homogeneous(u, x, {tuple(axes): 1.0})


def bilaplacian(u: Function, x: Tensor) -> Tensor:
    """Δ²u = sum_ij d_i^2 d_j^2 u, of the shape of u(x): one pass with d^2 directions."""
    check_points(x)
    axes = range(x.shape[1])
    return homogeneous(u, x, {(i, i, j, j): 1.0 + (i < j) for i in axes for j in axes if i <= j})


def homogeneous(u: Function, x: Tensor, terms: Mapping[Axes, float | Tensor]) -> Tensor:
    """sum_a c_a d_a1 ... d_ak u for terms {(a1, ..., ak): c_a}, all of one order k, in one pass.

        homogeneous(u, x, {(0, 0): 1.0, (1, 1): -c**2})     # the wave operator

    Coefficients may be trained.  Returns a tensor of the shape of u(x).

    Raises:
        ValueError: if the orders differ or an axis is none of 0 .. d-1.
    """
    check_points(x)
    check_terms(terms)
    orders = {len(axes) for axes in terms}
    if len(orders) != 1 or 0 in orders:
        raise ValueError(
            f"terms must have one order >= 1, found {sorted(orders)}: add operators up"
        )
    if any(not 0 <= axis < x.shape[1] for axes in terms for axis in axes):
        raise ValueError(f"axes must be 0 .. {x.shape[1] - 1}, found {sorted(terms)}")
    found = directions_of(terms, x.shape[1])
    # Whole numbers, exact in every dtype: the weights carry all fractions
    directions = torch.tensor(list(found), dtype=x.dtype, device=x.device)
    return taylor(u, x, orders.pop(), directions, list(found.values()))[-1]
