"""Derivatives by nested reverse-mode autograd: the mechanism Taylor mode replaces."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def derivatives_along_lines(u, x, directions, order):
    """[u, d/dt u, ..., d^K/dt^K u] of u(x + t v_d) at t = 0; derivatives (D, *u.shape)."""
    with sdpa_kernel(SDPBackend.MATH):  # other kernels have first derivatives only
        value = u(x)
        rows = [_along_one(u, x, v, order) for v in directions]
    return [value, *(torch.stack(each) for each in zip(*rows, strict=True))]


def _along_one(u, x, v, order):
    """The derivatives along one direction: d/dc d^k/dt^k <c, u(x + t v)> is d^k/dt^k u."""
    t = torch.zeros((), dtype=x.dtype, requires_grad=True)
    y = u(x + t * v)
    c = torch.ones_like(y).requires_grad_()
    scalar, found = (c * y).sum(), []
    for _ in range(order):
        scalar = _derivative(scalar, t) if scalar.requires_grad else torch.zeros_like(scalar)
        found.append(_derivative(scalar, c) if scalar.requires_grad else torch.zeros_like(y))
    return found


def _derivative(scalar, argument):
    """d scalar / d argument, zero where it does not enter."""
    (found,) = torch.autograd.grad(scalar, argument, create_graph=True, allow_unused=True)
    return torch.zeros_like(argument) if found is None else found
