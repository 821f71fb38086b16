"""linearize(closure, parameters): residuals and their Jacobian, checked against autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kfac_pinn.jacobian.backward import BackwardWatch, pass_on
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
from kfac_pinn.jacobian.sources import Source
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.jacobian.terms import as_terms, holds_loss, total_loss

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
) -> Linearization:
    """Residual and Jacobian of a closure, from one forward pass and one backward pass a residual.

    Args:
        closure: takes no arguments, returns residuals (a tensor (N,) or (N, 1), a tuple or a dict
            of them; `ConvexLoss` for a term that is not a square). One with a method `linearize` is
            asked for its own (`SelfLinearizing`).
        parameters: the trained tensors; other leaves are constants.
        check: compare J^T u with autograd's, parameter by parameter, for a random u: now, or when a
            schedule says so; None: the first time that a program is seen; False: never.
        names: of the parameters, for errors.
        data: note what tells its points from others, in `Linearization.data`.

    Raises:
        TypeError, ValueError: for a closure that returns something else, or parameters that differ
            in dtype or device, are frozen or given twice.
        RuntimeError: for a residual that depends on none of the parameters, or whose Jacobian
            cannot be seen exactly; the parameter is named.
        FloatingPointError: for a residual or a gradient that is not finite.
    """
    known = named(list(parameters), names)
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
            result = linearized(output, known, source)
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
) -> Linearization:
    """The linearisation of a loss that has been computed already, or of the sum of several.

    Args:
        losses: tensors of one number each, with their graphs (`BackwardWatch` keeps them).
        parameters, check, names: as of `linearize`.

    Raises:
        As `linearize`.
    """
    known = named(list(parameters), names)
    losses = [losses] if isinstance(losses, Tensor) else list(losses)
    with torch.enable_grad(), explained(list(known)):
        # backward() adds up what several calls bring: so does the sum of the losses
        total = torch.stack([loss.reshape(()) for loss in losses]).sum()
        with due(check, known, [linearize_loss]) as now:
            result = linearized(total, known, Source(known, None, now, check is not False))
            result.data = data_of([total], list(known))
            return result


def linearized(output: Any, known: Mapping[Tensor, str], source: Source) -> Linearization:
    """r and J of what a closure returned or called backward on, with its graph."""
    like = next(iter(known))
    terms = as_terms(output, known)
    triples = [(term.name, *pair) for term in terms for pair in tangents_of(term, like)]
    # A loss keeps its own value: constants that its residuals leave out are part of it
    loss = total_loss(output) if holds_loss(output) else sum(term.loss() for term in terms)
    linear_term = linear_term_of(terms, list(known))
    value = float(torch.as_tensor(loss).detach())
    result = Linearization(list(known), source.terms(triples), value, linear_term)
    refuse_infinite(result, known)
    if source.check:
        warn_of_tf32(like)
        warn_of_unused(result, known, [output for _, output, _ in triples])
    return result


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


def linear_term_of(terms: Sequence[Term], parameters: Sequence[Tensor]) -> Tensor | None:
    """The gradient of what the convex losses' tangents leave over."""
    parts = [part for part in (term.linear_term() for term in terms) if part is not None]
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
