"""The algebra of jets on their rows: products, compositions, and their backpropagation.

Rows of order k are written x_k: the value x_0 (1, *shape), x_1 .. x_{K-1} (D, *shape) and the top
order x_K (C, *shape), which is summed over directions with weights w (C, D) or not at all.  The
rows are derivatives along straight lines, so that everything here is calculus in one variable, and
every row is a sum of integer multiples of products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import comb
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kfac_pinn.taylor_mode.basis import Basis

Rows = Sequence[Tensor]
Terms = list[tuple[int, Tensor, Tensor]]
Derivatives = Callable[[Tensor, Tensor, int], list[Tensor]]
Bilinear = Callable[[Tensor, Tensor], Tensor]
# What one block of rows may take: a share of a core's cache, or enough to keep a GPU busy.
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}
MIN_BLOCK = 256  # entries: of less, the calls cost more than the cache saves


def total(terms: Terms, out: Tensor | None = None) -> Tensor:
    """sum_i c_i a_i b_i."""
    (c, a, b), *others = terms
    result = torch.mul(a, b, out=out)
    result = result if c == 1 else result.mul_(c) if out is not None else c * result
    for c, a, b in others:
        result = torch.addcmul(result, a, b, value=c, out=out)
    return result


def leibniz(product: Bilinear, x: Rows, y: Rows, basis: Basis) -> list[Tensor]:
    """The rows z_0 .. z_K of a product z = x y, of any bilinear kind, eq. (5).

    z_k = sum_j binom(k, j) x_j y_{k-j}.  In the top order only the terms 0 < j < K are still to be
    summed over directions: z_K = x_0 y_K + x_K y_0 + sum_{0<j<K} binom(K, j) sum_d w_d x_j y_{K-j}.
    """
    K = basis.order

    def inner(k: int) -> list[Tensor]:
        return [comb(k, j) * product(x[j], y[k - j]) for j in range(1, k)]

    def outer(k: int) -> list[Tensor]:
        return [product(x[0], y[k]), product(x[k], y[0])]

    rows = [add(outer(k) + inner(k)) for k in range(1, K)]
    mixed = [basis.collapse(add(inner(K)))] if K > 1 else []
    return [product(x[0], y[0]), *rows, add(outer(K) + mixed)]


def add(tensors: Sequence[Tensor]) -> Tensor:
    """The sum, without starting from zero."""
    return sum(tensors[1:], tensors[0])


def faa_di_bruno(f: Rows, x: Rows, basis: Basis) -> list[Terms]:
    """The rows y_1 .. y_K of y = f(x) from [f'(x_0), f''(x_0), ...] and [x_1, ..., x_K].
    Eqs. (4), (6) of docs/mathematics.md.

    Derivatives missing at the end of the list vanish.
    y_k = sum_j f^(j) B_kj(x_1, x_2, ...), the partial Bell polynomials.  x_k itself only enters
    through B_k1 = x_k, so the top order stays summed:
    y_K = f' x_K + sum_{j>=2} f^(j) sum_d w_d B_Kj.
    """
    K = basis.order
    bell = bell_polynomials(x[:-1])
    rows = [[(1, f[j - 1], bell[k, j]) for j in range(1, min(k, len(f)) + 1)] for k in range(1, K)]
    top = [(1, f[j - 1], basis.collapse(bell[K, j])) for j in range(2, min(K, len(f)) + 1)]
    return [*rows, [(1, f[0], x[-1]), *top]]


def bell_polynomials(x: Rows) -> dict[tuple[int, int], Tensor]:
    """B_kj(x_1, x_2, ...) for j <= k <= len(x) + 1, except the last B_k1, which is x_k, eq. (4).

    B_k1 = x_k,  B_kj = sum_i binom(k - 1, i - 1) x_i B_{k-i,j-1}.
    """
    bell = {(k, 1): x[k - 1] for k in range(1, len(x) + 1)}
    for j in range(2, len(x) + 2):
        for k in range(j, len(x) + 2):
            products = range(1, k - j + 2)
            bell[k, j] = total(
                [(comb(k - 1, i - 1), x[i - 1], bell[k - i, j - 1]) for i in products]
            )
    return bell


def adjoint(z: Rows, g: Rows, basis: Basis) -> list[Terms]:
    """The orders i >= 1 of the gradient in x of <g, z x>: Leibniz's rule transposed.

    x̄_i = sum_{k>=i} binom(k, i) g_k z_{k-i}; for i < K with the top order brought back to all
    directions, sum_c w_c g_Kc.
    """
    K = basis.order
    wide = [*g[:K], basis.spread(g[K])] if K > 1 else g
    orders = ([(comb(k, i), wide[k], z[k - i]) for k in range(i, K + 1)] for i in range(1, K))
    return [*orders, [(1, g[K], z[0])]]


def dot(g: Rows, z: Rows) -> Tensor:
    """The order 0 of the same gradient: sum_k g_k z_k, summed over directions."""
    first, *others = ((a * b).sum(0, keepdim=True) for a, b in zip(g, z, strict=True))
    return sum(others, first)


def compose(data: Tensor, function: Any, derivatives: Derivatives, basis: Basis) -> Tensor:
    """y = f(x) on stacks of rows, in functions that autograd, compilers and transforms see."""
    x = data.split(basis.sizes)
    y = function(x[0])
    f = derivatives(x[0], y, basis.order)
    return torch.cat([y, *(total(terms) for terms in faa_di_bruno(f, x[1:], basis))])


class Composition(torch.autograd.Function):
    """y = f(x) on stacks of rows with one pass through memory each way, keeping x and y only.

    dy = f'(x) dx is a product of jets: the gradient in x is the adjoint of that product.  The
    entries go in blocks that fit the cache.
    """

    @staticmethod
    def forward(ctx: Any, data: Tensor, function: Any, derivatives: Any, basis: Basis) -> Tensor:
        out = torch.empty_like(data, memory_format=torch.contiguous_format)
        for x, y in zip(blocks(data, basis), blocks(out, basis), strict=True):
            f = derivatives(x[0], y[0].copy_(function(x[0])), basis.order)
            write(y[1:], faa_di_bruno(f, x[1:], basis))
        ctx.save_for_backward(data, out)
        ctx.recipe = function, derivatives, basis
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        data, out = ctx.saved_tensors
        function, derivatives, basis = ctx.recipe
        if torch.is_grad_enabled():  # differentiated again: the same, left to autograd
            out = compose(data, function, derivatives, basis)
            return *torch.autograd.grad(out, data, gradient, create_graph=True), None, None, None
        result = torch.empty_like(out)
        stacks = (blocks(each, basis) for each in (data, out, gradient, result))
        for x, y, g, x_bar in zip(*stacks, strict=True):
            slope, *f = derivatives(x[0], y[0], basis.order + 1)
            f = f or [torch.zeros_like(slope)]
            z = [slope, *(total(terms) for terms in faa_di_bruno(f, x[1:], basis))]
            write(x_bar[1:], adjoint(z, g, basis))
            x_bar[0].copy_(dot(g, z))
        return result, None, None, None


class Shift(torch.autograd.Function):
    """Add a constant to the value, the first of the rows, in place."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, constant: Tensor) -> Tensor:
        data[0] += constant
        ctx.mark_dirty(data)
        ctx.shape = constant.shape
        return data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        own = gradient[0].sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None
        return gradient, own


def blocks(data: Tensor, basis: Basis) -> Iterator[Rows]:
    """The rows, some entries at a time."""
    flat = data.reshape(len(data), -1)
    most = BLOCK_BYTES.get(data.device.type, 2**28)
    step = max(MIN_BLOCK, most // (len(data) * data.element_size()))
    return (part.split(basis.sizes) for part in flat.split(step, 1))


def write(rows: Rows, terms: list[Terms]) -> None:
    """Evaluate sums of products into rows that exist."""
    for row, each in zip(rows, terms, strict=True):
        total(each, out=row)


def transformed(basis: Basis) -> bool:
    """Whether somebody needs to see inside our autograd functions: a compiler, a transform of
    functions, or autograd on its way to the weights.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (basis.weights is not None and basis.weights.requires_grad)
    )
