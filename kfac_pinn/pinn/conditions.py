"""The usual conditions at boundaries, as residuals for a `Term`.

    Term(plate.boundary, neumann(plate), 100)                     # insulated
    Term(plate.boundary, robin(plate, 2.0, 1.0, lambda x: x), 100)

A domain is what has outward normals: a shape, or a `TimeSpace` of one. Values are numbers
(trained ones are tensors) or functions of the points, (N, d) -> (N,), (N, 1) or (N, C).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kfac_pinn.pinn.problem import Function
from kfac_pinn.settings import INTEGER, NOT_ZERO, VALUE, takes, whole
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["Value", "dirichlet", "interface", "neumann", "periodic", "robin"]

Value: TypeAlias = "float | Tensor | Callable[[Tensor], Tensor]"
Residual: TypeAlias = Callable[[Function, Tensor], Any]


class HasNormal(Protocol):
    """What knows its outward normals: (N, d) -> (N, d)."""

    def normal(self, x: Tensor) -> Tensor: ...


@takes(value=VALUE)
def dirichlet(value: Value = 0.0) -> Residual:
    """u = g, the value."""
    return lambda u, x: _equations(u(x) - _at(value, x))


@takes(flux=VALUE)
def neumann(domain: HasNormal, flux: Value = 0.0) -> Residual:
    """du/dn = g, the flux out of the domain.

    Raises:
        TypeError: for a domain without normals.
    """
    return robin(domain, 0.0, 1.0, flux)


@takes(alpha=VALUE, beta=VALUE, value=VALUE)
def robin(domain: HasNormal, alpha: Value, beta: Value, value: Value = 0.0) -> Residual:
    """alpha u + beta du/dn = g, the value.

    Raises:
        TypeError: for a domain without normals.
    """
    _check_normal(domain)

    def residual(u: Function, x: Tensor) -> Any:
        found, (slope,) = taylor(u, x, order=1, directions=domain.normal(x)[None])
        return _equations(_at(alpha, x) * found + _at(beta, x) * slope - _at(value, x))

    return residual


@takes(inside=VALUE, outside=VALUE, jump=VALUE, flux=VALUE)
def interface(
    domain: HasNormal,
    inside: Value = 1.0,
    outside: Value = 1.0,
    jump: Value = 0.0,
    flux: Value = 0.0,
) -> Residual:
    """u_out - u_in = jump and k_out du_out/dn - k_in du_in/dn = flux on the boundary of a domain.

    Two residuals; u(x) has two columns, (u_in, u_out), each the solution on its side. The
    interior terms then read the column of their side: `lambda x: u(x)[:, :1]`.

    Args:
        domain: the part inside.
        inside, outside: the coefficients k.
        jump, flux: what u and the flux jump by.

    Raises:
        TypeError: for a domain without normals.
        ValueError: for another number of columns.
    """
    _check_normal(domain)

    def residual(u: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        found, (slope,) = taylor(u, x, order=1, directions=domain.normal(x)[None])
        if found.shape != (len(x), 2):
            raise ValueError(
                f"an interface needs u(x) of two columns, (u_in, u_out), found shape "
                f"{tuple(found.shape)}: one network with two outputs, or SideBySide(one, other)"
            )
        through = _at(outside, x) * slope[:, 1:] - _at(inside, x) * slope[:, :1]
        return found[:, 1:] - found[:, :1] - _at(jump, x), through - _at(flux, x)

    return residual


@takes(axis=INTEGER, period=NOT_ZERO, order=whole(0))
def periodic(axis: int, period: float, order: int = 0) -> Residual:
    """u, and its derivatives along the axis up to an order, have the same values a period on.

    One residual an order; at the points of one of the two faces, `box.face(axis, 0)`.

    Args:
        axis: 0, ..., d-1, time counted.
        period: the width of the box along it, negative from the upper face.
        order: of the highest derivative; one less than that of the equation.
    """

    def residual(u: Function, x: Tensor) -> tuple[Tensor, ...]:
        along = torch.zeros_like(x)
        along[:, axis] = 1.0
        here, there = (_along(u, end, along, order) for end in (x, x + period * along))
        gaps = [_equations((a - b).reshape(len(x), -1)) for a, b in zip(here, there, strict=True)]
        return tuple(r for gap in gaps for r in (gap if isinstance(gap, tuple) else (gap,)))

    return residual


def _along(u: Function, x: Tensor, along: Tensor, order: int) -> tuple[Tensor, ...]:
    """u and its derivatives along a direction up to an order."""
    return taylor(u, x, order, along[None]) if order else (u(x),)


def _equations(residual: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Of a system at fewer points than it has fields (N <= C): its columns, told apart here.

    An optimizer divides (N, C) by itself where N > C, and must take the rest for a mistake.
    """
    few = residual.ndim == 2 and 1 < residual.shape[1] >= len(residual)
    return tuple(residual.unbind(1)) if few else residual


def _at(value: Value, x: Tensor) -> Tensor | float:
    """The value at the points, as columns."""
    found = value(x) if callable(value) else value
    return found[:, None] if isinstance(found, Tensor) and found.ndim == 1 else found


def _check_normal(domain: Any) -> None:
    if not callable(getattr(domain, "normal", None)):
        raise TypeError(
            f"a flux needs a domain with normals, neumann(Ball((0.0, 0.0))), found {domain!r}"
        )
