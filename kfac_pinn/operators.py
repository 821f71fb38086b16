"""Differential operators of a function u of points x (N, d), each one Taylor-mode forward pass."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_pinn import rules  # noqa: F401  (fills the table)
from kfac_pinn.jets import Basis, Jet

Function = Callable[[Any], Any]


def taylor(
    u: Function,
    x: Tensor,
    order: int = 2,
    directions: Tensor | None = None,
    weights: Tensor | Sequence[float] | None = None,
) -> tuple[Tensor, ...]:
    """Value and derivatives of u along directions: (u, d/dt u, ..., d^K/dt^K u) of u(x + t v_d), t = 0.

    ``x`` (N, d); ``directions`` (D, d) or per point (D, N, d), the unit vectors by default.  Returns
    the value (N, *), orders 1..K-1 (D, N, *) and the top order: (D, N, *) without ``weights``,
    sum_d w_d (...) of shape (N, *) for weights (D,), and (C, N, *) for weights (C, D).
    """
    v = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) if directions is None else directions
    w = None if weights is None else torch.as_tensor(weights, dtype=x.dtype, device=x.device)
    basis = Basis(order, v.shape[0], w if w is None else w.reshape(-1, v.shape[0]))
    result = u(line(x, v, basis))
    jet = result if isinstance(result, Jet) else Jet.constant(result, basis)
    *lower, top = jet.coefficients()
    return (*lower, top[0] if w is not None and w.ndim == 1 else top)


def line(x: Tensor, v: Tensor, basis: Basis) -> Jet:
    """The jet of t -> x + t v_d: its higher derivatives vanish."""
    velocity = (v.unsqueeze(1) if v.ndim == 2 else v).expand(-1, *x.shape)
    if basis.order == 1:
        velocity = basis.collapse(velocity)
    zeros = x.new_zeros(1, 1, 1).expand(sum(basis.sizes[2:]), *x.shape)
    return Jet(torch.cat([x.unsqueeze(0), velocity, zeros]), basis)


def gradient(u: Function, x: Tensor) -> Tensor:
    """The gradient: (N, d) for a scalar field u (N,) or (N, 1); (N, c, d) for a vector field."""
    first = taylor(u, x, 1)[1].movedim(0, -1)
    return first.squeeze(1) if first.ndim == 3 and first.shape[1] == 1 else first


def laplacian(u: Function, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """The Laplacian sum_i w_i d_i^2 u, of the shape of u(x); w (d,) is one by default."""
    w = x.new_ones(x.shape[1]) if weights is None else weights
    return taylor(u, x, 2, weights=w)[-1]
