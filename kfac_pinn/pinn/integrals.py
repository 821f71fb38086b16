"""Integral terms: fixed linear maps of a network's values at fixed points.

    normal = gauss_legendre(64, -3.0, 3.0)                 # the condition that p integrates to 1
    residuals = lambda: (fokker_planck(p), normal(p) - 1)

A term of this kind mixes points; its Jacobian needs nothing special (`jacobian.matrix_free`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.settings import FINITE, POSITIVE, TENSOR, optional, takes, whole

__all__ = ["LinearMap", "Quadrature", "gauss_legendre", "periodic_trapezoid"]


def end(name: str, value: Any) -> None:
    """Of an interval, or of many."""
    if not isinstance(value, Tensor):
        FINITE(name, value)


class LinearMap:
    """y = A u of the values u at M points: finite differences, a Fourier transform, a sensor.

    Args:
        matrix: A, shape (N, M), dense or sparse, constant.

    Example: central differences of a network, `LinearMap(D)(model(x)) - f`.

    Raises:
        TypeError: for a matrix that is no tensor.
        ValueError: for a matrix of another shape, or values of another number of points.
    """

    def __init__(self, matrix: Tensor) -> None:
        TENSOR("LinearMap: matrix", matrix)
        if matrix.ndim != 2:
            raise ValueError(f"LinearMap: matrix is a matrix (N, M), found {tuple(matrix.shape)}")
        self.matrix = matrix.detach()

    def __call__(self, values: Tensor) -> Tensor:
        """A u, shape (N,), of values (M,) or (M, 1)."""
        if values.shape not in {self.matrix.shape[1:], (self.matrix.shape[1], 1)}:
            raise ValueError(
                f"the map takes values at {self.matrix.shape[1]} points, shape (M,) or (M, 1), "
                f"found {tuple(values.shape)}"
            )
        return (self.matrix @ values.reshape(-1, 1))[:, 0]


class Quadrature:
    """Integrals I_n(u) = sum_m w_nm u(x_nm), n = 1, ..., N.

    Args:
        points: x, shape (N, M, d); or (M, d), the same for all n.
        weights: w, shape (N, M), or (M,) where N = 1.

    Attributes:
        points, weights: in the shapes (N or 1, M, d) and (N, M).

    Raises:
        TypeError: for what is no tensor.
        ValueError: for points and weights that do not fit each other.
    """

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        TENSOR("Quadrature: points", points)
        TENSOR("Quadrature: weights", weights)
        self.points = points if points.ndim == 3 else points[None]
        self.weights = torch.atleast_2d(weights)
        counts = {1, len(self.weights)}
        if self.points.shape[1] != self.weights.shape[1] or len(self.points) not in counts:
            raise ValueError(
                f"points (N, M, d) and weights (N, M) do not fit: {tuple(points.shape)}, "
                f"{tuple(weights.shape)}"
            )

    def __call__(self, u: Callable[[Tensor], Tensor]) -> Tensor:
        """The N integrals of a function of points, shape (N,)."""
        values = u(self.points.flatten(0, 1))
        if len(self.points) == 1:
            return LinearMap(self.weights)(values)
        return (self.weights * values.reshape(self.weights.shape)).sum(1)

    def times(self, kernel: Tensor) -> Quadrature:
        """Integrals of k_n u, for the values (N, M) of the kernel at the points."""
        return Quadrature(self.points, self.weights * kernel)


@takes(count=whole(1), lower=end, upper=end, like=optional(TENSOR))
def gauss_legendre(
    count: int, lower: float | Tensor, upper: float | Tensor, like: Tensor | None = None
) -> Quadrature:
    """The integral over an interval, exact for polynomials of degree 2 count - 1.

    Args:
        count: M.
        lower, upper: ends; tensors (N,) for N intervals, as in integrals from 0 to t.
        like: a tensor whose dtype and device to take; by default the ends', or torch's default.

    Source: Golub & Welsch (1969): nodes and weights from the eigenvectors of a Jacobi matrix.
    """
    ends = [torch.atleast_1d(torch.as_tensor(end)) for end in (lower, upper)]
    like = ends[0].new_empty(0) if like is None else like
    k = torch.arange(1, count, dtype=torch.float64)
    nodes, vectors = torch.linalg.eigh(torch.diag(k / (4 * k**2 - 1).sqrt(), 1).triu(1).mT)
    nodes, weights = nodes.to(like), 2 * vectors[0].square().to(like)
    a, b = (end.to(like)[:, None] for end in ends)
    points = (a + b) / 2 + (b - a) / 2 * nodes
    return Quadrature(points[..., None], (b - a) / 2 * weights)


@takes(count=whole(1), period=POSITIVE, like=optional(TENSOR))
def periodic_trapezoid(count: int, period: float, like: Tensor | None = None) -> Quadrature:
    """The integral of a smooth periodic function over [0, period): spectrally accurate.

    Args:
        count: M, the number of equidistant points, (M, 1).
        period: of the function.
        like: a tensor of the dtype and device to use; torch's defaults, if there is none.

    Source: Trefethen & Weideman (2014).
    """
    like = torch.empty(0) if like is None else like
    points = torch.arange(count).to(like)[:, None] * (period / count)
    return Quadrature(points, torch.full_like(points[:, 0], period / count))
