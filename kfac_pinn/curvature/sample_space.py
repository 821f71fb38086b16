"""The Gauss-Newton solve in sample space: (J J^T + lambda I)^-1, exact, by Nystrom or sketched.

With R residuals and P parameters the identities (Woodbury)

    (J^T J + lambda I)^-1 J^T u = J^T (J J^T + lambda I)^-1 u
    (J^T J + lambda I)^-1 e     = (e - J^T (J J^T + lambda I)^-1 J e) / lambda

turn a system of P unknowns into one of R. The kernel J J^T comes from the factors of J, layer by
layer; J itself is never formed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import CountSketch, nystrom, pinv_solve

__all__ = ["ExactKernel", "Kernel", "NystromKernel", "SketchedKernel", "factored", "sample_space"]

Solve: TypeAlias = Callable[[Tensor], Tensor]
NaturalGradient: TypeAlias = Callable[[Tensor, "Tensor | None"], Tensor]


def factored(matrix: Tensor, damping: float | Tensor, rtol: float | None = None) -> Solve:
    """b -> (M + damping I)^-1 b, factored once; b -> M^+ b where the damping is zero.

    Cholesky; the pseudo-inverse also where rounding has made M + damping I indefinite.

    Args:
        matrix: M, symmetric positive semi-definite, shape (n, n).
        damping: a number, or one for each unknown (n,).
        rtol: eigenvalues below rtol times the largest count as zero in a pseudo-inverse.
    """
    damping = torch.as_tensor(damping, dtype=matrix.dtype, device=matrix.device)
    damped = matrix + torch.diag(damping.expand(len(matrix)))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if failed or not damping.all():
        return partial(pinv_solve, damped, rtol=rtol)
    return lambda b: torch.cholesky_solve(b[:, None], lower)[:, 0]


def sample_space(linearization: Linearization, solve: Solve, damping: float) -> NaturalGradient:
    """(u, e) -> (J^T J + damping I)^-1 (J^T u + e), from solve(u) = (J J^T + damping I)^-1 u.

    Both identities above in one solve: J^T solve(u - J e / damping) + e / damping.
    """

    def apply(u: Tensor, e: Tensor | None = None) -> Tensor:
        if e is None:
            return linearization.vjp(solve(u))
        e = e / damping
        return linearization.vjp(solve(u - linearization @ e)) + e

    return apply


class Kernel(Protocol):
    """How (J J^T + damping I)^-1 is applied."""

    def factor(self, linearization: Linearization, damping: float, step: int) -> Solve:
        """u -> (J J^T + damping I)^-1 u, for u (R,); `step` changes the random numbers."""


@dataclass(frozen=True)
class ExactKernel:
    """Cholesky of the whole kernel: R^2 numbers, R^3 / 3 operations."""

    def factor(self, linearization: Linearization, damping: float, step: int) -> Solve:
        rank = max(len(linearization.residual), linearization.size)
        rtol = rank * torch.finfo(linearization.residual.dtype).eps
        return factored(linearization.kernel(), damping, rtol)


@dataclass(frozen=True)
class NystromKernel:
    """The kernel's leading eigenvectors by a random projection; for many points.

    J J^T ~ U diag(s) U^T, of the rank at which the smallest eigenvalue found is `tail` times the
    damping: beyond it, damping decides. Costs 2 R P operations for each of its columns, and R
    numbers; exact up to rounding as `tail` goes to zero.

    Args:
        tail: in units of the damping; with 0 the rank is R.
        seed: together with the number of the step it fixes the projection.

    Source: Frangella, Tropp & Udell (2023); for PINNs Guzman-Cordero et al. (2025),
    arXiv:2505.12149, section 3.3.
    """

    tail: float = 1.0
    seed: int = 0

    def factor(self, linearization: Linearization, damping: float, step: int) -> Solve:
        product = partial(kernel_product, linearization)
        generator = generator_for(linearization.residual, self.seed, step)
        found = nystrom(product, linearization.residual, self.tail * damping, generator)
        return partial(found.solve, damping=damping)


@dataclass(frozen=True)
class SketchedKernel:
    """The kernel of signed sums S J of random rows: S^T (S J J^T S^T + damping I)^-1 S.

    The step is the exact one of the sketched least-squares problem (S J, S r); it becomes exact
    as the buckets outnumber the pairs of points. Costs P size^2 operations and P size numbers.

    Args:
        size: the number of sketched rows.
        seed: together with the number of the step it fixes the sketch.

    Source: Clarkson & Woodruff (2013).
    """

    size: int
    seed: int = 0

    def factor(self, linearization: Linearization, damping: float, step: int) -> Solve:
        u = linearization.residual
        sketch = CountSketch(len(u), self.size, generator_for(u, self.seed, step))
        rows = sketched_rows(linearization, sketch)
        solve = factored(rows @ rows.mT, damping)
        sign = sketch.sign.to(u.dtype)
        return lambda u: sign * solve(sketch(u))[sketch.bucket]


def generator_for(like: Tensor, seed: int, step: int) -> Generator:
    """Random numbers that depend on seed and step only, so that resumed runs are exact."""
    return Generator(like.device).manual_seed((seed << 32) + step)


def kernel_product(linearization: Linearization, V: Tensor) -> Tensor:
    """J J^T V for V (R, m), from rows of J in batches of bounded memory."""
    pulled = V.new_zeros(linearization.size, V.shape[1])
    start = 0
    for rows, _ in linearization.batches():
        pulled.addmm_(rows.mT, V[start : start + len(rows)])
        start += len(rows)
    return torch.cat([rows @ pulled for rows, _ in linearization.batches()])


def sketched_rows(linearization: Linearization, sketch: CountSketch) -> Tensor:
    """S J, shape (size, P), from rows of J in batches of bounded memory."""
    like = linearization.residual
    out, start = like.new_zeros(sketch.size, linearization.size), 0
    for rows, _ in linearization.batches():
        points = slice(start, start + len(rows))
        sign = sketch.sign[points].to(rows.dtype)
        out.index_add_(0, sketch.bucket[points], sign[:, None] * rows)
        start += len(rows)
    return out
