"""Jets: a value and its derivatives along directions, carried together through a network.

A point x moves along D straight lines t -> x + t v_d.  Along each of them any function f has
derivatives d^k/dt^k f(x + t v_d) at t = 0; a :class:`Jet` holds them up to order K, stacked in one
tensor, so that every linear layer is one matrix product.  Torch functions act on jets through one
table, :data:`RULES`: the rules themselves are in ``rules.py``.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, resolve_name

RULES: dict[Callable[..., Any], Callable[..., Any]] = {}
IN_PLACE: set[Callable[..., Any]] = set()
NAMESPACES = (torch, torch.Tensor, F, torch.special, torch.linalg)


class Basis:
    """Which derivatives a jet carries: orders 1..K along D directions, the top order maybe summed.

    With ``weights`` w of shape (C, D) the top order is kept only as the C sums
    sum_d w_cd d^K/dt^K f(x + t v_d); without, as all D of them (C = D).  A stack of coefficients has
    S = 1 + D (K - 1) + C rows: the value, orders 1..K-1, and the top order.
    """

    def __init__(self, order: int, count: int, weights: Tensor | None = None) -> None:
        if order < 1:
            raise ValueError(f"a jet needs order >= 1, found {order}: call the function itself")
        if weights is not None and (weights.ndim != 2 or weights.shape[1] != count):
            raise ValueError(f"weights must be (C, {count}), found {tuple(weights.shape)}")
        self.order, self.count, self.weights = order, count, weights
        top = count if weights is None else weights.shape[0]
        self.sizes = [1, *[count] * (order - 1), top]

    def collapse(self, terms: Tensor) -> Tensor:
        """Sum the top order: (D, ...) -> (C, ...)."""
        return terms if self.weights is None else torch.tensordot(self.weights, terms, 1)


class Jet:
    """A tensor-like value with its derivatives: ``data`` is (S, *shape), its first row the value.

    Rows are *derivatives* (not divided by k!), in the order of :class:`Basis`.  A jet goes wherever a
    tensor of shape ``shape`` goes; plain tensors met on the way are constants.  Raises
    ``NotImplementedError`` for a torch function without a rule, naming the lines that add one, and
    ``RuntimeError`` where memory shared between jets was changed in place.
    """

    def __init__(self, data: Tensor, basis: Basis, memory: list[int] | None = None) -> None:
        self.data, self.basis = data, basis
        # Views share `memory`, a count of in-place changes; `seen` is the count this jet knows of.
        self.memory = [0] if memory is None else memory
        self.seen = self.memory[0]

    @classmethod
    def constant(cls, value: Tensor, basis: Basis) -> Jet:
        """A jet whose derivatives vanish."""
        zeros = value.new_zeros(sum(basis.sizes) - 1, *value.shape)
        return cls(torch.cat([value.unsqueeze(0), zeros]), basis)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        in_place = kwargs.pop("inplace", False) or func in IN_PLACE
        rule = RULES.get(func)
        if rule is None:
            raise NotImplementedError(missing(func))
        result = rule(*args, **kwargs)
        return args[0].replace(result) if in_place and isinstance(args[0], Jet) else result

    def replace(self, other: Jet) -> Jet:
        """Take the coefficients of another jet, in place; jets that share memory become stale."""
        if other.shape != self.shape:
            raise RuntimeError(f"in-place result has shape {tuple(other.shape)}, not {tuple(self.shape)}")
        self.memory[0] += 1
        self.data, self.seen = other.data, self.memory[0]
        return self

    def coefficients(self) -> list[Tensor]:
        """The K + 1 blocks of rows: value (*shape), orders 1..K-1 (D, *shape), top (C, *shape)."""
        value, *derivatives = self.split()
        return [value[0], *derivatives]

    def split(self) -> tuple[Tensor, ...]:
        """The K + 1 blocks of rows, the value as (1, *shape)."""
        # One split: its backward is one concatenation, that of a slice is a zero-filled stack.
        return self.data.split(self.basis.sizes)

    @property
    def value(self) -> Tensor:
        """The value, (*shape)."""
        return self.data[0]

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.data.shape[1:]

    @property
    def ndim(self) -> int:
        """The number of dimensions of the value."""
        return self.data.ndim - 1

    @property
    def dtype(self) -> torch.dtype:
        """The floating type."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.data.device

    @property
    def requires_grad(self) -> bool:
        """Whether autograd follows this jet (to parameters)."""
        return self.data.requires_grad

    @property
    def T(self) -> Jet:
        """The transpose."""
        return call("t", self)

    @property
    def mT(self) -> Jet:
        """The last two dimensions exchanged."""
        return call("transpose", self, -2, -1)

    def size(self, dim: int | None = None) -> Any:
        """The shape of the value, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """The number of dimensions of the value."""
        return self.ndim

    def numel(self) -> int:
        """The number of entries of the value."""
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """Always: derivatives need a floating type."""
        return True

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Jet(shape={tuple(self.shape)}, order={self.basis.order}, directions={self.basis.count})"

    def __iter__(self) -> Any:
        return iter(call("unbind", self, 0))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(f"a Jet has no attribute {name!r}; its value is .value, its rows .data")
        return Method(name, self)


class Method:
    """A tensor method bound to a jet: jet.tanh is called as torch.Tensor.tanh."""

    def __init__(self, name: str, jet: Jet) -> None:
        self.name, self.jet = name, jet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call(self.name, self.jet, *args, **kwargs)


def call(name: str, jet: Jet, *args: Any, **kwargs: Any) -> Any:
    """Call a tensor method on a jet as torch would: active modes see it first, then the table."""
    return handle_torch_function(getattr(torch.Tensor, name), (jet,), jet, *args, **kwargs)


def _forward(name: str) -> Callable[..., Any]:
    """An operator of Python, handed to the tensor method of that name."""

    def operator(self: Jet, *args: Any) -> Any:
        return call(name, self, *args)

    return operator


OPERATORS = {
    "__add__": "add", "__radd__": "add", "__iadd__": "add_", "__sub__": "sub", "__rsub__": "__rsub__",
    "__isub__": "sub_", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul_", "__truediv__": "div",
    "__rtruediv__": "__rtruediv__", "__itruediv__": "div_", "__pow__": "pow", "__rpow__": "__rpow__",
    "__ipow__": "pow_", "__matmul__": "matmul", "__rmatmul__": "__rmatmul__", "__neg__": "neg",
    "__pos__": "positive", "__abs__": "abs", "__getitem__": "__getitem__", "__setitem__": "__setitem__",
    "__lt__": "lt", "__le__": "le", "__gt__": "gt", "__ge__": "ge", "__eq__": "eq", "__ne__": "ne",
    "__hash__": "__hash__",
}  # fmt: skip
for _operator, _method in OPERATORS.items():
    setattr(Jet, _operator, _forward(_method))
Jet.__hash__ = object.__hash__  # type: ignore[method-assign]


def rule(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as what ``functions`` do when an argument is a :class:`Jet`.

    It is called with the arguments of the torch function and returns jets.  Functions of the same
    name in ``torch``, ``torch.Tensor`` and ``torch.nn.functional`` and their in-place forms follow.
    """

    def register(rule_: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            RULES[function] = rule_
        for function in functions:
            for namesake in namesakes(function):
                RULES.setdefault(namesake, rule_)
        return rule_

    return register


def namesakes(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The same function elsewhere in torch, and its in-place forms."""
    name = getattr(function, "__name__", "").removeprefix("special_").removeprefix("linalg_")
    same = [getattr(space, name, None) for space in NAMESPACES]
    in_place = [getattr(space, name + "_", None) for space in NAMESPACES]
    IN_PLACE.update(each for each in in_place if callable(each))
    return [each for each in same + in_place if callable(each)]


def missing(func: Callable[..., Any]) -> str:
    """What to write for a function without a rule."""
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    short = name.rsplit(".", 1)[-1]
    return (
        f"{name} has no rule for jets. Add one of:\n\n"
        f"    from kfac_pinn.rules import elementwise, linear, rule\n\n"
        f"    @elementwise({name})             # acts on each entry: its derivatives to any order\n"
        f"    def {short}_derivatives(v, y, order):   # v the argument, y = {short}(v)\n"
        f"        return [first, second, ...]         # `order` tensors like v\n\n"
        f"    linear({name})                   # linear in its tensor arguments\n\n"
        f"    @rule({name})                    # anything else, written with functions that have rules\n"
        f"    def {short}_of_jets(x, ...):\n"
        f"        return ..."
    )


def basis_of(jets: Sequence[Any]) -> Basis:
    """The one basis of all jets among the arguments."""
    bases = [each.basis for each in jets if isinstance(each, Jet)]
    if any(each is not bases[0] for each in bases):
        raise ValueError(
            "jets of different bases meet in one function: one of them belongs to another call of "
            "taylor/laplacian/... Evaluate everything that depends on x inside the function you pass."
        )
    return bases[0]
