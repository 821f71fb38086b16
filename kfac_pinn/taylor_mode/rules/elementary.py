"""Elementary functions by their derivatives, to any order.

Each takes the argument v, the value y = f(v), the order K and the arguments of the torch function,
and returns [f'(v), ..., f^(K)(v)] (fewer where the others vanish), mostly by the differential
equation the function solves.
"""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rules.registration import elementwise
from kfac_pinn.taylor_mode.rules.series import total

Derivatives: TypeAlias = list[Tensor]


# --- ways to get at derivatives ---------------------------------------------------------------


def riccati(y: Tensor, equation: tuple[int, int, int], order: int) -> Derivatives:
    """Of a solution of y' = a + b y + c y^2, by Leibniz's rule for y^2."""
    a, b, c = equation
    rows = [y]
    for n in range(order):
        pairs = [(j, n - j) for j in range(n // 2 + 1)]  # each pair j < n - j counts twice
        square = total([(c * math.comb(n, j) * (1 + (j < i)), rows[j], rows[i]) for j, i in pairs])
        square = square + b * rows[n] if b else square
        rows.append(square + a if n == 0 and a else square)
    return rows[1:]


def cycle(signs: tuple[int, ...], pair: tuple[Tensor, Tensor], order: int) -> Derivatives:
    """Of a solution of f'' = f or -f: two tensors in turn, with signs in turn."""
    signed = {(s, k): pair[k] if s > 0 else -pair[k] for s in {*signs} for k in (0, 1)}
    return [signed[signs[k % len(signs)], k % 2] for k in range(order)]


def powers(v: Tensor, exponent: Any, order: int) -> Derivatives:
    """Of v^p: p (p - 1) ... (p - k + 1) v^(p - k), ending where that is zero; 0 / 0 is zero."""
    rows: Derivatives = []
    factor = exponent
    for k in range(1, order + 1):
        if isinstance(factor, Tensor):
            v = torch.where((v == 0) & (factor == 0), 1, v)
        elif factor == 0:
            break
        rows.append(factor * torch.pow(v, exponent - k))
        factor = factor * (exponent - k)
    return rows or [torch.zeros_like(v)]


def divided(y: Tensor, v: Tensor, exponent: float, order: int) -> Derivatives:
    """Of y = v^p without another power: f^(k) = f^(k-1) (p - k + 1) / v."""
    inverse, rows = 1 / v, [y]
    for k in range(order):
        rows.append((exponent - k) * rows[-1] * inverse)
    return rows[1:]


def times_argument(v: Tensor, f: Derivatives) -> Derivatives:
    """Of v f(v), from [f, f', ...]: v f^(k) + k f^(k-1)."""
    return [torch.addcmul(k * f[k - 1], v, f[k]) for k in range(1, len(f))]


def gaussian(v: Tensor, order: int) -> Derivatives:
    """Of the normal distribution function Phi: phi(v), and phi^(k+1) = -v phi^(k) - k phi^(k-1)."""
    rows = [torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)]
    for k in range(order - 1):
        rows.append(-v * rows[k] - k * rows[k - 1] if k else -v * rows[0])
    return rows


def followed(v: Tensor, order: int, slope: Callable[[Any], Any]) -> Derivatives:
    """Of a function whose first derivative is an expression: follow that along v itself."""
    if order == 1:
        return [slope(v)]
    ones, zeros = torch.ones_like(v), torch.zeros_like(v)
    line = torch.stack([v, ones, *[zeros] * (order - 2)])
    return list(slope(Jet(line, Basis(order - 1, 1))).rows.unbind())


def masked(mask: Tensor, inside: Derivatives, order: int, slope: float) -> Derivatives:
    """Of a function with these derivatives where the mask holds and this slope elsewhere."""
    return [torch.where(mask, inside[k], slope if k == 0 else 0) for k in range(order)]


# --- exponentials and trigonometry ------------------------------------------------------------


@elementwise(torch.exp)
def exp(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [y] * order


@elementwise(torch.expm1)
def expm1(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [y + 1] * order


@elementwise(torch.exp2)
def exp2(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [math.log(2) ** k * y for k in range(1, order + 1)]


@elementwise(torch.log)
def log(v: Tensor, y: Tensor, order: int) -> Derivatives:
    first = torch.reciprocal(v)
    return [first, *divided(first, v, -1, order - 1)]


@elementwise(torch.log1p)
def log1p(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return log(1 + v, y, order)


@elementwise(torch.log2)
def log2(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [each / math.log(2) for each in log(v, y, order)]


@elementwise(torch.log10)
def log10(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [each / math.log(10) for each in log(v, y, order)]


@elementwise(torch.sin)
def sin(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return cycle((1, -1, -1, 1), (torch.cos(v), y), order)


@elementwise(torch.cos)
def cos(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return cycle((-1, -1, 1, 1), (torch.sin(v), y), order)


@elementwise(torch.tan)
def tan(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return riccati(y, (1, 0, 1), order)


@elementwise(torch.sinh)
def sinh(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return cycle((1,), (torch.cosh(v), y), order)


@elementwise(torch.cosh)
def cosh(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return cycle((1,), (torch.sinh(v), y), order)


@elementwise(torch.asin, torch.arcsin)
def asin(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: torch.rsqrt(1 - t * t))


@elementwise(torch.acos, torch.arccos)
def acos(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: -torch.rsqrt(1 - t * t))


@elementwise(torch.atan, torch.arctan)
def atan(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: 1 / (1 + t * t))


@elementwise(torch.asinh, torch.arcsinh)
def asinh(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: torch.rsqrt(1 + t * t))


@elementwise(torch.acosh, torch.arccosh)
def acosh(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: torch.rsqrt(t * t - 1))


@elementwise(torch.atanh, torch.arctanh)
def atanh(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: 1 / (1 - t * t))


@elementwise(torch.erf)
def erf(v: Tensor, y: Tensor, order: int) -> Derivatives:
    root = math.sqrt(2)  # erf(v) = 2 Phi(sqrt(2) v) - 1
    return [2 * root**k * each for k, each in enumerate(gaussian(root * v, order), 1)]


@elementwise(torch.erfc)
def erfc(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [-each for each in erf(v, y, order)]


# --- powers -----------------------------------------------------------------------------------


@elementwise(torch.square)
def square(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return powers(v, 2, order)


@elementwise(torch.sqrt)
def sqrt(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return divided(y, v, 0.5, order)


@elementwise(torch.rsqrt)
def rsqrt(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return divided(y, v, -0.5, order)


@elementwise(torch.reciprocal)
def reciprocal(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return divided(y, v, -1, order)


# --- kinks ------------------------------------------------------------------------------------


@elementwise(torch.sign, torch.round, torch.floor, torch.ceil, torch.trunc)
def steps(v: Tensor, y: Tensor, order: int, *args: Any, **kwargs: Any) -> Derivatives:
    return [torch.zeros_like(v)]


@elementwise(F.relu)
def relu(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [(v > 0).to(v.dtype)]


@elementwise(F.relu6)
def relu6(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [((v > 0) & (v < 6)).to(v.dtype)]


@elementwise(F.hardtanh)
def hardtanh(
    v: Tensor, y: Tensor, order: int, min_val: float = -1.0, max_val: float = 1.0
) -> Derivatives:
    return [((v > min_val) & (v < max_val)).to(v.dtype)]


@elementwise(F.leaky_relu)
def leaky_relu(v: Tensor, y: Tensor, order: int, negative_slope: float = 0.01) -> Derivatives:
    return [torch.where(v > 0, torch.ones_like(v), negative_slope)]


# --- activations ------------------------------------------------------------------------------


@elementwise(torch.tanh)
def tanh(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return riccati(y, (1, 0, -1), order)


@elementwise(torch.sigmoid)
def sigmoid(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return riccati(y, (0, 1, -1), order)


@elementwise(F.logsigmoid)
def logsigmoid(v: Tensor, y: Tensor, order: int) -> Derivatives:
    s = torch.sigmoid(v)
    return [1 - s, *(-each for each in sigmoid(v, s, order - 1))]


@elementwise(F.softplus)
def softplus(
    v: Tensor, y: Tensor, order: int, beta: float = 1, threshold: float = 20
) -> Derivatives:
    s = torch.sigmoid(beta * v)
    rows = [beta**k * each for k, each in enumerate([s, *sigmoid(v, s, order - 1)])]
    return masked(beta * v <= threshold, rows, order, 1.0)


@elementwise(F.silu)
def silu(v: Tensor, y: Tensor, order: int) -> Derivatives:
    s = torch.sigmoid(v)
    return times_argument(v, [s, *sigmoid(v, s, order)])


@elementwise(F.mish)
def mish(v: Tensor, y: Tensor, order: int) -> Derivatives:
    t = torch.tanh(F.softplus(v))
    slopes = followed(v, order, lambda s: torch.sigmoid(s) * (1 - torch.tanh(F.softplus(s)) ** 2))
    return times_argument(v, [t, *slopes])


@elementwise(F.gelu)
def gelu(v: Tensor, y: Tensor, order: int, approximate: str = "none") -> Derivatives:
    if approximate == "none":
        return times_argument(v, [torch.special.ndtr(v), *gaussian(v, order)])
    inner = torch.tanh(tanh_argument(v))
    slopes = followed(v, order, lambda t: tanh_slope(t) * (1 - torch.tanh(tanh_argument(t)) ** 2))
    return times_argument(v, [0.5 * (1 + inner), *(0.5 * each for each in slopes)])


def tanh_argument(v: Any) -> Any:
    """What the approximate GELU takes the tanh of."""
    # torch's own numbers: Hendrycks & Gimpel (2016)
    return math.sqrt(2 / math.pi) * (v + 0.044715 * v * v * v)


def tanh_slope(v: Any) -> Any:
    """The derivative of `tanh_argument`."""
    return math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * v * v)


@elementwise(F.elu)
def elu(v: Tensor, y: Tensor, order: int, alpha: float = 1.0) -> Derivatives:
    return masked(v <= 0, [alpha * torch.exp(v)] * order, order, 1.0)


@elementwise(F.celu)
def celu(v: Tensor, y: Tensor, order: int, alpha: float = 1.0) -> Derivatives:
    rows = [alpha ** (1 - k) * torch.exp(v / alpha) for k in range(1, order + 1)]
    return masked(v <= 0, rows, order, 1.0)


@elementwise(F.selu)
def selu(v: Tensor, y: Tensor, order: int) -> Derivatives:
    # The fixed point at mean 0 and variance 1: Klambauer et al. (2017)
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return masked(v <= 0, [scale * alpha * torch.exp(v)] * order, order, scale)


@elementwise(F.softsign)
def softsign(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return followed(v, order, lambda t: (1 + torch.abs(t)) ** -2)


@elementwise(F.tanhshrink)
def tanhshrink(v: Tensor, y: Tensor, order: int) -> Derivatives:
    first, *others = tanh(v, v - y, order)
    return [1 - first, *(-each for each in others)]
