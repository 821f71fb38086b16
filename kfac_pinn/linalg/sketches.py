"""Random compressions: of the rows of a matrix, and of a positive semi-definite operator."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from kfac_pinn.linalg.dense import aligned
from kfac_pinn.linalg.krylov import Operator

__all__ = ["CountSketch", "Nystrom", "generator_for", "nystrom", "pivoted"]


def generator_for(seed: int, step: int, device: torch.device | str = "cpu") -> Generator:
    """Random numbers that depend on seed and step only, so that resumed runs are exact."""
    # A CPU generator reads 32 bits of its seed. The odd constant, 2^32 over the golden ratio,
    # spreads the seeds over them: the streams of two seeds meet after millions of steps only.
    return Generator(device).manual_seed((seed * 0x9E3779B1 + step) % 2**32)


class CountSketch:
    """S (size, N) with h random signs in every column: S J adds signed rows of J.

        S = [S_1; ...; S_h] / sqrt(h),    S_i with one entry +-1 in every column

    E[S^T S] = I, with ones on the diagonal of S^T S itself, and S J costs h passes over J. More
    hashes help where a few rows of J weigh most: two of them rarely share all their buckets. The
    rows of J are dealt out, so that all buckets are equally full.

    Attributes:
        bucket, sign: of every row of J, (N, h).

    Args:
        rows: N.
        size: the number of sketched rows.
        generator: the source of the buckets and signs; fixes the device.
        hashes: h, how many sketched rows each row enters, one in each h-th part of them.

    Raises:
        ValueError: unless 1 <= hashes <= size.

    Source: Clarkson & Woodruff (2013), h = 1; Nelson & Nguyen (2013), h > 1.
    """

    def __init__(self, rows: int, size: int, generator: Generator, hashes: int = 1) -> None:
        if not 1 <= hashes <= size:
            raise ValueError(
                f"a CountSketch of {size} rows cannot have {hashes} hashes; give between one and "
                "as many as there are rows"
            )
        device = generator.device
        self.size = size
        self.ends = [size * part // hashes for part in range(hashes + 1)]
        parts = [
            start + torch.randperm(rows, generator=generator, device=device) % (end - start)
            for start, end in pairwise(self.ends)
        ]
        self.bucket = torch.stack(parts, dim=1)
        self.sign = 1 - 2 * torch.randint(2, (rows, hashes), generator=generator, device=device)

    @property
    def scale(self) -> float:
        """sqrt(h)."""
        return math.sqrt(self.bucket.shape[1])

    def at(self, rows: slice) -> CountSketch:
        """The columns of S of some rows of J: what these add to S J."""
        part = copy.copy(self)
        part.bucket, part.sign = self.bucket[rows], self.sign[rows]
        return part

    def __call__(self, matrix: Tensor) -> Tensor:
        """S J for J of shape (N, ...)."""
        return self.of([matrix])

    def groups(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Hash by hash: which rows of S, the rows of J that each adds up (m, k), and their signs.

        Where fewer than k rows are added, one more stands there with the sign 0.
        """
        spans = pairwise(self.ends)
        for (start, end), bucket, sign in zip(spans, self.bucket.T, self.sign.T, strict=True):
            order = bucket.argsort()
            counts = torch.bincount(bucket - start, minlength=end - start)
            width = int(counts.max())
            place = torch.arange(width, device=order.device)
            first = (counts.cumsum(0) - counts)[:, None]
            # Past a bucket's end there are rows of the next ones, or none: their sign is 0 below
            index = order[(first + place).clamp_max(len(order) - 1)]
            inside = place < counts[:, None]
            yield slice(start, end), index, sign[index] * inside

    def of(self, blocks: Iterable[Tensor]) -> Tensor:
        """S J from blocks of rows of J in order, one block in memory at a time.

        Raises:
            ValueError: if there is no block.
        """
        total: Tensor | None = None
        for rows, buckets, signs in aligned(blocks, self.bucket, self.sign):
            if total is None:
                total = rows.new_zeros(self.size, *rows.shape[1:])
            shape = (-1, *[1] * (rows.ndim - 1))
            for bucket, sign in zip(buckets.T.to(rows.device), signs.T.to(rows), strict=True):
                total.index_add_(0, bucket, sign.reshape(shape) * rows)
        if total is None:
            raise ValueError("S J was asked of no rows; give at least one block")
        return total / self.scale


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


FIRST_RANK = 8  # cheap beside one product with A, and three doublings from a hundred


def nystrom(product: Operator, like: Tensor, tail: float, generator: Generator) -> Nystrom:
    """A randomised Nystrom approximation with the rank read off the spectrum.

    The rank doubles until the smallest eigenvalue found is at most `tail` (Frangella,
    Tropp & Udell 2023, section 5.4: 10 times the damping is enough) or the rank is n.

    Args:
        product: V -> A V for V of shape (n, m), A symmetric positive semi-definite.
        like: any tensor whose first dimension is n, with the dtype and device to use.
        tail: the eigenvalue below which nothing needs resolving.
        generator: the source of the test matrix.
    """
    size, rank = len(like), min(FIRST_RANK, len(like))
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
    # Orthonormal, as in the source: the shift below is then in units of A
    test = torch.linalg.qr(noise.to(like.device)).Q
    image = product(test)
    # Rounding makes test^T A test indefinite by this much at most; it is taken off again below.
    shift = torch.finfo(like.dtype).eps * len(like) ** 0.5 * image.norm()
    image = image + shift * test
    lower = torch.linalg.cholesky(test.mT @ image)
    # A ~ root root^T: the squares of root's singular values keep small eigenvalues apart
    root = torch.linalg.solve_triangular(lower, image.mT, upper=False).mT
    U, S, _ = torch.linalg.svd(root, full_matrices=False)
    return Nystrom(U, (S.square() - shift).clamp_min(0))


def pivoted(columns: Operator, diagonal: Tensor, tail: float, generator: Generator) -> Nystrom:
    """The same from columns of A alone, drawn where most of it is left: pivoted Cholesky.

        A ~ F F^T,     d = diag(A - F F^T),     the next columns i with probability d_i / sum d

    The rank doubles until all that is left, sum d, is at most `tail`. With rank k / eps plus
    k log(1 / eta) steps, that is E sum d <= (1 + eps) (eigenvalues beyond k) at eta of the start.

    Args:
        columns: indices (m,) -> those columns of A, shape (n, m).
        diagonal: of A, shape (n,).
        tail: the trace below which nothing needs resolving.
        generator: the source of the pivots.

    Source: Chen, Epperly, Tropp & Webber (2025), "Randomly pivoted Cholesky", algorithm 2 (in
    blocks), theorem 5.1.
    """
    left, F = diagonal.clone(), diagonal.new_zeros(len(diagonal), 0)
    rounding = torch.finfo(left.dtype).eps * float(left.sum())
    block = min(FIRST_RANK, len(left))
    while F.shape[1] < len(left) and float(left.sum()) > max(tail, rounding):
        chances = left.to(generator.device, torch.float64)
        drawn = torch.multinomial(chances, block, replacement=True, generator=generator)
        index = drawn.unique().to(left.device)
        found = columns(index) - F @ F[index].mT
        # Rounding makes the pivots' block indefinite by this much at most
        lower = torch.linalg.cholesky(found[index] + rounding * torch.eye(len(index)).to(left))
        F = torch.cat([F, torch.linalg.solve_triangular(lower, found.mT, upper=False).mT], dim=1)
        left = (diagonal - F.square().sum(1)).clamp_min(0)
        left[index] = 0
        block = min(F.shape[1], len(left) - F.shape[1])
    U, S, _ = torch.linalg.svd(F, full_matrices=False)
    return Nystrom(U, S.square())
