"""linearize(closure, parameters): residuals and their Jacobian, checked against autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from kfac_pinn.jacobian.backward import BackwardWatch, pass_on
from kfac_pinn.jacobian.batches import Batches
from kfac_pinn.jacobian.capture import PRECISION, Capture
from kfac_pinn.jacobian.capture.data import data_of
from kfac_pinn.jacobian.check import (
    CheckSchedule,
    autograd_of,
    compare,
    due,
    names_of,
    refuse_changes,
    warn_of_tf32,
    warn_of_unused,
)
from kfac_pinn.jacobian.layers import Block
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.losses import ConvexLoss, LeastSquares, Residuals, Term
from kfac_pinn.jacobian.running import evaluate, explained, terms_at
from kfac_pinn.jacobian.sharded import ShardedLinearization, Shards
from kfac_pinn.jacobian.sources import Source
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.jacobian.terms import as_terms, holds_loss, loss_of
from kfac_pinn.processes import ALONE, Alone, Group

__all__ = [
    "Block",
    "Linearization",
    "SelfLinearizing",
    "TermJacobian",
    "evaluate",
    "linearize",
    "linearize_loss",
    "terms_at",
]


Totals: TypeAlias = Callable[[Sequence[int]], list[int]]


@runtime_checkable
class SelfLinearizing(Protocol):
    """A closure that linearises itself: `linearize`, and so every optimizer, asks it.

    For residuals whose Jacobian is known in a form of its own, such as weights that are emitted by
    another network. What it returns may override any method of `Linearization` (`kernel`, say) by
    a cheaper one; it is compared with autograd as any other.
    """

    def __call__(self) -> Residuals:
        """The residuals, as any closure."""

    def linearize(self, parameters: Sequence[Tensor]) -> Linearization:
        """r and J at the current parameters, the rows in the order of the residuals."""


class NothingReturnedError(TypeError):
    """A closure returned None and sent no loss backwards."""


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
        known = named(list(parameters), names)
        processes.same(known)
        shared = not isinstance(processes, Alone) or isinstance(closure, Batches)
        if shared and isinstance(closure, SelfLinearizing):
            raise TypeError(ONE_PROCESS.format(closure=type(closure).__name__))
        if isinstance(closure, Batches):
            totals = processes.totals(counted(closure))
            shards: Shards = Anew(closure, known, check, data, totals)
        else:
            shards = kept(share_of(closure, known, check, data, processes.totals))
    return ShardedLinearization(shards, processes) if shared else next(shards())


def kept(share: Linearization) -> Shards:
    """One shard, which stays in memory."""
    return lambda: iter([share])


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
        for number, closure in enumerate(self.closures):
            with at(self.known, self.here):
                share = share_of(closure, self.known, check, self.data, lambda _: self.totals)
            known = self.losses.setdefault(number, share.loss)
            if abs(share.loss - known) > torch.finfo(share.residual.dtype).eps ** 0.5 * abs(known):
                raise RuntimeError(
                    f"batch {number} has the loss {known:.6g} first and {share.loss:.6g} later in "
                    "the same step: draw its points before the step, not inside the closure"
                )
            yield share


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


def share_of(
    closure: Callable[[], Residuals],
    known: dict[Tensor, str],
    check: bool | CheckSchedule | None,
    data: bool,
    totals: Totals,
) -> Linearization:
    """r and J of some of the points, each term weighted by its share of all points.

    Args:
        totals: from the number of points of each term to the number of all.
    """
    if not callable(closure):
        raise TypeError(
            "the closure must be a function that returns the residuals, found "
            f"{type(closure).__name__}: pass the function, step(residuals), not what it returned"
        )
    # A closure that trains would move the point at which J is taken, without a word
    before = [p.detach().clone() for p in known]
    if isinstance(closure, SelfLinearizing):
        with torch.enable_grad(), due(check, known, [type(closure)]) as now:
            result = closure.linearize(list(known))
            refuse_changes(known, before)
            refuse_infinite(result, known)
            if now:
                compare(result, outputs_of(closure, next(iter(known))), known)
            return result
    # Compiled code has one opaque node for its whole graph, and no second derivative
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        # run=False: a backward pass here would only be thrown away, its graph with it
        watch, capture = BackwardWatch(known, run=False), Capture(known)
        with explained(list(known)), capture, watch:
            returned = closure()
        refuse_changes(known, before)
        # What was sent backwards is what the closure trains on, whatever it returns besides
        output = returned if watch.loss is None else watch.loss
        if output is None:
            raise NothingReturnedError(
                "the closure returned nothing (NoneType), nor did it call backward(). It must "
                "return its residuals, e.g. `return laplacian(model, x) + f, model(xb) - g`, or "
                "their loss"
            )
        with due(check, known, capture.program) as now:
            source = Source(known, capture, now, check is not False)
            result = linearized(output, known, source, totals)
            result.needs_gradients = capture.calls_autograd or holds_loss(output)
            result.changes_gradients = watch.gradients_were_changed
            # The backward pass that was skipped has a right to these leaves
            result.others = pass_on(watch.losses, known, capture.differentiated)
            if data:
                result.data = data_of(tensors_of(output), list(known))
    return result


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
        known = named(list(parameters), names)
        processes.same(known)
        # backward() adds up what several calls bring: so does the sum of the losses
        total = torch.stack([loss.reshape(()) for loss in losses]).sum()
        with due(check, known, [linearize_loss]) as now:
            source = Source(known, None, now, check is not False)
            share = linearized(total, known, source, processes.totals)
            share.data = data_of([total], list(known))
    return share if isinstance(processes, Alone) else ShardedLinearization(kept(share), processes)


def linearized(
    output: Any, known: Mapping[Tensor, str], source: Source, totals: Totals = list
) -> Linearization:
    """r and J of what a closure returned or called backward on, with its graph."""
    like = next(iter(known))
    terms = as_terms(output, known)
    triples = [[(term.name, *pair) for pair in tangents_of(term, like)] for term in terms]
    points = totals([term.points for term in terms])
    weights = [term.points / total for term, total in zip(terms, points, strict=True)]
    value = float(loss_of(output, terms, weights).detach())
    linear_term = linear_term_of(terms, weights, list(known))
    outputs = [triple for each in triples for triple in each]
    numbers = [total for each, total in zip(triples, points, strict=True) for _ in each]
    pairs = zip(source.terms(outputs), numbers, strict=True)
    result = Linearization(list(known), [of_all(*pair) for pair in pairs], value, linear_term)
    refuse_infinite(result, known)
    if source.check:
        warn_of_tf32(like)
        warn_of_unused(result, known, [output for _, output, _ in outputs])
    return result


def of_all(term: TermJacobian, points: int) -> TermJacobian:
    """A term whose loss is the mean over so many points, those of other processes included."""
    return term if points == len(term.residual) else replace(term, points=points)


def tensors_of(output: Any) -> list[Tensor]:
    """Those with a graph in whatever a closure returned."""
    if isinstance(output, (ConvexLoss, LeastSquares)):
        output = [tensor for tensor, _ in output.tangents()]
    if isinstance(output, Tensor):
        return [output] if output.grad_fn is not None else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in tensors_of(part)]


def named(parameters: list[Tensor], names: Sequence[str] | None) -> dict[Tensor, str]:
    """parameter -> name, after a look at what can be wrong with them."""
    if not parameters:
        raise ValueError("no parameters: there is nothing to train")
    names = names_of(parameters, names)
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
    if p.is_complex():
        raise ValueError(
            f"parameter {name} is {p.dtype}: all parameters must have one real dtype. Train its "
            "real and its imaginary part"
        )
    if (p.dtype, p.device) != (like.dtype, like.device) or not p.is_floating_point():
        raise ValueError(
            f"parameter {name} is {p.dtype} on {p.device}, the first one {like.dtype} on "
            f"{like.device}: all parameters must have one real dtype and device. Call e.g. "
            "model.double() before building the optimizer"
        )
    # A Gramian squares the condition number: half precision has three decimals before that
    if torch.finfo(p.dtype).bits < 32:
        raise ValueError(f"parameter {name} is {p.dtype}: {PRECISION}. Call model.double()")


def tangents_of(term: Term, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pairs (tangent with its graph, value) of a term, in the parameters' dtype."""
    # Points in float32 beside a float64 model would otherwise decide the precision of J
    pairs = [(output.to(like), value.to(like)) for output, value in term.tangents()]
    for output, value in pairs:
        if not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise FloatingPointError(
                f"{term.name}: {bad} of {len(value)} entries are not finite at the current "
                "parameters. Check the points, the data and the initialisation"
            )
        if not output.requires_grad:
            raise RuntimeError(
                f"{term.name} does not depend on any trained parameter (it carries no gradient). "
                "Do not detach it, nor compute it under torch.no_grad()"
            )
    return pairs


def outputs_of(closure: Callable[[], Residuals], like: Tensor) -> list[Tensor]:
    """The tangents of the residuals with their graphs."""
    return [output for term in as_terms(closure()) for output, _ in tangents_of(term, like)]


def linear_term_of(
    terms: Sequence[Term], weights: Sequence[float], parameters: Sequence[Tensor]
) -> Tensor | None:
    """The gradient of what the convex losses' tangents leave over."""
    found = [(weight, t.linear_term()) for weight, t in zip(weights, terms, strict=True)]
    parts = [weight * part for weight, part in found if part is not None]
    return autograd_of(torch.stack(parts).sum(), parameters) if parts else None


def refuse_infinite(result: Linearization, names: Mapping[Tensor, str]) -> None:
    """A finite residual may still have an infinite slope; the parameter is named."""
    # By J^T r, which is needed anyway, and not by all of J
    for name, g in zip(names.values(), result.unflatten(result.gradient), strict=True):
        if not torch.isfinite(g).all():
            raise FloatingPointError(
                f"the gradient of parameter {name} is not finite although the residual is. Look "
                "for a function of infinite slope (sqrt, a norm or a power at 0) in the closure"
            )


ONE_PROCESS = (
    "{closure} gives its own Jacobian (a method `linearize`), which knows of its own points only: "
    "leave out processes=... and Batches, or hand over a plain function that calls it"
)
