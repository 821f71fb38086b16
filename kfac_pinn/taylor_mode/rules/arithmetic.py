"""Sums, products, quotients and powers of jets and constants."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet, jets_among, register, rule
from kfac_pinn.taylor_mode.rules.elementary import powers
from kfac_pinn.taylor_mode.rules.registration import (
    Operand,
    aligned,
    composition,
    multiply,
    shift,
    tensor_like,
    value_of,
)

# --- sums -------------------------------------------------------------------------------------


@rule(torch.add, torch.Tensor.__radd__)
def add(x: Operand, y: Operand, *, alpha: float = 1) -> Operand:
    y = y if alpha == 1 else alpha * y
    if not isinstance(y, Jet):
        return shift(x, y)
    if not isinstance(x, Jet):
        return shift(y, x)
    ndim = max(x.ndim, y.ndim)
    return x.like(aligned(x.rows, ndim) + aligned(y.rows, ndim))


@rule(torch.sub, torch.subtract)
def sub(x: Operand, y: Operand, *, alpha: float = 1) -> Operand:
    if isinstance(x, Jet) and isinstance(y, Jet) and alpha == 1:
        ndim = max(x.ndim, y.ndim)
        return x.like(aligned(x.rows, ndim) - aligned(y.rows, ndim))
    return x + (-alpha) * y


@rule(torch.rsub, torch.Tensor.__rsub__)
def rsub(x: Operand, y: Operand, *, alpha: float = 1) -> Operand:
    return sub(y, x, alpha=alpha)


@rule(torch.neg, torch.negative)
def neg(x: Operand) -> Operand:
    return x.like(-x.rows)


@rule(torch.positive)
def positive(x: Operand) -> Operand:
    return x


# --- products ---------------------------------------------------------------------------------


@rule(torch.mul, torch.multiply, torch.Tensor.__rmul__)
def mul(x: Operand, y: Operand) -> Operand:
    if not isinstance(x, Jet):
        return mul(y, x)
    if isinstance(y, Jet):
        ndim = max(x.ndim, y.ndim)
        x, y = x.like(aligned(x.rows, ndim)), y.like(aligned(y.rows, ndim))
        return multiply(torch.mul, x, y)
    return x.like(aligned(x.rows, y.ndim) * y if isinstance(y, Tensor) else x.rows * y)


@rule(torch.div, torch.divide, torch.true_divide)
def div(x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Operand:
    if rounding_mode is not None:  # a step function
        rounded = torch.div(value_of(x), value_of(y), rounding_mode=rounding_mode)
        return Jet.constant(rounded, jets_among([x, y])[0].basis)
    if isinstance(y, Jet):
        return mul(y.reciprocal(), x)
    return x.like(aligned(x.rows, y.ndim) / y if isinstance(y, Tensor) else x.rows / y)


@rule(torch.floor_divide, torch.Tensor.__floordiv__)
def floor_divide(x: Operand, y: Operand) -> Operand:
    return div(x, y, rounding_mode="floor")


@rule(torch.Tensor.__rfloordiv__)
def rfloor_divide(x: Operand, y: Operand) -> Operand:
    return floor_divide(y, x)


@rule(torch.remainder, torch.Tensor.__mod__)
def remainder(x: Operand, y: Operand) -> Operand:
    return x - y * div(x, y, rounding_mode="floor")


@rule(torch.Tensor.__rmod__)
def rremainder(x: Operand, y: Operand) -> Operand:
    return remainder(y, x)


@rule(torch.fmod)
def fmod(x: Operand, y: Operand) -> Operand:
    return x - y * div(x, y, rounding_mode="trunc")


@rule(torch.frac)
def frac(x: Operand) -> Operand:
    return fmod(x, 1)


@rule(torch.Tensor.__rtruediv__)
def rdiv(x: Operand, y: Operand) -> Operand:
    return div(y, x)


@rule(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot)
def matmul(x: Operand, y: Operand) -> Operand:
    ndim = max(x.ndim, y.ndim)
    if min(x.ndim, y.ndim) >= 2:  # matrices, maybe in batches: rows are one more batch axis
        x, y = (e.like(aligned(e.rows, ndim)) if isinstance(e, Jet) else e for e in (x, y))
        return multiply(torch.matmul, x, y)
    return multiply(over_rows(torch.matmul), x, y)


@rule(torch.Tensor.__rmatmul__)
def rmatmul(x: Operand, y: Operand) -> Operand:
    return matmul(y, x)


@rule(torch.linalg.multi_dot, torch.chain_matmul)
def multi_dot(*matrices: Any) -> Operand:
    return functools.reduce(matmul, unpack(matrices))


@rule(torch.linalg.matrix_power)
def matrix_power(x: Operand, n: int) -> Operand:
    if n <= 0:
        return torch.linalg.matrix_power(torch.linalg.inv(x), -n) if n else identity(x)
    return functools.reduce(matmul, [x] * n)


def identity(x: Jet) -> Jet:
    """The identity matrices of the shape of x."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return Jet.constant(eye.expand(x.shape), x.basis)


def bilinear_over_rows(*functions: Any) -> None:
    """Register products of the first two arguments, of any kind."""
    register(lambda function: functools.partial(_product, function), *functions)


def _product(function: Any, x: Operand, y: Operand, *args: Any, **kwargs: Any) -> Operand:
    """A rule of `bilinear_over_rows`."""
    return multiply(over_rows(lambda a, b: function(a, b, *args, **kwargs)), x, y)


bilinear_over_rows(torch.cross, torch.linalg.cross, torch.kron, torch.vdot, torch.linalg.vecdot)


@rule(torch.inner)
def inner(x: Operand, y: Operand) -> Operand:
    return multiply(over_rows(torch.inner), x, y)


@rule(torch.outer, torch.ger)
def outer(x: Operand, y: Operand) -> Operand:
    return x[:, None] * y


@rule(torch.tensordot)
def tensordot(x: Operand, y: Operand, dims: Any = 2, out: None = None) -> Operand:
    return multiply(over_rows(lambda a, b: torch.tensordot(a, b, dims=dims)), x, y)


@rule(torch.einsum)
def einsum(equation: str, *operands: Any) -> Operand:
    x, *others = unpack(operands)
    inputs, out = indices_of(spelled_out(equation, [x, *others]))
    if not others:
        return x.like(torch.einsum(f"...{inputs[0]}->...{out}", x.rows))
    a, b, *rest = inputs
    kept = "".join(i for i in dict.fromkeys(a + b) if i in out + "".join(rest)) if rest else out
    product = contract(f"...{a},...{b}->...{kept}", x, others[0])
    return einsum(",".join([kept, *rest]) + "->" + out, product, *others[1:]) if rest else product


def contract(equation: str, x: Operand, y: Operand) -> Any:
    """An einsum of two operands, whose dots stand for the rows."""
    if not jets_among([x, y]):
        return torch.einsum(equation, x, y)
    return multiply(lambda a, b: torch.einsum(equation, a, b), x, y)


def spelled_out(equation: str, operands: Sequence[Any]) -> str:
    """An equation with letters in place of its dots, which stand for leading dimensions."""
    if "..." not in equation:
        return equation
    inputs, *output = equation.replace(" ", "").replace("...", ".").split("->")
    out = output[0] if output else "." + indices_of(inputs.replace(".", ""))[1]
    named = inputs.split(",")
    counts = [x.ndim + 1 - len(i) for i, x in zip(named, operands, strict=True) if "." in i]
    letters = [c for c in string.ascii_letters if c not in equation][: max(counts)]
    dots = iter("".join(letters[len(letters) - n :]) for n in counts)
    spelled = [i.replace(".", next(dots)) if "." in i else i for i in named]
    return ",".join(spelled) + "->" + out.replace(".", "".join(letters))


def indices_of(equation: str) -> tuple[list[str], str]:
    """The indices of each operand and of the result: those given, else those met once, sorted."""
    inputs, *output = equation.replace(" ", "").split("->")
    once = sorted(i for i in {*inputs} - {","} if inputs.count(i) == 1)
    return inputs.split(","), output[0] if output else "".join(once)


def unpack(operands: Sequence[Any]) -> Sequence[Any]:
    """Operands may come as one list."""
    return operands[0] if isinstance(operands[0], (list, tuple)) else operands


def over_rows(product: Any) -> Any:
    """A bilinear function of two tensors, on rows."""

    def apply(a: Tensor, b: Tensor) -> Tensor:
        count = max(len(a), len(b))
        rows = (each.expand(count, *each.shape[1:]) for each in (a, b))
        return torch.vmap(product)(*rows)

    return apply


@rule(F.bilinear)
def bilinear(x: Operand, y: Operand, weight: Tensor, bias: Tensor | None = None) -> Operand:
    z = torch.einsum("oij,...j->...oi", weight, y)
    z = torch.einsum("...i,...oi->...o", x, z)
    return z if bias is None else z + bias


@rule(torch.addmm, torch.baddbmm, torch.addmv)
def addmm(x: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Operand:
    product = alpha * torch.matmul(a, b)
    return beta * x + product if beta else product


@rule(torch.addbmm)
def addbmm(x: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Operand:
    product = alpha * torch.sum(torch.matmul(a, b), 0)
    return beta * x + product if beta else product


@rule(torch.addr)
def addr(x: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Operand:
    product = alpha * torch.outer(a, b)
    return beta * x + product if beta else product


@rule(torch.addcmul)
def addcmul(x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Operand:
    return x + value * a * b


@rule(torch.addcdiv)
def addcdiv(x: Operand, a: Operand, b: Operand, *, value: float = 1) -> Operand:
    return x + value * a / b


@rule(torch.lerp)
def lerp(x: Operand, y: Operand, weight: Any) -> Operand:
    return x + weight * (y - x)


@rule(torch.prod)
def prod(x: Operand, dim: int | None = None, keepdim: bool = False) -> Operand:
    factors = torch.unbind(x.reshape(-1) if dim is None else x, 0 if dim is None else dim)
    product = math.prod(factors[1:], start=factors[0])
    return product.unsqueeze(dim) if keepdim and dim is not None else product


# --- powers -----------------------------------------------------------------------------------


@rule(torch.pow, torch.Tensor.pow, torch.Tensor.__pow__, torch.float_power)
def power(x: Operand, exponent: Operand) -> Operand:
    if isinstance(exponent, Jet):
        base: Operand = x if isinstance(x, Jet) else tensor_like(x, exponent)
        return base.log().mul(exponent).exp()
    ndim = exponent.ndim if isinstance(exponent, Tensor) else 0
    return composition(torch.pow, power_derivatives, x.like(aligned(x.rows, ndim)), [exponent])


def power_derivatives(v: Tensor, y: Tensor, order: int, exponent: Any) -> list[Tensor]:
    """Those of `powers`, as a composition wants them."""
    return powers(v, exponent, order)


@rule(torch.Tensor.__rpow__)
def rpow(x: Operand, base: Any) -> Operand:
    return power(base, x)


@rule(torch.ldexp)
def ldexp(x: Operand, exponent: Operand) -> Operand:
    return x * torch.exp2(exponent.to(x.dtype) if isinstance(exponent, Tensor) else exponent)


@rule(torch.logaddexp)
def logaddexp(x: Operand, y: Operand) -> Operand:
    return y - F.logsigmoid(y - x)


@rule(torch.logaddexp2)
def logaddexp2(x: Operand, y: Operand) -> Operand:
    return logaddexp(x * math.log(2), y * math.log(2)) / math.log(2)


@rule(torch.hypot)
def hypot(x: Operand, y: Operand) -> Operand:
    return torch.sqrt(x * x + y * y)


@rule(torch.atan2, torch.arctan2)
def atan2(y: Operand, x: Operand) -> Operand:
    y0, x0 = value_of(y).detach(), value_of(x).detach()
    r = torch.hypot(x0, y0)
    c, s = x0 / r, y0 / r  # rotated by the angle at the point, the tangent has no pole nearby
    return torch.atan((c * y - s * x) / (c * x + s * y)) + torch.atan2(y0, x0)


# --- complex numbers, as Fourier transforms give them -------------------------------------------


@rule(torch.abs, torch.absolute)
def absolute(x: Operand) -> Operand:
    if x.is_complex():
        return hypot(x.real, x.imag)
    return composition(torch.abs, lambda v, y, order: [torch.sign(v)], x)


@rule(torch.angle)
def angle(x: Operand) -> Operand:
    return (
        torch.atan2(x.imag, x.real)
        if x.is_complex()
        else Jet.constant(torch.angle(x.value), x.basis)
    )


@rule(torch.sgn)
def sgn(x: Operand) -> Operand:
    return x / absolute(x) if x.is_complex() else torch.sign(x)


@rule(torch.polar)
def polar(length: Operand, angle: Operand) -> Operand:
    return torch.complex(length * torch.cos(angle), length * torch.sin(angle))
