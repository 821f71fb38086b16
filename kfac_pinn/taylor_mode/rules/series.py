"""The algebra of jets on their rows: products, compositions, and their backpropagation.

Rows of order k are written x_k: the value x_0 (1, *shape), x_1 .. x_{K-1} (D, *shape) and the top
order x_K (C, *shape), which is summed over directions with weights w (C, D) or not at all.  The
rows are derivatives along straight lines, so that everything here is calculus in one variable, and
every row is a sum of integer multiples of products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from math import comb
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kfac_pinn.allocation import reuse_freed_memory
from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.rules import second_order
from kfac_pinn.threads import GRAIN

Rows = Sequence[Tensor]
Terms = list[tuple[int, Tensor, Tensor]]
Derivatives = Callable[[Tensor, Tensor, int], list[Tensor]]
Bilinear = Callable[[Tensor, Tensor], Tensor]
# What one block of rows may take: a share of a core's cache, or enough to keep a GPU busy.
BLOCK_BYTES = {"cpu": 2**21, "cuda": 2**28}
MIN_BLOCK = 256  # entries: of less, the calls cost more than the cache saves
SHARE = 2 * GRAIN  # entries a thread: of less, several cost more than they save
FEW_ROWS = 16  # so many are summed one by one, in the cache; of more the calls cost more


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


def bell_polynomials(x: Rows, basis: Basis, top: Rows = ()) -> list[list[Tensor]]:
    """B_k1 .. B_kk of [x_1, ..., x_K] for k = 1 .. K, the last of them summed over directions.
    Eqs. (4), (6) of docs/mathematics.md.

    B_k1 = x_k,  B_kj = sum_i binom(k - 1, i - 1) x_i B_{k-i,j-1}.

    Args:
        top: sum_d w_d B_Kj for j = 2 .. K where they are known.
    """
    K = basis.order
    bell: list[list[Tensor]] = []
    for k in range(1, K):
        bell.append([x[k - 1], *(total(recursion(k, j, x, bell)) for j in range(2, k + 1))])
    top = top or [summed(recursion(K, j, x, bell), basis) for j in range(2, K + 1)]
    return [*bell, [x[K - 1], *top]]


def recursion(k: int, j: int, x: Rows, bell: list[list[Tensor]]) -> Terms:
    """The recursion for B_kj, as a sum of products."""
    orders = range(1, k - j + 2)
    return [(comb(k - 1, i - 1), x[i - 1], bell[k - i - 1][j - 2]) for i in orders]


def faa_di_bruno(f: Rows, bell: list[list[Tensor]]) -> list[Terms]:
    """The rows y_1, y_2, ... of y = f(x), y_k = sum_j f^(j) B_kj, from [f', f'', ...].
    Eqs. (4), (6) of docs/mathematics.md.

    Derivatives missing at the end of the list vanish.
    x_k itself only enters through B_k1 = x_k, so the top order stays summed:
    y_K = f' x_K + sum_{j>=2} f^(j) sum_d w_d B_Kj.
    """
    # zip ends with the shorter: f has no more derivatives, or B_kj no more j.
    return [[(1, *pair) for pair in zip(f, each, strict=False)] for each in bell]


def adjoint(z: Rows, g: Rows, basis: Basis) -> list[Terms]:
    """The orders i >= 1 of the gradient in x of <g, z x>: Leibniz's rule transposed.

    x̄_i = sum_{k>=i} binom(k, i) g_k z_{k-i}; for i < K with the top order brought back to all
    directions, sum_c w_c g_Kc.  z_K is not needed.
    """
    K = basis.order
    wide = [*g[:K], basis.spread(g[K])] if K > 1 else g
    last = len(z) - 1  # higher orders vanish
    orders = (
        [(comb(k, i), wide[k], z[k - i]) for k in range(i, min(K, i + last) + 1)]
        for i in range(1, K)
    )
    return [*orders, [(1, g[K], z[0])]]


def gradient_in_value(f: Rows, g: Rows, bell: list[list[Tensor]]) -> Terms:
    """The order 0 of the gradient in x of <g, f(x)>: f' g_0 + sum_j f^(j+1) sum_k <g_k, B_kj>.

    <,> sums over directions; f is [f', f'', ...].
    """
    K = len(bell)
    sums = ([inner(g[k], bell[k - 1][j - 1]) for k in range(j, K + 1)] for j in range(1, K + 1))
    # f ends where its derivatives vanish.
    return [
        (1, f[0], g[0]),
        *((1, slope, add(each)) for slope, each in zip(f[1:], sums, strict=False)),
    ]


def summed(terms: Terms, basis: Basis) -> Tensor:
    """sum_d w_d sum_i c_i a_id b_id, the rows of a top order."""
    if isinstance(basis.weights, (int, float)):
        return basis.weights * add([c * inner(a, b) for c, a, b in terms])
    return basis.collapse(total(terms))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """sum_d a_d b_d, shape (1, n), for (D, n)."""
    if len(a) > FEW_ROWS:
        return (a * b).sum(0, keepdim=True)
    (a, b), *others = zip(a.split(1), b.split(1), strict=True)
    result = a * b
    for a, b in others:
        result = torch.addcmul(result, a, b)
    return result


def compose(data: Tensor, function: Any, derivatives: Derivatives, basis: Basis) -> Tensor:
    """y = f(x) on stacks of rows, in functions that autograd, compilers and transforms see."""
    x = data.split(basis.sizes)
    y = function(x[0])
    f = derivatives(x[0], y, basis.order)
    rows = faa_di_bruno(f, bell_polynomials(x[1:], basis))
    return torch.cat([y, *(total(terms) for terms in rows)])


class Composition(torch.autograd.Function):
    """y = f(x) on stacks of rows with one pass through memory each way.

    dy = f'(x) dx is a product of jets: the gradient in x is the adjoint of that product.  The
    entries go in blocks that fit the cache.  Kept are x, y and, where the top order is summed over
    directions, the sums: few numbers, for which all directions would be read again.
    """

    @staticmethod
    def forward(ctx: Any, data: Tensor, function: Any, derivatives: Any, basis: Basis) -> Tensor:
        reuse_freed_memory()
        out = torch.empty_like(data, memory_format=torch.contiguous_format)
        sums = None
        if basis.weights is not None and basis.order > 1 and ctx.needs_input_grad[0]:
            # C numbers an entry in place of D: the backward pass need not sum over directions again
            sums = data.new_empty((basis.order - 1) * basis.sizes[-1], *data.shape[1:])
        stacks = blocks(data, basis), blocks(out, basis), blocks_of_sums(sums, data, basis)
        for x, y, kept in zip(*stacks, strict=False):
            f = derivatives(x[0], y[0].copy_(function(x[0])), basis.order)
            for row, each in zip(kept, push(f, x, y, basis), strict=False):
                row.copy_(each)
        # The derivatives of f are computed again: to keep them would take K times the memory
        ctx.save_for_backward(data, out, sums)
        ctx.recipe = function, derivatives, basis
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        data, out, sums = ctx.saved_tensors
        function, derivatives, basis = ctx.recipe
        if torch.is_grad_enabled():  # differentiated again: the same, left to autograd
            out = compose(data, function, derivatives, basis)
            return *torch.autograd.grad(out, data, gradient, create_graph=True), None, None, None
        if is_batched(gradient):  # several rows of J in one pass: nothing may be written in place
            x, y, g = (each.split(basis.sizes) for each in (data, out, gradient))
            terms = transposed(derivatives(x[0], y[0], basis.order + 1), g, x, (), basis)
            return torch.cat([total(each) for each in terms]), None, None, None
        result = torch.empty_like(out)
        stacks = (blocks(each, basis) for each in (data, out, gradient, result))
        kept = blocks_of_sums(sums, data, basis)
        for x, y, g, x_bar, top in zip(*stacks, kept, strict=False):
            # f' along x is a product with dx: one order more of f, and none of x
            pull(derivatives(x[0], y[0], basis.order + 1), g, x, top, basis, x_bar)
        return result, None, None, None


def push(f: Rows, x: Rows, y: Rows, basis: Basis) -> Rows:
    """Writes y_1 .. y_K of y = f(x); returns the sums of the top order, for `pull`."""
    if basis.order == len(f) == 2:
        q = second_order.squares(x, basis)
        second_order.push(f, x, q, y)
        return [q]
    bell = bell_polynomials(x[1:], basis)
    write(y[1:], faa_di_bruno(f, bell))
    return bell[-1][1:]


def pull(f: Rows, g: Rows, x: Rows, top: Rows, basis: Basis, x_bar: Rows) -> None:
    """Writes the gradient in x of <g, f(x)>, with the sums of the top order where they are kept."""
    if basis.order == 2 and len(f) == 3:
        q = top[0] if top else second_order.squares(x, basis)
        return second_order.pull(f, g, x, q, basis, x_bar)
    return write(x_bar, transposed(f, g, x, top, basis))


def transposed(f: Rows, g: Rows, x: Rows, top: Rows, basis: Basis) -> list[Terms]:
    """The orders of that gradient."""
    bell = bell_polynomials(x[1:], basis, top)
    z = [f[0], *(total(terms) for terms in faa_di_bruno(f[1:], bell[:-1]) if terms)]
    return [gradient_in_value(f, g, bell), *adjoint(z, g, basis)]


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
        # The constant reaches the value alone
        own = gradient[0].sum_to_size(ctx.shape) if ctx.needs_input_grad[1] else None
        return gradient, own


def blocks(data: Tensor, basis: Basis) -> Iterator[Rows]:
    """The rows, some entries at a time."""
    return (part.split(basis.sizes) for part in data.reshape(len(data), -1).split(entries(data), 1))


def blocks_of_sums(sums: Tensor | None, data: Tensor, basis: Basis) -> Iterator[Rows]:
    """The sums of the top order that belong to the same entries, by j; nothing if not kept."""
    if sums is None:
        return repeat(())
    return (
        part.split(basis.sizes[-1]) for part in sums.reshape(len(sums), -1).split(entries(data), 1)
    )


def entries(data: Tensor) -> int:
    """How many entries of a stack go together."""
    most = BLOCK_BYTES.get(data.device.type, 2**28) // (len(data) * data.element_size())
    threads = torch.get_num_threads() if data.device.type == "cpu" else 1
    # Of many rows a thread has enough in fewer entries, and blocks are memory
    return max(MIN_BLOCK, most, threads * min(SHARE, 4 * most) if threads > 1 else 0)


def write(rows: Rows, terms: list[Terms]) -> None:
    """Evaluate sums of products into rows that exist."""
    for row, each in zip(rows, terms, strict=True):
        total(each, out=row)


BATCHED = ("is_legacy_batchedtensor", "is_batchedtensor")


def is_batched(gradient: Tensor) -> bool:
    """Whether it stands for many, as in a backward pass with `is_grads_batched`."""
    # By the older of torch's two ways, so far; these names are not promised to stay
    looks = (getattr(torch._C._functorch, name, None) for name in BATCHED)
    return any(look is not None and look(gradient) for look in looks)


def transformed(basis: Basis) -> bool:
    """Whether somebody needs to see inside our autograd functions: a compiler, a transform of
    functions, or autograd on its way to the weights.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (isinstance(basis.weights, Tensor) and basis.weights.requires_grad)
    )
