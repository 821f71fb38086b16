"""Differential operators of a function u of points x (N, d), each one Taylor-mode forward pass.

u is any callable of points: it maps (N, d) to (N,), (N, 1) or (N, c), each row on its own.  Along
a straight line t -> x + t v the k-th derivative of u is (v . ∇)^k u, so an operator of order k is
a weighted sum of such powers over a few directions (`directions_of`); the sum is carried through
the network in place of its terms.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kfac_pinn.taylor_mode import rules  # noqa: F401  (fills the table)
from kfac_pinn.taylor_mode.detached import LOST, Detached
from kfac_pinn.taylor_mode.jets import Basis, Jet

__all__ = [
    "bilaplacian",
    "directions_of",
    "divergence",
    "gradient",
    "hessian",
    "homogeneous",
    "laplacian",
    "partial",
    "taylor",
]

Function: TypeAlias = Callable[[Any], Any]
Axes: TypeAlias = tuple[int, ...]


def taylor(
    u: Function,
    x: Tensor,
    order: int = 2,
    directions: Tensor | None = None,
    weights: Tensor | Sequence[float] | None = None,
) -> tuple[Tensor, ...]:
    """The value and the derivatives of u along directions: d^k/dt^k u(x + t v_d) at t = 0.

        u, (u_t, u_x), u_xx = taylor(model, x, weights=[0.0, 1.0])

    Args:
        u: the function; plain tensors in it are constants.
        x: points (N, d).
        order: the highest order K >= 1.
        directions: v, (D, d) or one set a point (D, N, d); the d unit vectors by default.
        weights: w (D,) or (C, D): the top order is kept as its sums over directions only, which is
            cheaper.  They may be trained, all of them or some entries of a list.

    Returns:
        K + 1 tensors: the value (N, *), orders 1 .. K-1 (D, N, *), and the top order: (D, N, *)
        without weights, sum_d w_d (...) of shape (N, *) for (D,) and (C, N, *) for (C, D).

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
    w = None if weights is None else coefficients(weights, x)
    if w is not None and (w.ndim not in (1, 2) or w.shape[-1] != len(v)):
        raise ValueError(f"weights must be ({len(v)},) or (C, {len(v)}), found {tuple(w.shape)}")
    basis = Basis(order, len(v), None if w is None else w.reshape(-1, len(v)))
    *lower, top = as_jet(called(u, line(x, v, basis)), basis).coefficients()
    return (*lower, top[0] if w is not None and w.ndim == 1 else top)


def coefficients(weights: Tensor | Sequence[Any], like: Tensor) -> Tensor:
    """Weights as one tensor; trained ones, among numbers too, stay in the autograd graph."""
    if isinstance(weights, str):
        raise TypeError(f"weights must be numbers or tensors, found {weights!r}")
    nested = isinstance(weights, (list, tuple))
    if nested and not all(isinstance(w, (int, float)) for w in weights):
        return torch.stack([coefficients(each, like) for each in weights])
    return torch.as_tensor(weights, dtype=like.dtype, device=like.device)


def line(x: Tensor, v: Tensor, basis: Basis) -> Jet:
    """The jet of t -> x + t v_d: its higher derivatives vanish."""
    velocity = (v.unsqueeze(1) if v.ndim == 2 else v).expand(-1, *x.shape)
    if basis.order == 1:
        velocity = basis.collapse(velocity)
    zeros = x.new_zeros(()).expand(sum(basis.sizes[2:]), *x.shape)
    jet = Jet(torch.cat([x.unsqueeze(0), velocity, zeros]), basis)
    jet.velocity = v if v.ndim == 2 else None
    return jet


def gradient(u: Function, x: Tensor) -> Tensor:
    """∇u: (N, d) for a scalar field u (N,) or (N, 1), the Jacobian (N, c, d) for (N, c)."""
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
        return taylor(u, x, weights=x.new_ones(x.shape[1]))[-1]
    w = coefficients(weights, x)
    N, d = x.shape
    if w.shape == (d,):
        return taylor(u, x, weights=w)[-1]
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


def roots(w: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Directions v_d and signs s_d with sum_d s_d v_d v_d' = A (or the diagonal matrix of w).

    Positive and negative eigenvalues have directions of their own; parts that vanish have none.
    """
    if diagonal:
        values, vectors = w, torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    else:
        values, vectors = torch.linalg.eigh((w + w.mT) / 2)
    sides = [(values * sign).clamp(min=0).sqrt() for sign in (1, -1)]
    scaled = [(root.unsqueeze(-2) * vectors).movedim(-1, 0) for root in sides]
    kept = [side for side in range(2) if torch.compiler.is_compiling() or sides[side].any()] or [0]
    signs = [values.new_full((len(scaled[side]),), 1.0 - 2.0 * side) for side in kept]
    return torch.cat([scaled[side] for side in kept]), torch.cat(signs)


def hessian(u: Function, x: Tensor) -> Tensor:
    """The second derivatives d_i d_j u: (N, d, d) for a scalar field, (N, c, d, d) for (N, c)."""
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
    if isinstance(axes, int):
        raise TypeError(f"axes must be a tuple, one entry a derivative: ({axes},), not {axes}")
    if not all(isinstance(axis, int) for axis in axes):
        raise TypeError(f"axes must be integers, one a derivative, found {axes!r}")
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
    orders = {len(axes) for axes in terms}
    if len(orders) != 1 or 0 in orders:
        raise ValueError(
            f"terms must have one order >= 1, found {sorted(orders)}: add operators up"
        )
    if any(not 0 <= axis < x.shape[1] for axes in terms for axis in axes):
        raise ValueError(f"axes must be 0 .. {x.shape[1] - 1}, found {sorted(terms)}")
    found = directions_of(terms, x.shape[1])
    directions = torch.tensor(list(found), dtype=x.dtype, device=x.device)
    return taylor(u, x, orders.pop(), directions, list(found.values()))[-1]


def directions_of(terms: Mapping[Axes, Any], d: int) -> dict[Axes, Any]:
    """Integer directions v and weights w with sum_a c_a ξ_a1 ... ξ_ak = sum_v w_v (v . ξ)^k.
    Eq. (7) of docs/mathematics.md.

    Polarisation, ξ_1 ... ξ_k = 1 / (2^(k-1) k!) sum_{s in {1} x {±1}^(k-1)} s_1 ... s_k (s . ξ)^k;
    directions that are multiples of one another are merged.

    Source: Griewank, Utke, Walther (2000) interpolate the same sums.
    """
    weights: defaultdict[Axes, Any] = defaultdict(float)
    for axes, coefficient in terms.items():
        k = len(axes)
        for signs in product((1, -1), repeat=k - 1):
            v = [0] * d
            for axis, sign in zip(axes, (1, *signs), strict=True):
                v[axis] += sign
            primitive, factor = reduced(v)
            scale = math.prod(signs) * factor**k / (2 ** (k - 1) * math.factorial(k))
            weights[primitive] += coefficient * scale
    nonzero = {v: w for v, w in weights.items() if any(v) and (isinstance(w, Tensor) or w)}
    return nonzero or {tuple([1] + [0] * (d - 1)): 0.0}


def reduced(v: list[int]) -> tuple[Axes, int]:
    """v = factor * primitive, whose entries share no divisor and whose first is positive."""
    leading = next((entry for entry in v if entry), 1)
    factor = math.gcd(*v) * (1 if leading > 0 else -1) or 1
    return tuple(entry // factor for entry in v), factor


# --- what can be wrong with the arguments -----------------------------------------------------


def called(u: Function, jet: Jet) -> Any:
    """u(jet); where that fails for what u is, a word on what to pass instead."""
    try:
        return u(jet)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, TypeError) and not takes_one(u):
            raise TypeError(of_one_argument(jet.shape[-1], error)) from error
        if "Jet" in str(error) and "kfac_pinn" not in origin(error):
            raise TypeError(
                f"u calls something that does not take jets: {error}. Jets pass through torch "
                "functions and modules, not through torch.func and vmap, compiled extensions or "
                "tests for isinstance(x, Tensor): call torch functions on the whole batch"
            ) from error
        raise


def of_one_argument(d: int, error: TypeError) -> str:
    """How to call a u of several arguments."""
    parts = "z[:, :1], z[:, 1:]" if d == 2 else ", ".join(f"z[:, {i}:{i + 1}]" for i in range(d))
    return (
        f"u must be a function of one argument, the points (N, {d}), but calling it with them "
        f"failed: {error}. Pass a lambda that takes them apart: lambda z: model({parts})"
    )


def origin(error: BaseException) -> str:
    """The file in which it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def takes_one(u: Function) -> bool:
    """Whether u can be called with one argument, as far as it says."""
    try:
        inspect.signature(getattr(u, "forward", u)).bind(None)
    except TypeError:
        return False
    except ValueError:  # builtins do not say
        return True
    return True


def as_jet(result: Any, basis: Basis) -> Jet:
    """What u returned, if it is one function of x."""
    if isinstance(result, Jet) and result.basis is basis:
        return result
    if isinstance(result, Jet):
        raise ValueError("u returned a jet left over from another call: let it depend on x only")
    if isinstance(result, Detached):
        raise RuntimeError(f"what u returned was detached from x: it {LOST}")
    if isinstance(result, Tensor):
        raise ValueError(
            "u returned a plain tensor, which does not depend on the points that u was given: let "
            "u use its argument, lambda z: model(z), not model(x). A u that is constant says so, "
            "torch.full_like(z[:, :1], c) or c + 0 * z[:, :1]"
        )
    raise TypeError(
        f"u must return one tensor, found {type(result).__name__}: pass a lambda that picks one, "
        f"lambda x: u(x)[{pick(result)}]"
    )


def pick(result: Any) -> str:
    """The key or index of one of several outputs."""
    return repr(next(iter(result), "...")) if isinstance(result, Mapping) else "0"


def check_function(u: Any) -> None:
    """Operators take the function itself."""
    if not callable(u):
        fix = ": pass it uncalled, laplacian(model, x)" if isinstance(u, (Tensor, Jet)) else ""
        raise TypeError(
            f"u must be a function of the points, such as a model, found {type(u).__name__}{fix}"
        )


def check_order(order: Any) -> None:
    """Derivatives are counted."""
    if not isinstance(order, int):
        raise TypeError(f"the order must be an integer >= 1, found {order!r}")


def check_points(x: Any) -> None:
    """Points are a floating tensor (N, d)."""
    if isinstance(x, Jet):
        raise TypeError(
            "an operator of an operator: x is already being differentiated. Write the "
            "composition as one operator: partial(u, x, (i, j, ...)), bilaplacian(u, x) or "
            "homogeneous(u, x, terms)."
        )
    if not isinstance(x, Tensor):
        fix = ": the function comes first, laplacian(u, x)" if callable(x) else ": torch.tensor(x)"
        raise TypeError(f"x must be a floating point tensor (N, d), found {type(x).__name__}{fix}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating point tensor (N, d), found {x.dtype}: x.double()")
    if x.ndim != 2:
        fix = "x[:, None]" if x.ndim == 1 else "x.flatten(0, -2)"
        raise ValueError(f"x must be (N, d), found {tuple(x.shape)}: pass {fix}")


def check_directions(v: Any, x: Tensor) -> None:
    """Directions are (D, d), or (D, N, d)."""
    N, d = x.shape
    if not isinstance(v, Tensor) or not v.is_floating_point():
        found = v.dtype if isinstance(v, Tensor) else type(v).__name__
        raise TypeError(f"directions must be a floating point tensor (D, {d}), found {found}")
    if v.ndim not in (2, 3) or v.shape[1:] not in (x.shape, x.shape[1:]):
        raise ValueError(f"directions must be (D, {d}) or (D, {N}, {d}), found {tuple(v.shape)}")
