"""How a user's closure is run: what counts as its loss, and what its errors mean here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.allocation import reuse_freed_memory
from kfac_pinn.jacobian.backward import COMPILED, BackwardWatch
from kfac_pinn.jacobian.batches import Batches, closures_of
from kfac_pinn.jacobian.losses import Term
from kfac_pinn.jacobian.terms import as_terms, loss_of, total_loss
from kfac_pinn.processes import ALONE, Alone, Group

__all__ = ["evaluate", "explained", "terms_at"]

Closure = Callable[[], Any]


def evaluate(
    closure: Closure,
    gradients: bool = True,
    parameters: Iterable[Tensor] = (),
    processes: Group = ALONE,
) -> Tensor:
    """L at the current parameters, of a closure that returns residuals or calls backward.

    Args:
        closure: as of `linearize`; backward() inside it does nothing.
        gradients: whether it may need a graph: one that calls autograd does
            (`Linearization.needs_gradients`).
        parameters: whose gradients code after backward() may want to find, to clip them say.
        processes: with several of them, the part of L that the points of this one contribute.
    """
    if isinstance(closure, Batches):
        raise TypeError(
            "Batches have no one loss with a graph, as products with its Hessian need: take "
            "HessianFree(curvature=GGN())"
        )
    output = run(closure, gradients, parameters)
    if isinstance(processes, Alone):
        return total_loss(output)
    terms = as_terms(output)
    totals = processes.totals([term.points for term in terms])
    weights = [term.points / total for term, total in zip(terms, totals, strict=True)]
    return loss_of(output, terms, weights)


def sums(closure: Closure, gradients: bool, parameters: Iterable[Tensor] = ()) -> Tensor:
    """N_k L_k and N_k of every term k at the current parameters, (K, 2), summed over batches."""
    found = []
    for each in closures_of(closure):
        with torch.set_grad_enabled(gradients):
            terms = as_terms(run(each, gradients, parameters))
        losses = [float(term.loss().detach()) for term in terms]
        found.append([[n * x, n] for n, x in zip([t.points for t in terms], losses, strict=True)])
    return torch.tensor(found, dtype=torch.float64).sum(0)


def terms_at(closure: Closure, gradients: bool = True) -> list[Term]:
    """The residual terms there; arguments as of `evaluate`."""
    with torch.set_grad_enabled(gradients):  # the residuals of a loss are read off its graph
        return as_terms(run(closure, gradients))


def run(closure: Closure, gradients: bool, parameters: Iterable[Tensor] = ()) -> Any:
    """What it returns, or the loss that it called backward on."""
    reuse_freed_memory()
    # compiled code cannot be differentiated twice
    eager = torch.compiler.set_stance("force_eager") if gradients else nullcontext()
    with (
        eager,
        torch.set_grad_enabled(gradients),
        BackwardWatch(parameters, run=False) as watch,
    ):
        returned = closure()
        return returned if watch.loss is None else watch.loss


@contextmanager
def explained(parameters: Sequence[Tensor]) -> Iterator[None]:
    """torch's errors on points that do not fit the model, with what to write."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        # torch raises RuntimeError for all of these: the message is all there is to tell them apart
        advice = next((text for key, text in ADVICE.items() if re.search(key, str(error))), None)
        if advice is None:
            raise
        p = parameters[0]
        said = advice.format(dtype=p.dtype.to_real(), device=p.device)
        raise RuntimeError(f"{said} (torch: {error})") from error


CAST = (
    "points or data of another dtype than the parameters, which are {dtype}. Convert them once: "
    "x = x.to({dtype}), or the model to theirs before the optimizer is constructed"
)
ADVICE = {
    "must have the same dtype|expected scalar type|expected m1 and m2 to have the same dtype"
    "|should be the same|dtype.*but got": CAST,
    "on the same device|is not on the expected device|different devices": (
        "points or data on another device than the parameters, which are on {device}. Move them "
        'once: x = x.to("{device}")'
    ),
    "floating point.*can require gradients": (
        "points that are no floating point numbers have no derivatives. Convert them: "
        "x = x.to({dtype}).requires_grad_()"
    ),
    "does not require grad|appears to not have been used in the graph": (
        "a derivative with respect to points that the values do not depend on in the graph. Write "
        "x = x.requires_grad_() before u = model(x), outside of torch.no_grad(), and differentiate "
        "with respect to the very tensor that the model got, not a slice or copy of it"
    ),
    "[Ii]nference tensor|inference tensors": (
        "points or parameters were made under torch.inference_mode(), and autograd cannot use "
        "them. Write x = x.clone() outside of it, or torch.no_grad() instead"
    ),
    COMPILED[0]: COMPILED[1],
}
