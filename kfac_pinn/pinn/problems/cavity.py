"""The reference flow of the lid-driven cavity: a stream function in Chebyshev polynomials."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["Fields", "solve_cavity"]

F64 = torch.float64


class Fields:
    """Polynomials of (x, y) in [0, 1]^2: sum_ij c_ij T_i(2x - 1) T_j(2y - 1), a matrix a field.

    Args:
        coefficients: (C, n, n).
    """

    def __init__(self, coefficients: Tensor) -> None:
        self.coefficients = coefficients

    def __call__(self, x: Any) -> Any:
        """(N, C) at points (N, 2), or at a jet of them."""
        n = self.coefficients.shape[-1]
        across, along = chebyshev(x[:, :1], n), chebyshev(x[:, 1:2], n)
        columns = [
            (torch.matmul(across, c.to(x.dtype)) * along).sum(1, keepdim=True)
            for c in self.coefficients.to(x.device)
        ]
        return torch.cat(columns, 1)


@cache
def solve_cavity(reynolds: float, n: int = 32) -> Fields:
    """(u, v, p) = (psi_y, -psi_x, p) of the steady flow, p(0, 0) = 0.

    psi = g(x) y^2 (y - 1) + sum_ij q_ij b_i(x) b_j(y), b_i(s) = s^2 (1 - s)^2 T_i(2s - 1), g the
    lid's velocity, takes all conditions; nu Laplace^2 psi = psi_y Laplace psi_x - psi_x Laplace
    psi_y holds at n x n Gauss points of the weight s^2 (1 - s)^2, which makes it a Galerkin method.
    Newton's method, from the Stokes flow. At Re 100 velocities are right to 1e-6, the pressure,
    whose slopes are infinite in the corners, to 5e-5.
    """
    nu, s = 1 / reynolds, gauss(n)
    b = taylor(lambda s: (s * (1 - s)) ** 2 * chebyshev(s, n), s, 4)
    B = [b[0], *(each[0] for each in b[1:])]
    lid = _derivatives(lambda s: 16 * s**2 * (1 - s) ** 2, s)
    drop = _derivatives(lambda s: s**2 * (s - 1), s)

    def operator(i: int, j: int) -> tuple[Tensor, Tensor]:
        """d_x^i d_y^j: its matrix on q, and its value for the lid's part."""
        return torch.kron(B[i].contiguous(), B[j].contiguous()), torch.kron(lid[i], drop[j])[:, 0]

    def total(*terms: tuple[int, int, float]) -> tuple[Tensor, Tensor]:
        parts = [operator(i, j) for i, j, _ in terms]
        weights = [weight for *_, weight in terms]
        return tuple(
            sum(w * part[k] for w, part in zip(weights, parts, strict=True)) for k in (0, 1)
        )  # type: ignore[return-value]

    x, y = operator(1, 0), operator(0, 1)
    laplace_x, laplace_y = total((3, 0, 1.0), (1, 2, 1.0)), total((2, 1, 1.0), (0, 3, 1.0))
    bilaplace = total((4, 0, nu), (2, 2, 2 * nu), (0, 4, nu))
    q = torch.linalg.solve(bilaplace[0], -bilaplace[1])
    for _ in range(12):
        psi_x, psi_y, L_x, L_y, D = (A @ q + a for A, a in (x, y, laplace_x, laplace_y, bilaplace))
        slope = bilaplace[0] - psi_y[:, None] * laplace_x[0] - L_x[:, None] * y[0]
        slope = slope + psi_x[:, None] * laplace_y[0] + L_y[:, None] * x[0]
        q = q - torch.linalg.solve(slope, D - psi_y * L_x + psi_x * L_y)
    return _fields(q.reshape(n, n), nu)


def _fields(q: Tensor, nu: float) -> Fields:
    """Velocities from the stream function, the pressure from the momentum, as polynomials."""
    n = len(q) + 6
    s = nodes(n)
    m = len(q)
    b = taylor(lambda s: (s * (1 - s)) ** 2 * chebyshev(s, m), s, 3)
    B = [b[0], *(each[0] for each in b[1:])]
    lid = _derivatives(lambda s: 16 * s**2 * (1 - s) ** 2, s)
    drop = _derivatives(lambda s: s**2 * (s - 1), s)

    def psi(i: int, j: int) -> Tensor:
        return B[i] @ q @ B[j].mT + lid[i] @ drop[j].mT

    u, v = psi(0, 1), -psi(1, 0)
    p_x = nu * (psi(2, 1) + psi(0, 3)) - u * psi(1, 1) - v * psi(0, 2)
    p_y = -nu * (psi(3, 0) + psi(1, 2)) + u * psi(2, 0) + v * psi(1, 1)
    T, slope = taylor(lambda s: chebyshev(s, n), s, 1)
    inverse = torch.linalg.inv(T)
    # grad p = (p_x, p_y) in the least-squares sense; the constant, which it leaves open, is p(0, 0)
    rows = torch.cat([torch.kron(slope[0].contiguous(), T), torch.kron(T, slope[0].contiguous())])
    ends = torch.kron(chebyshev(s.new_zeros(1, 1), n), chebyshev(s.new_zeros(1, 1), n))
    rows, right = (
        torch.cat([rows, ends]),
        torch.cat([p_x.flatten(), p_y.flatten(), p_x.new_zeros(1)]),
    )
    p = torch.linalg.lstsq(rows, right[:, None], driver="gelsd").solution.reshape(n, n)
    return Fields(torch.stack([inverse @ u @ inverse.mT, inverse @ v @ inverse.mT, p]))


def nodes(n: int) -> Tensor:
    """The zeros of T_n(2s - 1), (n, 1)."""
    k = torch.arange(n, dtype=F64)
    return ((1 - torch.cos(math.pi * (k + 0.5) / n)) / 2)[:, None]


def gauss(n: int) -> Tensor:
    """The Gauss points of the weight s^2 (1 - s)^2 on [0, 1], (n, 1); Golub & Welsch (1969)."""
    k = torch.arange(1, n, dtype=F64)
    squares = k * (k + 4) / (4 * (k + 2.5) * (k + 1.5))  # of Gegenbauer's recurrence, lambda = 5/2
    z = torch.linalg.eigvalsh(torch.diag(squares.sqrt(), -1))  # reads the lower triangle
    return ((z + 1) / 2)[:, None]


def chebyshev(s: Any, n: int) -> Any:
    """T_0, ..., T_(n-1) at 2s - 1, (N, n), of s (N, 1), a tensor or a jet."""
    z = 2 * s - 1
    found = [1 + 0 * z, z]
    for _ in range(n - 2):
        found.append(2 * z * found[-1] - found[-2])
    return torch.cat(found[:n], 1)


def _derivatives(f: Any, s: Tensor) -> list[Tensor]:
    """f and its derivatives up to the fourth, (n, 1) each."""
    value, *others = taylor(f, s, 4)
    return [value, *(each[0] for each in others)]
