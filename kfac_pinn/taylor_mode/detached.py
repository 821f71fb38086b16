"""What is left of a jet without its derivatives, and where it may go.

`x.detach()` of a jet has a value but no derivatives any more. To look at it (to compare, to choose
a branch, to update statistics) is harmless; a result that is computed from it would silently lack a
part of its derivative. So the tensor keeps a mark, which passes to all that is computed from it,
and an operation that would bring it back into a jet is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from kfac_pinn.notices import NOTICES

__all__ = ["LOST", "NO_NUMPY", "Detached", "remark_number", "without_derivatives"]

LOST = (
    "keeps its value and loses its derivative. Leave detach() away; compute what is constant "
    "before you call the operator; a constant u is torch.full_like(x[:, :1], c)"
)
NO_NUMPY = (
    "NumPy, math and float() know nothing of derivatives: write torch.sin(x) for np.sin(x) or "
    "math.sin(x), torch functions throughout"
)
NUMBERS = {Tensor.item, Tensor.tolist}
NUMPY = {Tensor.numpy, Tensor.__array__, Tensor.__float__, Tensor.__int__}


class Detached(Tensor):
    """A plain tensor computed from the value of a jet: what it gives is marked, too.

    Comparisons and indices, which have no derivatives anyway, are not.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not all(issubclass(each, Tensor) for each in types):
            return NotImplemented  # there is a jet among the arguments, which decides
        if func in NUMPY:
            raise TypeError(NO_NUMPY)
        if func in NUMBERS:
            remark_number(func.__name__)
        return tree_map(unmarked, super().__torch_function__(func, types, args, kwargs or {}))


def without_derivatives(value: Tensor) -> Tensor:
    """The value, marked; compilers do without."""
    value = value.detach()
    # Compilers do not trace subclasses
    return value if torch.compiler.is_compiling() else value.as_subclass(Detached)


def unmarked(result: Any) -> Any:
    """Truth values and integers as plain tensors."""
    # Else asking for the dtype would come back here
    with torch._C.DisableTorchFunctionSubclass():
        if not isinstance(result, Detached) or result.is_floating_point() or result.is_complex():
            return result
        return result.as_subclass(Tensor)


def remark_number(method: str) -> None:
    """A number may steer a branch; in a formula it is a constant."""
    NOTICES.once_a_line(
        f"x.{method}() in a function that is differentiated gives numbers without derivatives: "
        "right for a choice, wrong in a formula, where the tensor itself must stand"
    )
