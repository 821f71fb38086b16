"""Where exact steps are affordable: by counted operations, so that no stopwatch steers a run."""

from __future__ import annotations

from dataclasses import dataclass

from kfac_pinn import settings
from kfac_pinn.curvature.compression import operations, row_count
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.settings import ANY_SIZE

__all__ = ["Affordable"]

MILLISECOND = 2e7  # operations


@dataclass(frozen=True)
class Affordable:
    """Exact steps where one takes at most so many operations, counted from J's size (R, P).

        200 R P + 2 k m P + 10 m^3,     k, m = R, min(R, P)  up to min(R, P) = 1,000,
                                        k, m = random sums of rows, m of them,  beyond,

    about a hundred passes over J's factors for linearising it and for trials of the loss, the QR
    decomposition of k rows and the singular values of m; and a backward pass for every row that is
    left to autograd. About 2e10 are a second of one core. `Affordable(0)`: never;
    `Affordable(math.inf)`: always.

    The count falls at min(R, P) = 1,000, since `GaussNewton` has all rows in its decomposition up
    to there and sums of a few hundred of them beyond: 2.0e10 with 4,700 rows and 1,000 parameters,
    4.6e9 with 1,001. So 1,000 rows are affordable with up to 4,500 parameters, and 1,001 with up to
    31,000.

    Args:
        operations: of one step, at most.

    Raises:
        TypeError, ValueError: for a number that is negative, or no number.

    Source: eq. (35) of docs/mathematics.md; `curvature.compression.operations`.
    """

    operations: float = 2e10

    def __post_init__(self) -> None:
        settings.check(self, operations=ANY_SIZE)

    def __call__(self, linearization: Linearization) -> bool:
        """Whether the steps from here are exact."""
        found = operations(row_count(linearization), linearization.size)
        return found + by_autograd(linearization) <= self.operations


def by_autograd(linearization: Linearization) -> float:
    """Operations of the rows that are left to autograd: a backward pass each."""
    pairs = zip(linearization.terms, linearization.totals, strict=True)
    rows = sum(total for term, total in pairs if term.rest is not None)
    # A pass goes through all points, and takes a millisecond however few they are
    return rows * (4.0 * len(linearization.residual) * linearization.size + MILLISECOND)
