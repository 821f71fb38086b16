"""Micro-batches: closures over some of the points each, which count as one over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Batches", "closures_of"]


class Batches:
    """Closures for `step`, each of some of the points, where all of them do not fit into memory.

        optimizer.step(Batches([partial(residuals, x) for x in points.split(10_000)]))

    The step is that of one closure with all points, to rounding: the loss of a term is the mean
    over the points of all batches, whose numbers may differ. Nothing of a batch is kept but its
    residuals, one number each. What an optimizer reads of J is added up batch by batch, each being
    linearised anew: once for the gradient, once for Kronecker factors, a sketch, or J^T J, once for
    every product with J or J^T; the kernel J J^T of b batches takes b^2. A closure must return the
    same residuals whenever it is called within a step.

    Args:
        closures: as `step` takes them.

    Raises:
        TypeError: for something else than functions.
        ValueError: if there is none.
    """

    def __init__(self, closures: Iterable[Callable[[], Any]]) -> None:
        self.closures = list(closures)
        if not self.closures:
            raise ValueError("no batches: give at least one closure")
        for each in self.closures:
            if not callable(each) or isinstance(each, Batches):
                raise TypeError(
                    f"a batch is a function that returns the residuals, found {type(each).__name__}"
                )

    def __call__(self) -> Any:
        """Batches are read one by one.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "Batches are for the optimizers of kfac_pinn, which read its closures one by one; for "
            "another, sum the losses of the closures"
        )


def closures_of(closure: Callable[[], Any]) -> list[Callable[[], Any]]:
    """Those of `Batches`, or the closure itself."""
    return closure.closures if isinstance(closure, Batches) else [closure]
