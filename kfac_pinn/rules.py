"""How each torch function acts on jets: one table, :data:`kfac_pinn.jets.RULES`.

Three kinds: *elementwise* functions, given by their derivatives (Faa di Bruno's formula does the
rest), functions *linear* in one tensor (the same function on every coefficient), and the others,
written with functions that have rules already.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.jets import Basis, Jet, basis_of, rule

Derivatives = Callable[..., list[Tensor]]


# --- functions of one variable: Faa di Bruno ---------------------------------------------------


def elementwise(*functions: Callable[..., Tensor]) -> Callable[[Derivatives], Derivatives]:
    """Register functions that act on each entry by their derivatives.

    The decorated function is called as ``derivatives(v, y, order, *args)`` with the argument v, the
    value y = f(v) and the other arguments of f; it returns the ``order`` tensors f'(v), f''(v), ...
    """

    def register(derivatives: Derivatives) -> Derivatives:
        @rule(*functions)
        def apply(x: Jet, *args: Any, **kwargs: Any) -> Jet:
            v, *xs = x.split()
            y = functions[0](v, *args, **kwargs)
            f = derivatives(v, y, x.basis.order, *args, **kwargs)
            return Jet(torch.cat([y, *compose(f, xs, x.basis)]), x.basis)

        return derivatives

    return register


def compose(f: list[Tensor], x: Sequence[Tensor], basis: Basis) -> list[Tensor]:
    """Derivatives of f(x(t)), f = [f', f'', ...], x = [x', x'', ...]: Faa di Bruno's formula.

    y_k = sum_j f^(j) B_kj(x_1, ...), with the partial Bell polynomials B_kj.  Only j = 1 reads
    x_k, so the summed top order stays summed: y_K = f' x_K + sum_{j>=2} f^(j) sum_d w_d B_Kj.
    """
    K = basis.order
    bell = bell_polynomials(x[:-1], K)
    rows = [sum_of(f[j - 1] * bell[k, j] for j in range(1, k + 1)) for k in range(1, K)]
    top = (f[j - 1] * basis.collapse(bell[K, j]) for j in range(2, K + 1))
    return [*rows, sum_of([f[0] * x[-1], *top])]


def bell_polynomials(x: Sequence[Tensor], order: int) -> dict[tuple[int, int], Tensor]:
    """All B_kj(x_1, x_2, ...) up to ``order`` that need no x_order.

    B_k1 = x_k,  B_kj = sum_i binom(k-1, i-1) x_i B_{k-i,j-1}.
    """
    bell = {(k, 1): x[k - 1] for k in range(1, order)}
    for j in range(2, order + 1):
        for k in range(j, order + 1):
            bell[k, j] = sum_of(
                scaled(math.comb(k - 1, i - 1), x[i - 1] * bell[k - i, j - 1])
                for i in range(1, k - j + 2)
            )
    return bell


def scaled(factor: int, tensor: Tensor) -> Tensor:
    """The multiple, without a copy for one."""
    return tensor if factor == 1 else factor * tensor


def sum_of(terms: Any) -> Any:
    """The sum, without starting from zero."""
    first, *others = terms
    for each in others:
        first = first + each
    return first


@elementwise(torch.tanh)
def tanh(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    return polynomials_of(y, (1, 0, -1), order)


@elementwise(torch.sigmoid)
def sigmoid(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    return polynomials_of(y, (0, 1, -1), order)


@elementwise(torch.exp)
def exp(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    return [y] * order


@elementwise(torch.sin)
def sin(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    return cycle([torch.cos(v), -y], order)


@elementwise(torch.cos)
def cos(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    return cycle([-torch.sin(v), -y], order)


def cycle(pair: list[Tensor], order: int) -> list[Tensor]:
    """The derivatives of functions with f'' = -f."""
    return [(-1) ** (k // 2) * pair[k % 2] for k in range(order)]


def polynomials_of(y: Tensor, slope: tuple[int, ...], order: int) -> list[Tensor]:
    """Derivatives of a function with y' = p(y): (q(y))' = q'(y) p(y), coefficients in rising order."""
    polynomial, found = list(slope), []
    for _ in range(order):
        found.append(horner(polynomial, y))
        polynomial = product(derivative(polynomial), list(slope))
    return found


def horner(coefficients: list[int], y: Tensor) -> Tensor:
    """Sum of c_k y^k."""
    total = coefficients[-1] * y
    for c in coefficients[-2:0:-1]:
        total = (total + c) * y if c else total * y
    return total + coefficients[0] if coefficients[0] else total


def derivative(p: list[int]) -> list[int]:
    """The derivative of a polynomial."""
    return [k * c for k, c in enumerate(p)][1:]


def product(p: list[int], q: list[int]) -> list[int]:
    """The product of two polynomials."""
    out = [0] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            out[i + j] += a * b
    return out




@rule(torch.square)
def square(x: Jet) -> Jet:
    return x * x


# --- sums and products: Leibniz ----------------------------------------------------------------


def aligned(data: Tensor, ndim: int) -> Tensor:
    """Rows (S, *shape) whose shape has ``ndim`` dimensions, for broadcasting."""
    return data.reshape(data.shape[:1] + (1,) * (ndim + 1 - data.ndim) + data.shape[1:])


def stack_of(x: Any, basis: Basis, ndim: int) -> Tensor:
    """The rows of a jet, or of a constant as a jet."""
    jet = x if isinstance(x, Jet) else Jet.constant(x, basis)
    return aligned(jet.data, ndim)


@rule(torch.add)
def add(x: Any, y: Any, *, alpha: float = 1) -> Jet:
    y = y if alpha == 1 else y * alpha
    if not isinstance(x, Jet):
        return add(y, x)
    if isinstance(y, Jet):
        basis, ndim = basis_of([x, y]), max(x.ndim, y.ndim)
        return Jet(aligned(x.data, ndim) + aligned(y.data, ndim), basis)
    return add_constant(x, y)


def add_constant(x: Jet, c: Any) -> Jet:
    """Shift the value; the derivatives are broadcast if c is larger."""
    value, *derivatives = x.split()
    value = value[0] + c
    shape = value.shape
    rows = [aligned(each, len(shape)).expand(-1, *shape) for each in derivatives]
    return Jet(torch.cat([value.unsqueeze(0), *rows]), x.basis)


@rule(torch.sub)
def sub(x: Any, y: Any, *, alpha: float = 1) -> Jet:
    return x + (-alpha) * y


@rule(torch.rsub, torch.Tensor.__rsub__)
def rsub(x: Any, y: Any) -> Jet:
    return y + (-x)


@rule(torch.neg)
def neg(x: Jet) -> Jet:
    return Jet(-x.data, x.basis)


@rule(torch.mul, torch.Tensor.__rmul__)
def mul(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        return mul(y, x)
    if isinstance(y, Jet):
        ndim = max(x.ndim, y.ndim)
        return multiply(torch.mul, aligned(x.data, ndim), aligned(y.data, ndim), basis_of([x, y]))
    if isinstance(y, Tensor):
        return Jet(aligned(x.data, y.ndim) * y, x.basis)
    return Jet(x.data * y, x.basis)


def multiply(bilinear: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, basis: Basis) -> Jet:
    """Leibniz's rule for a bilinear function of two stacks of rows.

    z_k = sum_j binom(k, j) x_j y_{k-j}; the summed top order is
    z_K = x_0 y_K + x_K y_0 + sum_{0<j<K} binom(K, j) sum_d w_d x_j y_{K-j}.
    """
    a, b, K = x.split(basis.sizes), y.split(basis.sizes), basis.order

    def inner(k: int) -> list[Tensor]:
        return [scaled(math.comb(k, j), bilinear(a[j], b[k - j])) for j in range(1, k)]

    def outer(k: int) -> Tensor:
        return bilinear(a[0], b[k]) + bilinear(a[k], b[0])

    rows = [sum_of([outer(k), *inner(k)]) for k in range(1, K)]
    top = sum_of([outer(K), *([basis.collapse(sum_of(inner(K)))] if K > 1 else [])])
    return Jet(torch.cat([bilinear(a[0], b[0]), *rows, top]), basis)


# --- linear functions: every coefficient alike ---------------------------------------------------


@rule(F.linear)
def linear_layer(x: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    out = Jet(F.linear(x.data, weight), x.basis)
    return out if bias is None else add_constant(out, bias)


@rule(torch.matmul, torch.mm)
def matmul(x: Any, y: Any) -> Jet:
    if isinstance(x, Jet) and not isinstance(y, Jet):
        return Jet(x.data @ y, x.basis)
    raise NotImplementedError


@rule(torch.Tensor.__getitem__)
def getitem(x: Jet, index: Any) -> Jet:
    index = index if isinstance(index, tuple) else (index,)
    return Jet(x.data[(slice(None), *index)], x.basis, x.memory)


@rule(torch.cat)
def cat(tensors: Sequence[Any], dim: int = 0) -> Jet:
    basis = basis_of(tensors)
    ndim = max(each.ndim for each in tensors)
    rows = [stack_of(each, basis, ndim) for each in tensors]
    return Jet(torch.cat(rows, dim + 1 if dim >= 0 else dim), basis)


@rule(torch.sum)
def total(x: Jet, dim: Any = None, keepdim: bool = False) -> Jet:
    dim = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    return Jet(x.data.sum([d + 1 if d >= 0 else d for d in dim], keepdim), x.basis)


@rule(torch.squeeze)
def squeeze(x: Jet, dim: int) -> Jet:
    return Jet(x.data.squeeze(dim + 1 if dim >= 0 else dim), x.basis, x.memory)


@rule(torch.unsqueeze)
def unsqueeze(x: Jet, dim: int) -> Jet:
    return Jet(x.data.unsqueeze(dim + 1 if dim >= 0 else dim), x.basis, x.memory)
