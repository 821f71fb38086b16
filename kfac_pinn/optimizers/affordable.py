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

    About 2e10 are a second of one core. `Affordable(0)`: never; `Affordable(math.inf)`: always. The
    count falls where min(R, P) passes a thousand, since the rows are sketched from there on.

    Args:
        operations: of one step, at most.

    Raises:
        TypeError, ValueError: for a number that is negative, or no number.
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
