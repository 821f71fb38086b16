"""Complex jets, as Fourier transforms give them."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import torch

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.arithmetic import hypot
from kfac_pinn.taylor_mode.rules.registration import (
    Operand,
    composition,
)


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
