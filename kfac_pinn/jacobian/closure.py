"""linearize(closure, parameters): residuals and their Jacobian, checked against autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kfac_pinn.jacobian.assembly import Assembly
from kfac_pinn.jacobian.capture import PRECISION, Capture
from kfac_pinn.jacobian.check import (
    CheckSchedule,
    autograd_of,
    compare,
    due,
    names_of,
    refuse_changes,
)
from kfac_pinn.jacobian.linearization import Block, Linearization, TermJacobian
from kfac_pinn.jacobian.losses import Residuals, Term, as_terms

__all__ = ["Block", "Linearization", "SelfLinearizing", "TermJacobian", "linearize"]


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


def linearize(
    closure: Callable[[], Residuals],
    parameters: Iterable[Tensor],
    check: bool | CheckSchedule = False,
    names: Sequence[str] | None = None,
) -> Linearization:
    """Residual and Jacobian of a closure, from one forward pass and one backward pass a residual.

    Args:
        closure: takes no arguments, returns residuals (a tensor (N,) or (N, 1), a tuple or a dict
            of them; `ConvexLoss` for a term that is not a square). One with a method `linearize` is
            asked for its own (`SelfLinearizing`).
        parameters: the trained tensors; other leaves are constants.
        check: also compare J^T u with autograd's, parameter by parameter, for a random u: now, or
            when a schedule says so.
        names: of the parameters, for errors.

    Raises:
        TypeError, ValueError: for a closure that returns something else, or parameters that differ
            in dtype or device, are frozen or given twice.
        RuntimeError: for a residual that depends on none of the parameters, or whose Jacobian
            cannot be seen exactly, and for a closure that changes a parameter; it is named.
        FloatingPointError: for a residual or a gradient that is not finite.
    """
    known = named(list(parameters), names)
    if not callable(closure):
        raise TypeError(
            "the closure must be a function that returns the residuals, found "
            f"{type(closure).__name__}: pass the function, step(residuals), not what it returned"
        )
    before = [p.detach().clone() for p in known]
    if isinstance(closure, SelfLinearizing):
        with torch.enable_grad(), due(check, known, [type(closure)]) as now:
            result = closure.linearize(list(known))
            refuse_changes(known, before)
            refuse_infinite(result, known)
            if now:
                compare(result, outputs_of(closure, next(iter(known))), known)
            return result
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        with Capture(known) as capture:
            terms = as_terms(closure())
        refuse_changes(known, before)
        like = next(iter(known))
        triples = [(term.name, *pair) for term in terms for pair in tangents_of(term, like)]
        assembly = Assembly(known, capture)
        tangents = [assembly.tangent(*each) for each in triples]
        loss = float(sum(term.loss().detach() for term in terms))
        result = Linearization(list(known), tangents, loss, linear_term_of(terms, list(known)))
        refuse_infinite(result, known)
        with due(check, known, capture.program) as now:
            if now:
                compare(result, [output for _, output, _ in triples], known)
    return result


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
    if (p.dtype, p.device) != (like.dtype, like.device) or not p.is_floating_point():
        raise ValueError(
            f"parameter {name} is {p.dtype} on {p.device}, the first one {like.dtype} on "
            f"{like.device}: all parameters must have one real dtype and device. Call e.g. "
            "model.double() before building the optimizer"
        )
    if torch.finfo(p.dtype).bits < 32:
        raise ValueError(f"parameter {name} is {p.dtype}: {PRECISION}. Call model.double()")


def tangents_of(term: Term, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pairs (tangent with its graph, value) of a term, in the parameters' dtype."""
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
    for name, g in zip(names.values(), result.unflatten(result.gradient), strict=True):
        if not torch.isfinite(g).all():
            raise FloatingPointError(
                f"the gradient of parameter {name} is not finite although the residual is. Look "
                "for a function of infinite slope (sqrt, a norm or a power at 0) in the closure"
            )
