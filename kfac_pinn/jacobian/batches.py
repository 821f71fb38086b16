"""Micro-batches: closures over some of the points each, which count as one over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.settings import FLAG, TENSOR, many, whole

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Batches", "closures_of"]


class Batches:
    """Closures for `step`, each of some of the points, where all of them do not fit into memory.

        optimizer.step(Batches([partial(residuals, x) for x in points.split(10_000)]))

        optimizer.step(Batches.of(residuals, (x, xb), at_once=500, keep=True))

    The step is that of one closure with all points, to rounding: the loss of a term is the mean
    over the points of all batches, whose numbers may differ. The graph of a batch is gone before
    the next one is evaluated. With `keep`, what is left of it stays for the step: z and g of every
    layer. Without, only its residuals do, one number each, and it is linearised anew for all that
    an optimizer reads of J: once for the gradient, once for Kronecker factors, a sketch, or J^T J,
    once for every product with J or J^T; the kernel J J^T of b batches takes b^2. A closure must
    then return the same residuals whenever it is called within a step.

    Args:
        closures: as `step` takes them.
        keep: the Jacobian of a batch in factors, or compute it again.

    Raises:
        TypeError: for something else than functions.
        ValueError: if there is none.
    """

    def __init__(self, closures: Iterable[Callable[[], Any]], *, keep: bool = False) -> None:
        self.closures, self.keep = list(closures), keep
        settings.check(self, keep=FLAG)
        if not self.closures:
            raise ValueError("no batches: give at least one closure")
        for each in self.closures:
            if not callable(each) or isinstance(each, Batches):
                raise TypeError(
                    f"a batch is a function that returns the residuals, found {type(each).__name__}"
                )

    @classmethod
    def of(
        cls,
        residuals: Callable[..., Any],
        points: Sequence[Tensor],
        *,
        at_once: int,
        keep: bool = False,
    ) -> Self:
        """Batches of at most so many points of each term, all terms in every batch.

        Args:
            residuals: of as many arguments as there are tensors, returns what a closure returns.
            points: one tensor (N_k, ...) a term, its rows divided evenly.
            at_once: the most rows of one tensor in a batch.
            keep: as above.

        Raises:
            TypeError, ValueError: for points that are no tensors, or fewer than batches.
        """
        whole(1)("Batches: at_once", at_once)
        if isinstance(points, Tensor):
            raise TypeError("Batches: points must be a tuple, one tensor a term: write (x,)")
        many(TENSOR)("Batches: points", points)
        sizes = [len(x) for x in points]
        count = -(-max(sizes) // at_once)
        if min(sizes) < count:
            raise ValueError(
                f"Batches: at_once={at_once} makes {count} batches of {max(sizes)} points, but "
                f"points {sizes.index(min(sizes))} are {min(sizes)} only, and every batch needs "
                f"one: write at_once={-(-max(sizes) // max(min(sizes), 1))}, or draw more of them"
            )
        parts = zip(*(x.tensor_split(count) for x in points), strict=True)
        return cls([partial(residuals, *each) for each in parts], keep=keep)

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
