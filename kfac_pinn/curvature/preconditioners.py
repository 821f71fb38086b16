"""Preconditioners of conjugate gradients on J^T J + lambda I: cheap inverses M^-1 of a rough M.

They change how many iterations a solve takes, and what a truncated one finds, never its solution.
The Gramian of a PINN is close to one of low rank, which plain conjugate gradients exploit: measured
(2-32-32-1 network, 460 residuals, trained, lambda = 1e-5), Nystrom needs 10 iterations where plain
CG needs 70; a diagonal or Kronecker M helped in the first 20 iterations only, cost many later, and
was given up (`KFACPINN` corrects the Kronecker one as it goes). While the damping is large, plain
CG needs few iterations anyway and is faster (5d Poisson, 10,065 parameters, 90 s: 37 steps against
19).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import generator_for, nystrom
from kfac_pinn.settings import INTEGER, NOT_NEGATIVE

__all__ = ["NystromPreconditioner", "Preconditioner"]

Operator: TypeAlias = Callable[[Tensor], Tensor]


class Preconditioner(Protocol):
    """How M is built from a linearisation."""

    def factor(self, linearization: Linearization, damping: Tensor) -> Operator:
        """v -> M^-1 v, symmetric positive definite; v and damping (P,)."""


@dataclass(frozen=True)
class NystromPreconditioner:
    """M = U diag(s + lambda) U^T / (s_min + lambda) + (I - U U^T), J^T J ~ U diag(s) U^T.

    The eigenvectors come from a random projection, of the rank at which s_min is `tail` times the
    damping; about ten iterations of conjugate gradients are then enough.

    Args:
        tail: in units of the (smallest) damping.
        seed: of the projection, the same at every step.

    Source: Frangella, Tropp & Udell (2023), "Randomized Nystrom preconditioning".
    """

    tail: float = 10.0  # Frangella, Tropp & Udell (2023), section 5.4
    seed: int = 0

    def __post_init__(self) -> None:
        settings.check(self, tail=NOT_NEGATIVE, seed=INTEGER)

    def factor(self, linearization: Linearization, damping: Tensor) -> Operator:
        level = float(damping.min())
        found = nystrom(
            lambda V: gramian_product(linearization, V),
            damping,
            self.tail * level,
            generator_for(self.seed, 0, damping.device),
        )
        return lambda v: found.precondition(v, level)


def gramian_product(linearization: Linearization, V: Tensor) -> Tensor:
    """J^T J V for V (P, m), from rows of J in batches of bounded memory."""
    product = torch.zeros_like(V)
    for rows, _ in linearization.batches():
        product.addmm_(rows.mT, rows @ V)
    return linearization.processes.sum(product)[0]
