"""linearize(closure, parameters): residuals and their Jacobian, checked against autograd."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from kfac_pinn.assembly import Assembly
from kfac_pinn.capture import Capture
from kfac_pinn.leaves import probe
from kfac_pinn.linearization import Block, Linearization, Tangent
from kfac_pinn.residuals import Residuals, Term, as_terms

__all__ = ["Block", "Linearization", "Tangent", "linearize"]


def linearize(
    closure: Callable[[], Residuals],
    parameters: Sequence[Tensor],
    check: bool = False,
    names: Sequence[str] | None = None,
) -> Linearization:
    """Residual and Jacobian of a closure, from one forward pass and one backward pass a residual.

    Args:
        closure: takes no arguments, returns residuals (a tensor (N,) or (N, 1), a tuple or a dict
            of them; `ConvexLoss` for a term that is not a square).
        parameters: the trained tensors; other leaves are constants.
        check: also compare J^T u with autograd's, parameter by parameter, for a random u.
        names: of the parameters, for errors.

    Raises:
        TypeError, ValueError: for a closure that returns something else, or parameters that differ
            in dtype or device, are frozen or given twice.
        RuntimeError: for a residual that depends on none of the parameters, or whose Jacobian
            cannot be seen exactly; the parameter is named.
        FloatingPointError: for a residual that is not finite.
    """
    named = label(list(parameters), names)
    before = [p.detach().clone() for p in named.values()] if check else []
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        with Capture(named.values()) as capture:
            terms = as_terms(closure())
        pairs = [(term.name, *pair) for term in terms for pair in tangents_of(term)]
        assembly = Assembly(named, capture)
        tangents = [assembly.tangent(*pair) for pair in pairs]
        result = Linearization(
            list(named.values()),
            tangents,
            float(sum(term.loss().detach() for term in terms)),
            excess_of(terms, list(named.values())),
        )
        if check:
            check_unchanged(named, before)
            check_products(result, [output for _, output, _ in pairs], list(named))
    return result


def label(parameters: list[Tensor], names: Sequence[str] | None) -> dict[str, Tensor]:
    """name -> parameter, after what can be wrong with a list of parameters."""
    names = names or [f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(parameters)]
    if not parameters:
        raise ValueError("no parameters: there is nothing to train")
    named = dict(zip(names, parameters, strict=True))
    if len({id(p) for p in parameters}) < len(names) or len(named) < len(names):
        raise ValueError("a parameter is given twice; pass each once, e.g. model.parameters()")
    like = parameters[0]
    for name, p in named.items():
        if not (p.requires_grad and p.is_leaf):
            raise ValueError(f"parameter {name} is not a leaf that requires a gradient; leave it out")
        if (p.dtype, p.device) != (like.dtype, like.device) or not p.is_floating_point():
            raise ValueError(
                f"parameter {name} is {p.dtype} on {p.device}, parameter {names[0]} {like.dtype} "
                f"on {like.device}: bring all to one floating dtype and device, e.g. by "
                "model.double() before building the optimizer"
            )
    return named
