"""linearize(closure, parameters): residuals and their Jacobian, checked against autograd."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from kfac_pinn.jacobian.capture import PRECISION, Capture
from kfac_pinn.jacobian.check import autograd_of
from kfac_pinn.jacobian.dense_rows import uses_tf32
from kfac_pinn.jacobian.linearization import Block, Linearization, TermJacobian
from kfac_pinn.jacobian.losses import Residuals, Term, as_terms
from kfac_pinn.jacobian.sources import Source

__all__ = ["Block", "Linearization", "SelfLinearizing", "TermJacobian", "linearize"]


@runtime_checkable
class SelfLinearizing(Protocol):
    """A closure that linearises itself: `linearize`, and so every optimizer, asks it.

    For residuals whose Jacobian is known in a form of its own, such as weights that are emitted by
    another network. What it returns may override any method of `Linearization` (`kernel`, say) by
    a cheaper one.
    """

    def __call__(self) -> Residuals:
        """The residuals, as any closure."""

    def linearize(
        self,
        parameters: Sequence[Tensor],
        check: bool = False,
        names: Sequence[str] | None = None,
    ) -> Linearization:
        """r and J at the current parameters; arguments and errors as of the function below."""


def linearize(
    closure: Callable[[], Residuals],
    parameters: Iterable[Tensor],
    check: bool | set[int] = False,
    names: Sequence[str] | None = None,
) -> Linearization:
    """Residual and Jacobian of a closure, from one forward pass and one backward pass a residual.

    Args:
        closure: takes no arguments, returns residuals (a tensor (N,) or (N, 1), a tuple or a dict
            of them; `ConvexLoss` for a term that is not a square). One with a method `linearize` is
            asked for its own (`SelfLinearizing`).
        parameters: the trained tensors; other leaves are constants.
        check: also compare J^T u with autograd's, parameter by parameter, for a random u; given
            the set of programs (the torch functions called, and the parameters) that were compared
            before, only if this one is new; it then joins them.
        names: of the parameters, for errors.

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
    if isinstance(closure, SelfLinearizing):
        with checking(check, known, [type(closure)]) as due:
            return closure.linearize(list(known), due, list(known.values()))
    before = [p.detach().clone() for p in known] if check is not False else []
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        with Capture(known) as capture:
            terms = as_terms(closure())
        like = next(iter(known))
        triples = [(term.name, *pair) for term in terms for pair in tangents_of(term, like)]
        loss = float(sum(term.loss().detach() for term in terms))
        linear_term = linear_term_of(terms, list(known))
        with checking(check, known, capture.program) as due:
            source = Source(known, capture, triples)
            result = Linearization(list(known), source.terms(due), loss, linear_term)
            refuse_infinite(result, known)
            if due:
                warn_of_tf32(like)
                refuse_changes(known, before)
                warn_of_unused(result, known)
    return result


@contextmanager
def checking(
    check: bool | set[int], parameters: Iterable[Tensor], program: Sequence[Any]
) -> Iterator[bool]:
    """Whether a program is to be compared with autograd; it is remembered unless that fails."""
    if isinstance(check, bool):
        yield check
    else:
        key = hash((frozenset(map(id, parameters)), *program))
        yield key not in check
        check.add(key)


def named(parameters: list[Tensor], names: Sequence[str] | None) -> dict[Tensor, str]:
    """parameter -> name, after a look at what can be wrong with them."""
    if not parameters:
        raise ValueError("no parameters: there is nothing to train")
    names = names or [f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(parameters)]
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


def refuse_changes(names: Mapping[Tensor, str], before: Sequence[Tensor]) -> None:
    """A closure evaluates the residuals; it must not train."""
    for (p, name), old in zip(names.items(), before, strict=True):
        if not torch.equal(p.detach().nan_to_num(), old.nan_to_num()):
            raise RuntimeError(
                f"the closure changed parameter {name}. It may be called several times a step and "
                "must leave the parameters alone: no optimizer step, no clipping or renormalising "
                "of weights inside; do that between the steps"
            )


def warn_of_unused(result: Linearization, names: Mapping[Tensor, str]) -> None:
    """A parameter that moves no residual stays where it is."""
    used = {id(p) for block in result.blocks for p in block.parameters}
    unused = [name for p, name in names.items() if id(p) not in used]
    if unused:
        message = f"no residual depends on parameter {', '.join(unused)}: it will not be trained"
        warnings.warn(message, stacklevel=2)


def warn_of_tf32(like: Tensor) -> None:
    """TF32 keeps three decimals: what a step should still gain is below its rounding."""
    if uses_tf32(like):
        warnings.warn(
            "TF32 is on for matrix products: second-order steps freeze at its precision. Call "
            "torch.set_float32_matmul_precision('highest') or train in float64",
            stacklevel=2,
        )
