"""The Gauss-Newton solve in sample space: (J J^T + lambda I)^-1, exact, by Nystrom or by pivots.

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
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import aligned, damped_inverse, generator_for, nystrom, pivoted
from kfac_pinn.settings import INTEGER, NOT_NEGATIVE

__all__ = ["ExactKernel", "Kernel", "NystromKernel", "PivotedKernel", "natural_gradient"]

Solve: TypeAlias = Callable[[Tensor], Tensor]
NaturalGradient: TypeAlias = Callable[[Tensor, "Tensor | None"], Tensor]


def natural_gradient(linearization: Linearization, solve: Solve, damping: float) -> NaturalGradient:
    """(u, e) -> (J^T J + damping I)^-1 (J^T u + e), from solve(u) = (J J^T + damping I)^-1 u.
    Eq. (24) of docs/mathematics.md.

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
        # Rounding of J J^T grows with the longer side of J, as in `torch.linalg.matrix_rank`
        rank = max(len(linearization.residual), linearization.size)
        rtol = rank * torch.finfo(linearization.residual.dtype).eps
        return damped_inverse(linearization.kernel(), damping, rtol)


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

    tail: float = 1.0  # an eigenvalue of the size of the damping is half decided by it
    seed: int = 0

    def __post_init__(self) -> None:
        settings.check(self, tail=NOT_NEGATIVE, seed=INTEGER)

    def factor(self, linearization: Linearization, damping: float, step: int) -> Solve:
        product = partial(kernel_product, linearization)
        # Another projection every step, so that in the long run nothing is missed
        generator = generator_for(self.seed, step, linearization.residual.device)
        found = nystrom(product, linearization.residual, self.tail * damping, generator)
        return partial(found.solve, damping=damping)


@dataclass(frozen=True)
class PivotedKernel:
    """The kernel from columns of it, those of points drawn where most is left; for many points.

    J J^T ~ F F^T by randomly pivoted Cholesky, of the rank at which all that is left, its trace, is
    `tail` times the damping. Half the operations of `NystromKernel` a column, and the points that
    weigh most come first: on a boundary, at a front.

    Args:
        tail: in units of the damping; with 0 the rank is R, or what rounding leaves of it.
        seed: together with the number of the step it fixes the points.

    Source: Chen, Epperly, Tropp & Webber (2025), arXiv:2207.06503.
    """

    tail: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        settings.check(self, tail=NOT_NEGATIVE, seed=INTEGER)

    def factor(self, linearization: Linearization, damping: float, step: int) -> Solve:
        # A CPU generator on any device: every process has to draw the same points
        found = pivoted(
            partial(kernel_columns, linearization),
            kernel_diagonal(linearization),
            self.tail * damping,
            generator_for(self.seed, step),
        )
        return partial(found.solve, damping=damping)


def kernel_diagonal(linearization: Linearization) -> Tensor:
    """diag(J J^T), shape (R,)."""
    return linearization.whole(
        torch.cat([rows.square().sum(1) for rows, _ in linearization.batches()])
    )


def kernel_columns(linearization: Linearization, index: Tensor) -> Tensor:
    """J J_i^T for the rows i of J with these indices (m,), shape (R, m)."""
    place = torch.full_like(linearization.residual, -1, dtype=torch.long)
    place[index] = torch.arange(len(index), device=place.device)
    # Rows are formed twice, so that J itself never stands in memory
    chosen = linearization.residual.new_zeros(len(index), linearization.size)
    mine = linearization.mine(place)
    for rows, part in aligned((rows for rows, _ in linearization.batches()), mine):
        chosen[part[part >= 0]] = rows[part >= 0]
    (chosen,) = linearization.processes.sum(chosen)
    return linearization.whole(torch.cat([rows @ chosen.mT for rows, _ in linearization.batches()]))


def kernel_product(linearization: Linearization, V: Tensor) -> Tensor:
    """J J^T V for V (R, m), from rows of J in batches of bounded memory."""
    # Rows are formed twice, so that J itself never stands in memory
    pulled = V.new_zeros(linearization.size, V.shape[1])
    mine = linearization.mine(V)
    for rows, part in aligned((rows for rows, _ in linearization.batches()), mine):
        pulled.addmm_(rows.mT, part)
    (pulled,) = linearization.processes.sum(pulled)
    return linearization.whole(torch.cat([rows @ pulled for rows, _ in linearization.batches()]))
