"""linearize(closure, parameters): residuals and their Jacobian, checked against autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.batches import Batches
from kfac_pinn.jacobian.capture import PRECISION
from kfac_pinn.jacobian.capture.data import data_of
from kfac_pinn.jacobian.check import CheckSchedule, due, names_of
from kfac_pinn.jacobian.layers import Block
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.losses import Residuals
from kfac_pinn.jacobian.running import evaluate, explained, terms_at
from kfac_pinn.jacobian.sharded import ShardedLinearization, Shards
from kfac_pinn.jacobian.share import NothingReturnedError, SelfLinearizing, linearized, share_of
from kfac_pinn.jacobian.sources import Source
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.processes import ALONE, Alone, Group
from kfac_pinn.settings import FLAG, NAMES, having, optional, shown, takes

__all__ = [
    "Block",
    "Linearization",
    "NothingReturnedError",
    "SelfLinearizing",
    "TermJacobian",
    "evaluate",
    "linearize",
    "linearize_loss",
    "terms_at",
]


@takes(names=optional(NAMES), data=FLAG, processes=having("together", "Processes()"))
def linearize(
    closure: Callable[[], Residuals],
    parameters: Iterable[Tensor],
    check: bool | CheckSchedule | None = None,
    names: Sequence[str] | None = None,
    *,
    data: bool = False,
    processes: Group = ALONE,
) -> Linearization:
    """Residual and Jacobian of a closure, from one forward pass and one backward pass a residual.

    Args:
        closure: takes no arguments, returns residuals (a tensor (N,) or (N, 1), a tuple or a dict
            of them; `ConvexLoss` for a term that is not a square). One with a method `linearize` is
            asked for its own (`SelfLinearizing`). `Batches` of closures count as one.
        parameters: the trained tensors; other leaves are constants.
        check: compare J^T u with autograd's, parameter by parameter, for a random u: now, or when a
            schedule says so; None: the first time that a program is seen; False: never.
        names: of the parameters, for errors.
        data: note what tells its points from others, in `Linearization.data`.
        processes: that have further points, each in a closure of its own.

    Raises:
        TypeError, ValueError: for a closure that returns something else, or parameters that differ
            in dtype or device, are frozen or given twice.
        RuntimeError: for a residual that depends on none of the parameters, or whose Jacobian
            cannot be seen exactly; the parameter is named.
        FloatingPointError: for a residual or a gradient that is not finite.
    """
    with processes.together():
        known = named(tensors(parameters), names)
        processes.same(known)
        shared = not isinstance(processes, Alone) or isinstance(closure, Batches)
        if shared and isinstance(closure, SelfLinearizing):
            raise TypeError(ONE_PROCESS.format(closure=type(closure).__name__))
        if isinstance(closure, Batches):
            totals = processes.totals(counted(closure))
            anew = Anew(closure, known, check, data, totals)
            shards: Shards = kept(anew()) if closure.keep else anew
        else:
            shards = kept([share_of(closure, known, check, data, processes.totals)])
    return ShardedLinearization(shards, processes) if shared else next(shards())


def kept(shares: Iterable[Linearization]) -> Shards:
    """Shards that stay in memory, each made when it is its turn for the first time."""
    coming, made = iter(shares), list[Linearization]()

    def shards() -> Iterator[Linearization]:
        yield from made
        for share in coming:
            made.append(share)
            yield share

    return shards


def counted(batches: Batches) -> list[int]:
    """The number of points of every term in all batches.

    Raises:
        RuntimeError: for batches of different terms.
    """
    counts = [[term.points for term in terms_at(closure)] for closure in batches.closures]
    if differ := [b for b, found in enumerate(counts) if len(found) != len(counts[0])]:
        raise RuntimeError(
            f"batch 0 returns {len(counts[0])} terms, batch {differ[0]} {len(counts[differ[0]])}: "
            "every batch returns the same terms, of some of the points"
        )
    return [sum(column) for column in zip(*counts, strict=True)]


class Anew:
    """The batches of a closure, each linearised when it is its turn, at the same parameters.

    Args:
        batches: the closures.
        known, check, data: as of `share_of`; compared with autograd the first time only.
        totals: the points of every term in all batches of all processes.
    """

    def __init__(
        self,
        batches: Batches,
        known: dict[Tensor, str],
        check: bool | CheckSchedule | None,
        data: bool,
        totals: list[int],
    ) -> None:
        self.closures, self.known, self.data = batches.closures, known, data
        self.check, self.totals = check, totals
        self.here = [p.detach().clone() for p in known]
        self.losses: dict[int, float] = {}

    def __call__(self) -> Iterator[Linearization]:
        """One after another.

        Raises:
            RuntimeError: for a batch whose loss is another than it was.
        """
        check, self.check = self.check, False
        # Nothing here holds a share while the next one is made
        return map(partial(self._share, check), range(len(self.closures)))

    def _share(self, check: bool | CheckSchedule | None, number: int) -> Linearization:
        """That of one batch, at the parameters of the step."""
        closure = self.closures[number]
        with at(self.known, self.here):
            share = share_of(closure, self.known, check, self.data, lambda _: self.totals)
        known = self.losses.setdefault(number, share.loss)
        if abs(share.loss - known) > torch.finfo(share.residual.dtype).eps ** 0.5 * abs(known):
            raise RuntimeError(
                f"batch {number} has the loss {known:.6g} first and {share.loss:.6g} later in "
                "the same step: draw its points before the step, not inside the closure"
            )
        return share


@contextmanager
def at(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> Iterator[None]:
    """Parameters at other values for a while; a trial may have moved them."""
    moved = [p.detach().clone() for p in parameters]
    write(parameters, values)
    try:
        yield
    finally:
        write(parameters, moved)


def write(parameters: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """As `Objective` does."""
    for p, value in zip(parameters, values, strict=True):
        p.data.copy_(value)


def linearize_loss(
    losses: Tensor | Sequence[Tensor],
    parameters: Iterable[Tensor],
    check: bool | CheckSchedule | None = None,
    names: Sequence[str] | None = None,
    *,
    processes: Group = ALONE,
) -> Linearization:
    """The linearisation of a loss that has been computed already, or of the sum of several.

    Args:
        losses: tensors of one number each, with their graphs (`BackwardWatch` keeps them).
        parameters, check, names, processes: as of `linearize`.

    Raises:
        As `linearize`.
    """
    losses = [losses] if isinstance(losses, Tensor) else list(losses)
    with processes.together(), torch.enable_grad():
        known = named(tensors(parameters), names)
        processes.same(known)
        # backward() adds up what several calls bring: so does the sum of the losses
        total = torch.stack([loss.reshape(()) for loss in losses]).sum()
        with explained(list(known)), due(check, known, [linearize_loss]) as now:
            source = Source(known, None, now, check is not False)
            share = linearized(total, known, source, processes.totals)
            share.data = data_of([total], list(known))
    return share if isinstance(processes, Alone) else ShardedLinearization(kept([share]), processes)


def tensors(parameters: Any) -> list[Tensor]:
    """The trained tensors, each a tensor."""
    single = isinstance(parameters, (Tensor, str, bytes)) or not isinstance(parameters, Iterable)
    found = [] if single else list(parameters)
    if single or not all(isinstance(p, Tensor) for p in found):
        raise TypeError(
            "parameters must be tensors in a list, model.parameters(), found "
            f"{shown(parameters if single else found)}"
        )
    return found


def named(parameters: list[Tensor], names: Sequence[str] | None) -> dict[Tensor, str]:
    """parameter -> name, after a look at what can be wrong with them."""
    if not parameters:
        raise ValueError("no parameters: there is nothing to train")
    names = names_of(parameters, names)
    if len(names) != len(parameters):
        raise ValueError(f"names of {len(parameters)} parameters, found {len(names)}: {names}")
    for name, p in zip(names, parameters, strict=True):
        refuse_parameter(name, p, parameters[0])
    result = dict(zip(parameters, names, strict=True))
    if len(result) < len(parameters):
        twice = next(n for n, p in zip(names, parameters, strict=True) if result[p] != n)
        raise ValueError(f"parameter {twice} is given twice; pass each parameter once")
    return result


def refuse_parameter(name: str, p: Tensor, like: Tensor) -> None:
    """Trained parameters are leaves of one floating dtype, at least float32, on one device."""
    if type(p).__name__ == "DTensor" or hasattr(p, "_is_flat_param"):
        raise ValueError(
            f"parameter {name} is a piece of a tensor that is cut up among processes "
            f"({type(p).__name__}: FullyShardedDataParallel). A step needs it whole: leave the "
            "model as it is and write processes=Processes(), by which the points are shared out"
        )
    if not (p.is_leaf and p.requires_grad):
        raise ValueError(f"parameter {name} is not a leaf that requires a gradient; leave it out")
    kinds = [(t.dtype.to_real(), t.device) for t in (p, like)]
    if kinds[0] != kinds[1] or not (p.is_floating_point() or p.is_complex()):
        raise ValueError(
            f"parameter {name} is {p.dtype} on {p.device}, the first one {like.dtype} on "
            f"{like.device}: all parameters must have one precision and device. Call e.g. "
            "model.double() before building the optimizer (complex parameters: "
            "p.data = p.data.to(torch.complex128))"
        )
    # A Gramian squares the condition number: half precision has three decimals before that
    if torch.finfo(p.dtype).bits < 32:
        raise ValueError(f"parameter {name} is {p.dtype}: {PRECISION}. Call model.double()")


ONE_PROCESS = (
    "{closure} gives its own Jacobian (a method `linearize`), which knows of its own points only: "
    "leave out processes=... and Batches, or hand over a plain function that calls it"
)
