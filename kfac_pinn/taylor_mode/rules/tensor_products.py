"""Products of matrices and tensors of jets and constants."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet, jets_among
from kfac_pinn.taylor_mode.rule_table import register, rule
from kfac_pinn.taylor_mode.rules.registration import (
    Operand,
    aligned,
    multiply,
)


@rule(torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot)
def matmul(x: Operand, y: Operand) -> Operand:
    ndim = max(x.ndim, y.ndim)
    if min(x.ndim, y.ndim) >= 2:  # matrices, maybe in batches: rows are one more batch axis
        x, y = (e.like(aligned(e.rows, ndim)) if isinstance(e, Jet) else e for e in (x, y))
        return multiply(torch.matmul, x, y)
    # A vector has no axis that the rows could stand before
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
    # Two at a time: Leibniz's rule is one of two factors
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
    # beta = 0 ignores x even where it is nan, as torch does
    return beta * x + product if beta else product


@rule(torch.addbmm)
def addbmm(x: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Operand:
    product = alpha * torch.sum(torch.matmul(a, b), 0)
    return beta * x + product if beta else product


@rule(torch.addr)
def addr(x: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1) -> Operand:
    product = alpha * torch.outer(a, b)
    return beta * x + product if beta else product
