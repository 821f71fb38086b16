"""Random compressions: of rows, of columns, and of a whole positive semi-definite operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from kfac_pinn.linalg.krylov import Operator

__all__ = ["CosineSketch", "CountSketch", "Nystrom", "dct", "idct", "nystrom"]


class CountSketch:
    """S of shape (size, N) with one random sign in every column: S J adds signed rows of J.

    E[S^T S] = I, and S J costs one pass over J. Source: Clarkson & Woodruff (2013).

    Args:
        rows: N.
        size: the number of sketched rows.
        generator: the source of the buckets and signs; fixes the device.
    """

    def __init__(self, rows: int, size: int, generator: Generator) -> None:
        device = generator.device
        self.size = size
        self.bucket = torch.randint(size, (rows,), generator=generator, device=device)
        self.sign = 1 - 2 * torch.randint(2, (rows,), generator=generator, device=device)

    def __call__(self, matrix: Tensor) -> Tensor:
        """S J for J of shape (N, ...)."""
        sign = self.sign.to(matrix.dtype).reshape(-1, *[1] * (matrix.ndim - 1))
        return matrix.new_zeros(self.size, *matrix.shape[1:]).index_add_(
            0, self.bucket, sign * matrix
        )


class CosineSketch:
    """S = sqrt(P/size) (sampled rows of the cosine transform) (random signs), shape (size, P).

    E[S^T S] = I; the rows are orthogonal. J S^T compresses the columns of J, S^T maps a step in
    the sketched space back. Source: Tropp (2011), with the cosine for the Hadamard transform.

    Args:
        columns: P.
        size: the number of sketched columns, at most P.
        generator: the source of the signs and the sample; fixes the device.

    Raises:
        ValueError: if size > P.
    """

    def __init__(self, columns: int, size: int, generator: Generator) -> None:
        if size > columns:
            raise ValueError(f"a cosine sketch of {columns} columns cannot have size {size}")
        device = generator.device
        self.columns = columns
        self.sign = 1 - 2 * torch.randint(2, (columns,), generator=generator, device=device)
        self.sample = torch.randperm(columns, generator=generator, device=device)[:size]
        self.scale = (columns / size) ** 0.5

    def __call__(self, matrix: Tensor) -> Tensor:
        """J S^T, shape (..., size), for J of shape (..., P)."""
        return self.scale * dct(matrix * self.sign)[..., self.sample]

    def transpose(self, sketched: Tensor) -> Tensor:
        """The map back: y S, shape (..., P), for y of shape (..., size)."""
        spread = sketched.new_zeros(*sketched.shape[:-1], self.columns)
        spread[..., self.sample] = sketched
        return self.scale * idct(spread) * self.sign


def dct(x: Tensor) -> Tensor:
    """The orthonormal cosine transform (type II) of the last dimension.

    y_k = w_k sum_n x_n cos(pi k (2n+1) / 2P), w_0 = sqrt(1/P), w_k = sqrt(2/P).
    Source: Makhoul (1980): one Fourier transform of the even, then the odd reversed entries.
    """
    size = x.shape[-1]
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    y = (torch.fft.fft(folded) * _twiddle(x)).real * (2 / size) ** 0.5
    y[..., 0] *= 0.5**0.5
    return y


def idct(y: Tensor) -> Tensor:
    """The inverse, which is the transpose, of `dct`."""
    size = y.shape[-1]
    y = y * (size / 2) ** 0.5
    y[..., 0] *= 2**0.5
    tail = torch.cat([torch.zeros_like(y[..., :1]), y[..., 1:].flip(-1)], dim=-1)
    folded = torch.fft.ifft(torch.complex(y, -tail) * _twiddle(y).conj()).real
    x = torch.empty_like(y)
    half = (size + 1) // 2
    x[..., ::2], x[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
    return x


def _twiddle(x: Tensor) -> Tensor:
    """exp(-i pi k / 2P), k = 0 ... P-1."""
    angle = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device) * (torch.pi / 2 / x.shape[-1])
    return torch.polar(torch.ones_like(angle), -angle)


@dataclass(frozen=True)
class Nystrom:
    """A ~ U diag(eigenvalues) U^T, U of shape (n, rank) with orthonormal columns."""

    U: Tensor
    eigenvalues: Tensor

    def product(self, v: Tensor) -> Tensor:
        """U diag(eigenvalues) U^T v, v of shape (n,) or (n, m)."""
        return self.U @ (self._column(self.eigenvalues, v) * (self.U.mT @ v))

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(U diag(eigenvalues) U^T + damping I)^-1 v."""
        return self.precondition(v, damping, tail=0.0) / damping

    def precondition(self, v: Tensor, damping: float, tail: float | None = None) -> Tensor:
        """M^-1 v = U (tail + damping) / (eigenvalues + damping) U^T v + (I - U U^T) v.

        Condition of M^-1 (A + damping I) is about 1 where the tail, by default the smallest
        eigenvalue kept, bounds what is left. Source: Frangella, Tropp & Udell (2023), eq. 1.3.
        """
        tail = float(self.eigenvalues[-1]) if tail is None else tail
        coefficients = self.U.mT @ v
        shrink = (tail + damping) / (self.eigenvalues + damping) - 1
        return v + self.U @ (self._column(shrink, v) * coefficients)

    @staticmethod
    def _column(values: Tensor, v: Tensor) -> Tensor:
        """The values shaped to scale the rows of U^T v."""
        return values if v.ndim == 1 else values[:, None]


def nystrom(product: Operator, like: Tensor, tail: float, generator: Generator) -> Nystrom:
    """A randomised Nystrom approximation with the rank read off the spectrum.

    The rank doubles from 8 until the smallest eigenvalue found is at most `tail` (Frangella,
    Tropp & Udell 2023, section 5.4: 10 times the damping is enough) or the rank is n.

    Args:
        product: V -> A V for V of shape (n, m), A symmetric positive semi-definite.
        like: any tensor whose first dimension is n, with the dtype and device to use.
        tail: the eigenvalue below which nothing needs resolving.
        generator: the source of the test matrix.
    """
    size, rank = len(like), min(8, len(like))
    while True:
        approximation = _nystrom_of_rank(product, like, rank, generator)
        if approximation.eigenvalues[-1] <= tail or rank == size:
            return approximation
        rank = min(2 * rank, size)


def _nystrom_of_rank(product: Operator, like: Tensor, rank: int, generator: Generator) -> Nystrom:
    """Algorithm 2.1 of Frangella, Tropp & Udell (2023): the shift keeps the Cholesky stable."""
    noise = torch.randn(
        len(like), rank, generator=generator, dtype=like.dtype, device=generator.device
    )
    test = torch.linalg.qr(noise.to(like.device)).Q
    image = product(test)
    shift = torch.finfo(like.dtype).eps * len(like) ** 0.5 * image.norm()
    image = image + shift * test
    lower = torch.linalg.cholesky(test.mT @ image)
    root = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT
    U, S, _ = torch.linalg.svd(root, full_matrices=False)
    return Nystrom(U, (S.square() - shift).clamp_min(0))
