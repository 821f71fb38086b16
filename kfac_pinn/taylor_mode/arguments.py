"""What can be wrong with the arguments of an operator, and what to pass instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from kfac_pinn.settings import FINITE
from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.detached import LOST, Detached
from kfac_pinn.taylor_mode.jets import Jet

__all__ = [
    "Function",
    "as_jet",
    "called",
    "check_axes",
    "check_directions",
    "check_function",
    "check_number",
    "check_order",
    "check_points",
    "check_terms",
]

Function: TypeAlias = Callable[[Any], Any]


def called(u: Function, jet: Jet) -> Any:
    """u(jet); where that fails for what u is, a word on what to pass instead."""
    try:
        return u(jet)
    except (TypeError, ValueError, RuntimeError) as error:
        # Looked at after the failure: what works needs no questions
        if isinstance(error, TypeError) and not takes_one(u):
            raise TypeError(of_one_argument(jet.shape[-1], error)) from error
        # Our own errors on jets say already what to write
        if "Jet" in str(error) and "kfac_pinn" not in origin(error):
            raise TypeError(
                f"u calls something that does not take jets: {error}. Jets pass through torch "
                "functions and modules, not through torch.func and vmap, compiled extensions or "
                "tests for isinstance(x, Tensor): call torch functions on the whole batch"
            ) from error
        raise


def of_one_argument(d: int, error: TypeError) -> str:
    """How to call a u of several arguments."""
    parts = "z[:, :1], z[:, 1:]" if d == 2 else ", ".join(f"z[:, {i}:{i + 1}]" for i in range(d))
    return (
        f"u must be a function of one argument, the points (N, {d}), but calling it with them "
        f"failed: {error}. Pass a lambda that takes them apart: lambda z: model({parts})"
    )


def origin(error: BaseException) -> str:
    """The file in which it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def takes_one(u: Function) -> bool:
    """Whether u can be called with one argument, as far as it says."""
    try:
        inspect.signature(getattr(u, "forward", u)).bind(None)
    except TypeError:
        return False
    except ValueError:  # builtins do not say
        return True
    return True


def as_jet(result: Any, basis: Basis) -> Jet:
    """What u returned, if it is one function of x."""
    if isinstance(result, Jet) and result.basis is basis:
        return result
    if isinstance(result, Jet):
        raise ValueError("u returned a jet left over from another call: let it depend on x only")
    if isinstance(result, Detached):
        raise RuntimeError(f"what u returned was detached from x: it {LOST}")
    if isinstance(result, Tensor):
        raise ValueError(
            "u returned a plain tensor, which does not depend on the points that u was given: let "
            "u use its argument, lambda z: model(z), not model(x). A u that is constant says so, "
            "torch.full_like(z[:, :1], c) or c + 0 * z[:, :1]"
        )
    raise TypeError(
        f"u must return one tensor, found {type(result).__name__}: pass a lambda that picks one, "
        f"lambda x: u(x)[{pick(result)}]"
    )


def pick(result: Any) -> str:
    """The key or index of one of several outputs."""
    return repr(next(iter(result), "...")) if isinstance(result, Mapping) else "0"


def check_function(u: Any) -> None:
    """Operators take the function itself."""
    if not callable(u):
        fix = ": pass it uncalled, laplacian(model, x)" if isinstance(u, (Tensor, Jet)) else ""
        raise TypeError(
            f"u must be a function of the points, such as a model, found {type(u).__name__}{fix}"
        )


def check_number(weight: Any) -> None:
    """One weight of all directions is a finite number."""
    if weight is not None:
        FINITE("weights", weight)


def check_axes(axes: Any) -> None:
    """An axis for each derivative."""
    if isinstance(axes, bytes) or not isinstance(axes, Sequence):
        write = f"({axes},)" if isinstance(axes, int) else "(0, 1)"
        raise TypeError(f"axes must be a tuple, one entry a derivative: {write}, not {axes!r}")
    if not all(isinstance(axis, int) for axis in axes):
        raise TypeError(f"axes must be integers, one a derivative, found {axes!r}")


def check_terms(terms: Any) -> None:
    """Coefficients by their axes."""
    if not isinstance(terms, Mapping):
        raise TypeError(f"terms must be coefficients by axes, {{(0, 0): 1.0}}, found {terms!r}")
    for axes in terms:
        check_axes(axes)


def check_order(order: Any) -> None:
    """Derivatives are counted."""
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"the order must be an integer >= 1, found {order!r}")


def check_points(x: Any) -> None:
    """Points are a floating tensor (N, d)."""
    if isinstance(x, Jet):
        raise TypeError(
            "an operator of an operator: x is already being differentiated. Write the "
            "composition as one operator: partial(u, x, (i, j, ...)), bilaplacian(u, x) or "
            "homogeneous(u, x, terms)."
        )
    if not isinstance(x, Tensor):
        fix = ": the function comes first, laplacian(u, x)" if callable(x) else ": torch.tensor(x)"
        raise TypeError(f"x must be a floating point tensor (N, d), found {type(x).__name__}{fix}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating point tensor (N, d), found {x.dtype}: x.double()")
    if x.ndim != 2:
        fix = "x[:, None]" if x.ndim == 1 else "x.flatten(0, -2)"
        raise ValueError(f"x must be (N, d), found {tuple(x.shape)}: pass {fix}")


def check_directions(v: Any, x: Tensor) -> None:
    """Directions are (D, d), or (D, N, d)."""
    N, d = x.shape
    if not isinstance(v, Tensor) or not v.is_floating_point():
        found = v.dtype if isinstance(v, Tensor) else type(v).__name__
        raise TypeError(f"directions must be a floating point tensor (D, {d}), found {found}")
    if v.ndim not in (2, 3) or v.shape[1:] not in (x.shape, x.shape[1:]):
        raise ValueError(f"directions must be (D, {d}) or (D, {N}, {d}), found {tuple(v.shape)}")
