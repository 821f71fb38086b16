"""The trained tensors: what may be one, and how they stand at other values for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kfac_pinn.jacobian.capture import PRECISION
from kfac_pinn.jacobian.check import names_of

__all__ = ["at", "named"]


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
