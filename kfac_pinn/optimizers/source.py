"""Where steps read from: the closure, or the losses sent backwards since the last one."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kfac_pinn.jacobian.backward import BackwardWatch, depends_on
from kfac_pinn.optimizers.reading import (
    ByClosure,
    ByLosses,
    Reading,
    add_gradients,
    added_by,
    release,
)
from kfac_pinn.processes import ALONE, Group

__all__ = ["NO_DEFAULT", "Source"]

# A default that `inspect` reports as none: frameworks ask `step` whether it needs a closure, and
# hand one over if `closure` has no default.
NO_DEFAULT: Any = inspect.Parameter.empty


class Source:
    """Watches for losses that are sent backwards, until the first step with a closure.

    Attributes:
        parameters: losses that do not depend on them are another model's.
        zeroed: whether `zero_grad` was called since the last step began.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        self.zeroed, self._stepping = False, False
        self._watch = BackwardWatch(parameters)
        self._watch.start()
        # An optimizer that is forgotten must not go on keeping graphs
        weakref.finalize(self, self._watch.stop)

    @property
    def parameters(self) -> list[Tensor]:
        """Of the optimizer."""
        return self._watch.parameters

    @parameters.setter
    def parameters(self, parameters: list[Tensor]) -> None:
        self._watch.parameters = parameters

    @property
    def losses(self) -> list[Tensor]:
        """What was sent backwards since, and depends on the parameters."""
        return [loss for loss in self._watch.losses if depends_on(loss, self.parameters)]

    def __getstate__(self) -> list[Tensor]:
        return self.parameters

    def __setstate__(self, parameters: list[Tensor]) -> None:
        """A copy watches for itself."""
        self.__init__(parameters)  # type: ignore[misc]

    def zero(self) -> None:
        """Losses sent backwards from now on are those of the next step."""
        self.zeroed = True
        if not self._stepping:
            self._watch.clear()
            self._watch.start()

    @contextmanager
    def reading(
        self, closure: Any, name: str, times: int, processes: Group = ALONE
    ) -> Iterator[Reading]:
        """The closure, or the losses so far; afterwards no graph is kept.

        Args:
            closure: as `step` got it.
            name: of the optimizer, for errors.
            times: how often it will be read.
            processes: whose closures, or losses, belong together.

        Raises:
            RuntimeError: without a closure, if no loss was sent backwards, or several steps are to
                read it.
        """
        losses = self.losses
        missing = closure is None or closure is NO_DEFAULT
        # A closure's own backward() is no loss of the next step
        self._watch.stop()
        self._stepping, self.zeroed = True, False
        try:
            added = [] if missing else self._added(closure) if losses else None
            if added is None:
                yield ByClosure(closure, len(losses), processes)
            else:
                self._watch.losses += added
                with processes.together():
                    found = by_losses(self.losses, name, times, processes, self._watch.taken)
                yield found
        finally:
            self._stepping = False
            release(self._watch.losses)
            self._watch.clear()
            # Who hands over closures needs no watching, which would keep graphs alive
            if missing:
                self._watch.start()

    def _added(self, closure: Callable[[], Any]) -> list[Tensor] | None:
        """What a closure adds to the gradients that wait; None where it zeroes them."""
        added = added_by(closure, self.parameters)
        if added is None or self.zeroed:
            return None
        add_gradients(added)
        return added


def by_losses(
    losses: list[Tensor], name: str, times: int, processes: Group = ALONE, taken: bool = False
) -> ByLosses:
    """What a step without a closure reads."""
    if taken:
        raise RuntimeError(TAKEN.format(name=name))
    if not losses:
        raise RuntimeError(NO_LOSS.format(name=name))
    if times > 1:
        raise RuntimeError(
            f"max_iter={times} steps in one call need a closure: write "
            "`optimizer.step(closure)`, or leave out max_iter"
        )
    return ByLosses(losses, processes)


TAKEN = (
    "another optimizer of this package has stepped on the loss that {name}.step() is to read, and "
    "moved parameters that it was computed from. Give one optimizer all parameters, as groups if "
    "lr is to differ, or compute the loss and call backward() again between the two steps"
)
NO_LOSS = (
    "{name}.step() was called without a closure, and no loss was sent backwards to its parameters "
    "since the last step or zero_grad(). Write `optimizer.step(closure)`, with a closure that "
    "returns the residuals or the loss, or `optimizer.zero_grad(); loss = ...; loss.backward(); "
    "optimizer.step()`, backward() without create_graph, after the optimizer was constructed"
)
