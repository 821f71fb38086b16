"""y = f(x) to second order written out: the forward Laplacian, and every operator of order two.

Eqs. (4), (6) with K = 2. `series` finds the same sums for any order; here each is formed with as
few passes over the D rows of x_1 as there can be, two forward and three backward:

    y_1 = f' x_1,                 y_2 = f' x_2 + f'' q,      q = sum_d w_d x_1d^2,
    x̄_0 = f' g_0 + f'' (<g_1, x_1> + <g_2, x_2>) + f''' <g_2, q>,
    x̄_1 = f' g_1 + 2 x_1 w f'' g_2,                          x̄_2 = f' g_2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.basis import Basis

__all__ = ["pull", "push", "squares"]

Rows = Sequence[Tensor]


def squares(x: Rows, basis: Basis) -> Tensor:
    """q (C, n), of x_1 (D, n)."""
    return basis.collapse(x[1] * x[1])


def push(f: Rows, x: Rows, q: Tensor, y: Rows) -> None:
    """Writes y_1 and y_2, from [f', f''] (1, n)."""
    torch.mul(f[0], x[1], out=y[1])
    torch.mul(f[0], x[2], out=y[2]).addcmul_(f[1], q)


def pull(f: Rows, g: Rows, x: Rows, q: Tensor, basis: Basis, x_bar: Rows) -> None:
    """Writes x̄_0, x̄_1 and x̄_2, from [f', f'', f'''] (1, n)."""
    slope = inner(g[1], x[1]).add_(inner(g[2], x[2])).mul_(f[1])
    torch.addcmul(slope, f[0], g[0], out=x_bar[0]).addcmul_(f[2], inner(g[2], q))
    torch.mul(f[0], g[1], out=x_bar[1]).addcmul_(x[1], basis.spread(f[1] * g[2]), value=2)
    torch.mul(f[0], g[2], out=x_bar[2])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> (1, n), the sum over rows."""
    product = a * b
    return product if len(product) == 1 else product.sum(0, keepdim=True)
