"""Plates with holes, Poisson2d-C and -CG of Hao et al. (2023), with references of our own.

Between fixed values on the walls and the rims a solution is a sum of fundamental solutions around
sources outside, fitted at the boundary: it solves the equation exactly, and its error is at most
that of the fit (maximum principle).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from math import pi
from operator import or_
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.pinn.conditions import dirichlet
from kfac_pinn.pinn.domains import Ball, Box, Shape
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.problems.registry import problem
from kfac_pinn.settings import POSITIVE, takes
from kfac_pinn.taylor_mode.operators import laplacian, taylor
from kfac_pinn.taylor_mode.rules import elementwise

__all__ = ["FundamentalSolutions", "poisson_boltzmann", "poisson_holes", "solve_poisson_holes"]

F64 = torch.float64
BESSEL = torch.special.modified_bessel_k0
NETWORKS = ((2, 30, 30, 30, 1),)
FOUR = tuple(((x, y), 0.1) for x in (-0.3, 0.3) for y in (-0.3, 0.3))
UNEQUAL = (((0.5, 0.5), 0.2), ((0.4, -0.4), 0.4), ((-0.2, -0.7), 0.1), ((-0.6, 0.5), 0.3))


@elementwise(BESSEL)
def bessel_derivatives(z: Tensor, y: Tensor, order: int) -> list[Tensor]:
    """K0' = -K1, and z y^(n+2) + (n+1) y^(n+1) = z y^(n) + n y^(n-1), from z y'' + y' = z y."""
    found = [y, -torch.special.modified_bessel_k1(z)]
    for n in range(order - 1):
        before = n * found[n - 1] if n else 0.0
        found.append(found[n] + (before - (n + 1) * found[n + 1]) / z)
    return found[1 : order + 1]


@problem
def poisson_holes() -> Problem:
    """Laplace u = 0 on [-1/2, 1/2]^2 without four disks, u = 1 on the walls, 0 on the rims.

    The residual is R^2 Laplace u, in lengths of the disks' radius R: without a unit of its own the
    equation weighs so much more than the values that a constant satisfies most of the loss.
    """
    box = Box.cube(2, -0.5, 0.5)
    plate = box - union(FOUR)
    radius = FOUR[0][1]
    terms = {
        "interior": Term(plate.interior, lambda u, x: radius**2 * laplacian(u, x), 3000),
        "walls": Term(plate.boundary.where(_on(box)), dirichlet(1.0), 400),
        "rims": Term(plate.boundary.where(_off(box)), dirichlet(0.0), 400),
    }
    return Problem(
        "Poisson on a plate with holes", plate, terms, lambda x: solve_poisson_holes()(x), NETWORKS
    )


@cache
def solve_poisson_holes(density: int = 2) -> FundamentalSolutions:
    """The reference: harmonic."""

    def values(x: Tensor) -> Tensor:
        return (x.abs().amax(1, keepdim=True) > 0.4999).to(x)

    return fitted(torch.log, _sources(0.62, FOUR, density), _edge(0.5, FOUR, density), values)


@problem
@takes(k=POSITIVE)
def poisson_boltzmann(k: float = 8.0) -> Problem:
    """-Laplace u + k^2 u = f on [-1, 1]^2 without four unequal disks, u = 0.2, 1 on walls, rims.

    f = 10 (17 + x^2 + y^2) sin(pi x) sin(4 pi y). The residual is divided by k^2, so that u has the
    weight in it that it has in the conditions.
    """
    box = Box.cube(2, -1.0, 1.0)
    plate = box - union(UNEQUAL)

    def interior(u: Function, x: Tensor) -> Tensor:
        value, _, laplace = taylor(u, x, weights=[1.0, 1.0])
        return value - (laplace + source(x)) / k**2

    terms = {
        "interior": Term(plate.interior, interior, 4000),
        "walls": Term(plate.boundary.where(_on(box)), dirichlet(0.2), 400),
        "rims": Term(plate.boundary.where(_off(box)), dirichlet(1.0), 400),
    }
    return Problem(
        "Poisson-Boltzmann with holes",
        plate,
        terms,
        lambda x: solve_poisson_boltzmann(k)(x),
        NETWORKS,
    )


@cache
def solve_poisson_boltzmann(k: float, density: int = 2) -> Function:
    """The reference: a particular solution, 0.2 times `one_on_walls`, and fundamental solutions."""

    def known(x: Any) -> Any:
        return particular(x, k) + 0.2 * one_on_walls(x, k)

    def values(x: Tensor) -> Tensor:
        on_wall = x.abs().amax(1, keepdim=True) > 0.9999
        return torch.where(on_wall, 0.2, 1.0) - torch.where(
            on_wall, 0.2 + particular(x, k), known(x)
        )

    rest = fitted(
        lambda square: BESSEL(k * square.sqrt()),
        _sources(1.09, UNEQUAL, density),
        _edge(1.0, UNEQUAL, density),
        values,
    )
    return lambda x: known(x) + rest(x)


def source(x: Any) -> Any:
    """10 (1 + 16 + x^2 + y^2) sin(pi x) sin(4 pi y)."""
    s, r = x[:, :1], x[:, 1:2]
    return 10 * (17 + s * s + r * r) * torch.sin(pi * s) * torch.sin(4 * pi * r)


def particular(x: Any, k: float) -> Any:
    """A solution of -Laplace u + k^2 u = f.

    With S = sin(mx) sin(ny), C = cos(mx) sin(ny), l = k^2 + m^2 + n^2: the operator takes S to l S,
    x C to l x C + 2 m S, and x^2 S to l x^2 S - 2 S - 4 m x C; the same in y.
    """
    m, n = pi, 4 * pi
    rate = k**2 + m**2 + n**2
    s, r = x[:, :1], x[:, 1:2]
    S = torch.sin(m * s) * torch.sin(n * r)
    found = (17 + s * s + r * r) * S / rate
    found = found + s * torch.cos(m * s) * torch.sin(n * r) * (4 * m / rate**2)
    found = found + r * torch.sin(m * s) * torch.cos(n * r) * (4 * n / rate**2)
    return 10 * (found + S * (4 / rate**2 - 8 * (m**2 + n**2) / rate**3))


def one_on_walls(x: Any, k: float, count: int = 2000) -> Any:
    """The solution of Laplace u = k^2 u on [-1, 1]^2 that is 1 on the walls, to 1e-8.

    cosh(k x) / cosh(k) does it in x; what misses on the walls of y goes into cosines of x.
    """
    s, r = x[:, :1], x[:, 1:2]
    w = (torch.arange(count, dtype=x.dtype, device=x.device) + 0.5) * pi
    rate = (k**2 + w**2).sqrt()
    sign = 1 - 2 * (torch.arange(count, device=x.device) % 2).to(w)
    sizes = 2 * sign * (1 / w - w / rate**2)  # of 1 - cosh(k x) / cosh(k)
    grown = (torch.exp(rate * (r - 1)) + torch.exp(-rate * (r + 1))) / (1 + torch.exp(-2 * rate))
    wave = (torch.exp(k * (s - 1)) + torch.exp(-k * (s + 1))) / (1 + math.exp(-2 * k))
    return wave + (torch.cos(s * w) * grown * sizes).sum(1, keepdim=True)


@dataclass(frozen=True)
class FundamentalSolutions:
    """sum_j c_j G(|x - y_j|^2) + c_0.

    Attributes:
        kernel: G, of squares of distances.
        sources: y, (J, 2).
        weights: c, (J + 1, 1), the constant last.
    """

    kernel: Callable[[Any], Any]
    sources: Tensor
    weights: Tensor

    def __call__(self, x: Any) -> Any:
        """(N, 1) at points (N, 2), or at a jet of them."""
        y, c = self.sources.to(x.device, x.dtype), self.weights.to(x.device, x.dtype)
        square = (x[:, :1] - y[:, 0]) ** 2 + (x[:, 1:2] - y[:, 1]) ** 2
        return torch.matmul(self.kernel(square), c[:-1]) + c[-1]


def fitted(
    kernel: Callable[[Any], Any], sources: Tensor, edge: Tensor, values: Function
) -> FundamentalSolutions:
    """The weights that fit values (N, 1) at points of the boundary in the least squares."""
    basis = FundamentalSolutions(kernel, sources, torch.eye(len(sources) + 1, dtype=F64))
    constant = 1.0 if kernel is torch.log else 0.0  # solves Laplace's equation only
    matrix = torch.cat([basis(edge)[:, :-1], torch.full((len(edge), 1), constant, dtype=F64)], 1)
    solved = torch.linalg.lstsq(matrix, values(edge), rcond=1e-15, driver="gelsd").solution
    return FundamentalSolutions(kernel, sources, solved)


Circles = Sequence[tuple[tuple[float, float], float]]


def union(circles: Circles) -> Shape:
    """The disks as one shape."""
    return reduce(or_, [Ball(*circle) for circle in circles])


def _sources(half: float, circles: Circles, density: int) -> Tensor:
    """Around the plate, and within the holes."""
    return torch.cat(
        [_square(half, 48 * density)]
        + [_circle(center, 0.6 * r, 20 * density + int(60 * r)) for center, r in circles]
    )


def _edge(half: float, circles: Circles, density: int) -> Tensor:
    """Points of the walls and the rims."""
    return torch.cat(
        [_square(half, 120 * density)]
        + [_circle(center, r, 2 * (40 * density + int(60 * r))) for center, r in circles]
    )


def _square(half: float, n: int) -> Tensor:
    """n points on each side of [-half, half]^2."""
    line = (torch.arange(n, dtype=F64) + 0.5) * (2 * half / n) - half
    wall = torch.full_like(line, half)
    pairs = ((line, wall), (line, -wall), (wall, line), (-wall, line))
    return torch.cat([torch.stack(pair, 1) for pair in pairs])


def _circle(center: Sequence[float], radius: float, n: int) -> Tensor:
    """n points around a center."""
    angle = 2 * pi * torch.arange(n, dtype=F64) / n
    ring = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    return torch.tensor(center, dtype=F64) + radius * ring


def _on(shape: Shape) -> Callable[[Tensor], Tensor]:
    """Whether points are on the boundary of a shape."""
    return lambda x: shape.distance(x).abs() < 1e-4


def _off(shape: Shape) -> Callable[[Tensor], Tensor]:
    """Whether points are not on the boundary of a shape."""
    return lambda x: shape.distance(x).abs() >= 1e-4
