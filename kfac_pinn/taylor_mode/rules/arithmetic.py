"""Sums, products, quotients and powers of jets and constants."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet, jets_among
from kfac_pinn.taylor_mode.rule_table import rule
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
        # x^y = exp(y log x): the only form in which the exponent may depend on the points
        base: Operand = x if isinstance(x, Jet) else tensor_like(x, exponent)
        return base.log().mul(exponent).exp()
    ndim = exponent.ndim if isinstance(exponent, Tensor) else 0
    rows = aligned(x.rows, ndim)
    rows = rows.to(torch.result_type(x.value, exponent))
    return composition(torch.pow, power_derivatives, x.like(rows), [exponent])


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
    # log(1 + e^(x - y)) by a function that does not overflow
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
