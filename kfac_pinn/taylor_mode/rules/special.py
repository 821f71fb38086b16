"""Special functions, and activations with kinks, by their derivatives or in terms of others."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.jets import Jet, jets_among
from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.elementary import Derivatives
from kfac_pinn.taylor_mode.rules.registration import (
    Operand,
    composition,
    elementwise,
    linear,
    tensor_like,
    value_of,
)

# --- special functions ------------------------------------------------------------------------


def solved(v: Tensor, y: Tensor, order: int, slope: Callable[[Any, Any], Any]) -> Derivatives:
    """Of a solution of y' = slope(v, y): each derivative is one more of the slope along v."""
    rows, line = [y], [v, torch.ones_like(v)]
    for k in range(order):
        if k == 0:
            rows.append(slope(v, y))
            continue
        basis = Basis(k, 1)
        path = line + [torch.zeros_like(v)] * (k - 1)
        known = Jet(torch.stack(path), basis), Jet(torch.stack(rows), basis)
        rows.append(slope(*known).rows[k])
    return rows[1:]


@elementwise(torch.erfinv)
def erfinv(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return solved(v, y, order, lambda v, y: math.sqrt(math.pi) / 2 * torch.exp(y * y))


@elementwise(torch.special.ndtr)
def ndtr(v: Tensor, y: Tensor, order: int) -> Derivatives:
    density = lambda v, _: torch.exp(-0.5 * v * v) / math.sqrt(2 * math.pi)  # noqa: E731
    return solved(v, y, order, density)


@elementwise(torch.special.ndtri)
def ndtri(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return solved(v, y, order, lambda v, y: math.sqrt(2 * math.pi) * torch.exp(0.5 * y * y))


@elementwise(torch.special.log_ndtr)
def log_ndtr(v: Tensor, y: Tensor, order: int) -> Derivatives:
    constant = math.log(2 * math.pi) / 2
    return solved(v, y, order, lambda v, y: torch.exp(-0.5 * v * v - constant - y))


@elementwise(torch.special.erfcx)
def erfcx(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return solved(v, y, order, lambda v, y: 2 * v * y - 2 / math.sqrt(math.pi))


@elementwise(torch.lgamma)
def lgamma(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [torch.special.polygamma(k, v) for k in range(order)]


@elementwise(torch.digamma)
def digamma(v: Tensor, y: Tensor, order: int) -> Derivatives:
    return [torch.special.polygamma(k, v) for k in range(1, order + 1)]


@rule(torch.polygamma, torch.special.polygamma)
def polygamma(n: Any, x: Any) -> Operand:
    n, x = (n, x) if isinstance(n, int) else (x, n)  # the method has them exchanged
    psi = torch.special.polygamma
    slopes = lambda v, y, order: [psi(n + k, v) for k in range(1, order + 1)]  # noqa: E731
    return composition(lambda v: psi(n, v), slopes, x)


@elementwise(torch.sinc)
def sinc(v: Tensor, y: Tensor, order: int) -> Derivatives:
    far = torch.where(v.abs() > 1, v, 1)
    shifted = [torch.sin(math.pi * far + k * math.pi / 2) for k in range(order + 1)]
    rows = [shifted[0] / (math.pi * far)]
    for k in range(1, order + 1):  # v f^(k) + k f^(k-1) = the k-th derivative of sin(pi v) / pi
        rows.append((math.pi ** (k - 1) * shifted[k] - k * rows[-1]) / far)
    return [torch.where(v.abs() > 1, rows[k], near_zero(v, k)) for k in range(1, order + 1)]


def near_zero(v: Tensor, k: int) -> Tensor:
    """The k-th derivative of sinc v = sum_n (-1)^n (pi v)^2n / (2n+1)! by its series."""
    result = torch.zeros_like(v)
    for n in reversed(range((k + 1) // 2, 20)):
        c = (-1) ** n * math.pi ** (2 * n) * math.perm(2 * n, k) / math.factorial(2 * n + 1)
        result = result + c * v ** (2 * n - k)
    return result


@rule(torch.xlogy)
def xlogy(x: Operand, y: Operand) -> Operand:
    return x * torch.log(harmless(x, y, 0.0, 1.0))


@rule(torch.special.xlog1py)
def xlog1py(x: Operand, y: Operand) -> Operand:
    return x * torch.log1p(harmless(x, y, -1.0, 0.0))


def harmless(x: Operand, y: Operand, pole: float, other: float) -> Operand:
    """The argument y of a logarithm, another one where a factor x = 0 stands before its pole."""
    jet = jets_among([x, y])[0]
    x0, y0 = (tensor_like(value_of(e), jet) for e in (x, y))
    at_pole = (x0 == 0) & (y0 <= pole)
    return torch.where(at_pole, other, y) if at_pole.any() else y


@rule(torch.special.entr)
def entr(x: Operand) -> Operand:
    return -xlogy(x, x)


@rule(torch.logit)
def logit(x: Operand, eps: float | None = None) -> Operand:
    x = x if eps is None else torch.clamp(x, eps, 1 - eps)
    return torch.log(x) - torch.log1p(-x)


linear(torch.deg2rad, torch.rad2deg)


# --- activations ------------------------------------------------------------------------------


@rule(F.hardsigmoid)
def hardsigmoid(x: Operand) -> Operand:
    return F.relu6(x + 3) / 6


@rule(F.hardswish)
def hardswish(x: Operand) -> Operand:
    return x * hardsigmoid(x)


@rule(F.hardshrink)
def hardshrink(x: Operand, lambd: float = 0.5) -> Operand:
    return torch.where(x.value.abs() > lambd, x, 0.0)


@rule(F.softshrink)
def softshrink(x: Operand, lambd: float = 0.5) -> Operand:
    return hardshrink(x, lambd) - lambd * torch.sign(hardshrink(x, lambd))


@rule(F.threshold)
def threshold(x: Operand, threshold: float, value: float) -> Operand:
    return torch.where(x.value > threshold, x, value)


@rule(F.rrelu)
def rrelu(
    x: Operand, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> Operand:
    if training:
        raise NotImplementedError(
            "rrelu in training mode draws another network at every call: call model.eval()"
        )
    return F.leaky_relu(x, (lower + upper) / 2)
