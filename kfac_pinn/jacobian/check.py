"""The Jacobian against autograd's: when the two are compared.

J is read off one forward pass. Whether it was read rightly is seen by one product, J^T u for a
random u, that autograd gives too; where they differ, `sources` reads it in another way. What can be
wrong may begin at any step (a closure that shuffles its outputs from the second step on calls the
same functions), so one look is not enough, while a look at every step costs a backward pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.jacobian.capture.graph import inputs_first
from kfac_pinn.jacobian.dense_rows import probe, strided, tolerance, uses_tf32
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import flatten, real
from kfac_pinn.notices import NOTICES, outside
from kfac_pinn.settings import at_least, whole_number

__all__ = [
    "CheckSchedule",
    "autograd_of",
    "compare",
    "due",
    "mismatch",
    "names_of",
    "refuse_changes",
    "warn_of_tf32",
    "warn_of_unused",
]


class CheckSchedule:
    """When J is compared: at the runs 1, 2, 4, 8, ... and every so many of each program.

    A *program* is the torch functions that a closure calls and the parameters it is linearised
    for. A run counts when its comparison, if any, held: what failed is compared again.

        optimizer.check = CheckSchedule(every=1)  # always; False: never

    Args:
        every: also at the multiples of this number.

    Raises:
        TypeError, ValueError: unless it is 1, 2, ...; to check never, write check=False.
    """

    def __init__(self, every: int = 100) -> None:
        at_least(1)("CheckSchedule: every", every)
        self.every = whole_number("CheckSchedule: every", every)
        self.runs: dict[Hashable, int] = {}  # of each program

    def __reduce__(self) -> Any:
        """A copy counts its own runs: programs name parameters by where they are in memory."""
        return CheckSchedule, (self.every,)

    @contextmanager
    def due(self, program: Hashable) -> Iterator[bool]:
        """Whether this run is to be compared; it is counted unless that fails."""
        run = self.runs.get(program, 0) + 1
        yield run & (run - 1) == 0 or run % self.every == 0  # powers of two have one bit
        self.runs[program] = run


@contextmanager
def due(
    check: bool | CheckSchedule | None, parameters: Mapping[Tensor, str], functions: Sequence[Any]
) -> Iterator[bool]:
    """Whether to compare now: a schedule decides by the program, a bool by itself, None is no."""
    if isinstance(check, CheckSchedule):
        with check.due(hash((frozenset(map(id, parameters)), *functions))) as answer:
            yield answer
    elif check is None or isinstance(check, bool):
        yield bool(check)
    else:
        raise TypeError(f"check is True, False or a CheckSchedule, not {check!r}")


def autograd_of(scalar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Its gradient as a flat vector (P,)."""
    gradients = torch.autograd.grad(
        scalar, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return flatten(map(strided, gradients))


def names_of(parameters: Sequence[Tensor], names: Sequence[str] | None = None) -> list[str]:
    """Names for errors: those given, else where it stands and its shape."""
    return list(names or (f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(parameters)))


def refuse_changes(names: Mapping[Tensor, str], before: Sequence[Tensor]) -> None:
    """A closure evaluates the residuals; it must not train."""
    for (p, name), old in zip(names.items(), before, strict=True):
        # nan is not equal to itself, and a diverged model gets its own error later
        now, then = real(p.detach()).nan_to_num(), real(old).nan_to_num()
        if not torch.equal(now, then):
            raise RuntimeError(
                f"the closure changed parameter {name}. It may be called several times a step and "
                "must leave the parameters alone: no optimizer step, no clipping or renormalising "
                "of weights inside; do that between the steps"
            )


def compare(result: Linearization, outputs: list[Tensor], names: Mapping[Tensor, str]) -> None:
    """Refuse a Jacobian that a closure gave of itself (`SelfLinearizing`) if it is not exact."""
    if (wrong := mismatch(result, outputs, names)) is not None:
        raise RuntimeError(
            f"the Jacobian of {wrong} does not match autograd's. The closure's own method "
            "`linearize` gives it; correct that, or leave it out: any closure is linearised"
        )
    warn_of_tf32(result.parameters[0])
    warn_of_unused(result, names, outputs)


def mismatch(
    result: Linearization, outputs: list[Tensor], names: Mapping[Tensor, str]
) -> str | None:
    """J^T u against autograd's for a random u: the first parameter that differs, and how much."""
    # One product: a wrong J agrees with it by chance only, for u is random
    u = probe(result.residual)
    truth = autograd_product(result, outputs, u)
    # J^T u and not J v: autograd has it by one backward pass
    error = result.vjp(u) - truth
    errors, sizes = norms(result, error), norms(result, truth)
    # A parameter that hardly moves the residuals is compared with a thousandth of the average one
    allowed = tolerance(truth) * (sizes + 1e-3 * truth.norm() / math.sqrt(len(names)))
    # Written so that nan is a difference
    if (errors <= allowed).all():
        return None
    # What autograd differs from itself, on an ill-conditioned problem: odd factors round anew, as
    # powers of two would not, and three samples of an error are allowed to miss it a hundredfold
    for scale in (3, 5, 7):
        rounding = autograd_product(result, outputs, scale * u) / scale - truth
        allowed = torch.maximum(allowed, 100 * norms(result, rounding))
    for name, error, most, size in zip(names.values(), errors, allowed, sizes, strict=True):
        if not error <= most:
            return f"parameter {name} (relative difference {float(error / size):.1e})"
    return None


def norms(result: Linearization, flat: Tensor) -> Tensor:
    """Of the parts of a flat vector, one a parameter."""
    return torch.stack([part.norm() for part in result.unflatten(flat)])


def autograd_product(result: Linearization, outputs: list[Tensor], u: Tensor) -> Tensor:
    """J^T u (P,) by autograd alone."""
    parts = zip(outputs, u.split([len(output) for output in outputs]), strict=True)
    scalars = [len(output) ** -0.5 * (output @ part) for output, part in parts]
    return autograd_of(torch.stack(scalars).sum(), result.parameters)


def warn_of_unused(
    result: Linearization, names: Mapping[Tensor, str], outputs: Iterable[Tensor]
) -> None:
    """A parameter that moves no residual stays where it is.

    Raises:
        RuntimeError: if a checkpoint in the graph of an output hides it.
    """
    used = {id(p) for block in result.blocks for p in block.parameters}
    unused = ", ".join(name for p, name in names.items() if id(p) not in used)
    if unused and any(hides_parameters(output.grad_fn) for output in outputs):
        raise RuntimeError(
            f"no residual depends on parameter {unused}, which a checkpoint may hide: write "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    if unused:
        message = f"no residual depends on parameter {unused}: it will not be trained"
        NOTICES.once_of(next(iter(names)), message, message)


def hides_parameters(node: Any) -> bool:
    """Whether a reentrant checkpoint is behind a node of a graph."""
    # A reentrant one runs its part without a graph, and again in the backward pass
    return any(type(each).__name__ == "CheckpointFunctionBackward" for each in inputs_first(node))


def warn_of_tf32(like: Tensor) -> None:
    """TF32 keeps three decimals: what a step should still gain is below its rounding."""
    if uses_tf32(like):
        warnings.warn(
            "TF32 is on for matrix products: second-order steps freeze at its precision. Call "
            "torch.set_float32_matmul_precision('highest') or train in float64",
            stacklevel=outside(),
        )
