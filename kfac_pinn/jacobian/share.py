"""The share of one closure: r and J at its own points, each term weighted by its part of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from kfac_pinn.jacobian.backward import BackwardWatch, pass_on
from kfac_pinn.jacobian.capture import Capture
from kfac_pinn.jacobian.capture.data import data_of
from kfac_pinn.jacobian.check import (
    CheckSchedule,
    autograd_of,
    compare,
    due,
    refuse_changes,
    warn_of_tf32,
    warn_of_unused,
)
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.losses import ConvexLoss, LeastSquares, Residuals, Term
from kfac_pinn.jacobian.running import explained
from kfac_pinn.jacobian.sources import Source
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.jacobian.terms import as_terms, holds_loss, loss_of
from kfac_pinn.linalg import real

__all__ = ["NothingReturnedError", "SelfLinearizing", "Totals", "linearized", "share_of"]


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
        """r (R,) and J (R, P) at the current parameters, the rows in the order of the residuals."""


class NothingReturnedError(TypeError):
    """A closure returned None and sent no loss backwards."""


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
    if isinstance(closure, SelfLinearizing):
        before = [p.detach().clone() for p in known]
        with torch.enable_grad(), due(check, known, [type(closure)]) as now:
            result = closure.linearize(list(known))
            refuse_changes(known, before)
            refuse_infinite(result, known)
            if now:
                compare(result, outputs_of(closure, real(next(iter(known)))), known)
            return result
    call = called(closure, known)
    # Compiled code has one opaque node for its whole graph, and no second derivative
    eager = torch.compiler.set_stance("force_eager")
    with torch.enable_grad(), eager, due(check, known, call.capture.program) as now:
        source = Source(known, call.capture, now, check is not False)
        result = linearized(call.output, known, source, totals)
        noted(result, call, known)
        if data:
            result.data = data_of(tensors_of(call.output), list(known))
    return result


class Call(NamedTuple):
    """What a closure returned or called backward on, and what was seen of it."""

    output: Any
    capture: Capture
    watch: BackwardWatch


def called(closure: Callable[[], Any], known: Mapping[Tensor, str]) -> Call:
    """Run a closure under capture.

    Raises:
        TypeError: for what is no function; `NothingReturnedError` for one that neither returns
            anything nor calls backward.
        RuntimeError: for one that changes a parameter.
    """
    if not callable(closure):
        raise TypeError(
            "the closure must be a function that returns the residuals, found "
            f"{type(closure).__name__}: pass the function, step(residuals), not what it returned"
        )
    # A closure that trains would move the point at which J is taken, without a word
    before = [p.detach().clone() for p in known]
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        # run=False: a backward pass here would only be thrown away, its graph with it
        watch, capture = BackwardWatch(known, run=False), Capture(known)
        with explained(list(known)), capture, watch:
            returned = closure()
        # What was sent backwards is what the closure trains on, whatever it returns besides
        output = returned if watch.loss is None else watch.loss
    refuse_changes(known, before)
    if output is None:
        raise NothingReturnedError(
            "the closure returned nothing (NoneType), nor did it call backward(). It must "
            "return its residuals, e.g. `return laplacian(model, x) + f, model(xb) - g`, or "
            "their loss"
        )
    return Call(output, capture, watch)


def noted(result: Linearization, call: Call, known: Mapping[Tensor, str]) -> None:
    """What a step wants to know of the call besides r and J."""
    result.needs_gradients = call.capture.calls_autograd or holds_loss(call.output)
    result.changes_gradients = call.watch.gradients_were_changed
    # The backward pass that was skipped has a right to these leaves
    result.others = pass_on(call.watch.losses, known, call.capture.differentiated)


def linearized(
    output: Any, known: Mapping[Tensor, str], source: Source, totals: Totals = list
) -> Linearization:
    """r and J of what a closure returned or called backward on, with its graph."""
    like = real(next(iter(known)))
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
