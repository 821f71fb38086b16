"""The kinds of rules: elementwise functions, linear ones, products; and sums with constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.jets import Jet, jets_among
from kfac_pinn.taylor_mode.rule_table import check_functions, register
from kfac_pinn.taylor_mode.rules.series import (
    Bilinear,
    Composition,
    Shift,
    compose,
    leibniz,
    transformed,
)

Operand: TypeAlias = Any  # a jet, a constant tensor or a number


def elementwise(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register functions that act on each entry, by their derivatives.

    The decorated function is called as `derivatives(v, y, order, *args)`, with the argument v, the
    value y = f(v) and the further arguments of f, and returns [f'(v), f''(v), ...]: `order` tensors
    like v, or fewer if the others vanish.  Faa di Bruno's formula does the rest, to any order.
    """
    check_functions(functions)

    def decorate(derivatives: Callable[..., Any]) -> Callable[..., Any]:
        register(lambda function: partial(_apply, function, derivatives), *functions)
        return derivatives

    return decorate


def _apply(function: Any, derivatives: Any, x: Jet, *args: Any, **kwargs: Any) -> Jet:
    """A rule of `elementwise`, its arguments as torch passes them."""
    return composition(function, derivatives, x, args, kwargs)


def composition(
    function: Any, derivatives: Any, x: Jet, args: Sequence[Any] = (), kwargs: Any = None
) -> Jet:
    """f(x, *args), entry by entry."""
    kwargs = kwargs or {}

    def value(v: Tensor) -> Tensor:
        return function(v, *args, **kwargs)

    def slopes(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
        return derivatives(v, y, order, *args, **kwargs)

    # Autograd must see through what depends on more than x, and knows how to conjugate.
    seen = tensors_among([*args, *kwargs.values()]) or x.is_complex()
    closed = not (seen or transformed(x.basis))
    run = Composition.apply if closed else compose
    return x.like(run(x.rows, value, slopes, x.basis))


def linear(*functions: Any) -> None:
    """Register functions that are linear in their first argument: they act on each row alike."""
    register(rowwise, *functions)


def rowwise(function: Any) -> Callable[..., Any]:
    """A function applied to each row of its first argument, the only jet."""

    def apply(x: Jet, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Jet) or jets_among([*args, *kwargs.values()]):
            raise TypeError(f"{function.__name__}: only the first argument may depend on x")
        # vmap: the function's own dimensions stay what they are
        rows = torch.vmap(lambda row: function(row, *args, **kwargs))(x.rows)
        return tree_map(x.view_of, rows)

    return apply


def jointly_linear(*functions: Any) -> None:
    """Register functions that are linear in all their floating tensors together."""
    register(lambda function: partial(_jointly, function), *functions)


def _jointly(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A rule of `jointly_linear`: constants are jets without derivatives."""
    leaves, structure = tree_flatten((args, kwargs))
    basis = jets_among(leaves)[0].basis
    places = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def apply(*rows: Tensor) -> Any:
        for i, row in zip(places, rows, strict=True):
            leaves[i] = row
        given, named = tree_unflatten(leaves, structure)
        return function(*given, **named)

    jets = as_jets([leaves[i] for i in places], basis)
    rows = torch.vmap(apply)(*(jet.rows for jet in jets))
    return tree_map(lambda each: Jet(each, basis), rows)


def is_floating(value: Any) -> bool:
    """Whether it is a jet or a tensor with derivatives."""
    return isinstance(value, Jet) or (
        isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    )


def multiply(product: Bilinear, x: Any, y: Any) -> Jet:
    """The product of two jets, or of a jet and a constant.

    `product` acts on rows (S, *shape), whose shapes it may broadcast but whose leading axes, equal
    or one, it leaves first.
    """
    if not isinstance(y, Jet):
        return x.like(product(x.rows, y[None]))
    if not isinstance(x, Jet):
        return y.like(product(x[None], y.rows))
    return x.like(torch.cat(leibniz(product, x.orders(), y.orders(), x.basis)))


def shift(x: Jet, c: Any, fresh: bool = False) -> Jet:
    """x + c for a constant c: only the value moves.  Fresh rows are changed in place."""
    c = tensor_like(c, x)
    fits = c.dtype == x.dtype and torch.broadcast_shapes(c.shape, x.shape) == x.shape
    # In place, as most sums are a bias: a copy of all rows to change one would cost more
    if fits and not transformed(x.basis):
        return x.like(Shift.apply(x.rows if fresh else x.rows.clone(), c))
    value, *derivatives = x.orders()
    value = (value[0] + c).unsqueeze(0)
    rows = (aligned(each, value.ndim - 1).expand(-1, *value.shape[1:]) for each in derivatives)
    return x.like(torch.cat([value, *rows]))


def aligned(data: Tensor, ndim: int) -> Tensor:
    """Rows (S, *shape) with ones put before the shape: `ndim` dimensions in all, to broadcast."""
    missing = max(0, ndim + 1 - data.ndim)
    index = (slice(None), *(None,) * missing)
    return data[index] if missing else data


def as_jets(tensors: Sequence[Any], basis: Basis | None = None) -> list[Jet]:
    """Constants among them become jets without derivatives."""
    basis = basis or jets_among(tensors)[0].basis
    return [each if isinstance(each, Jet) else Jet.constant(each, basis) for each in tensors]


def tensor_like(c: Any, x: Jet) -> Tensor:
    """A number as a tensor of the jet's precision; a tensor as it is."""
    if isinstance(c, Tensor):
        return c
    dtype = x.dtype.to_complex() if isinstance(c, complex) else x.dtype
    return torch.as_tensor(c, dtype=dtype, device=x.device)


def value_of(x: Any) -> Any:
    """The value of a jet; anything else as it is."""
    return x.value if isinstance(x, Jet) else x


def tensors_among(arguments: Sequence[Any]) -> bool:
    """Whether there is a tensor among arguments."""
    return any(isinstance(each, Tensor) for each in arguments)
