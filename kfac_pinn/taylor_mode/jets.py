"""Jets: a value and its derivatives along directions, carried together through a network.

A point x moves along D straight lines t -> x + t v_d.  Along each of them a function f has the
derivatives d^k/dt^k f(x + t v_d) at t = 0; a `Jet` holds them up to order K, stacked in one tensor,
so that every linear layer is one matrix product.  Torch functions act on jets through one table,
`RULES`; the rules themselves are in the package `rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.detached import LOST, NO_NUMPY, Detached, without_derivatives
from kfac_pinn.taylor_mode.rule_table import (
    IN_PLACE,
    OF_VALUES,
    RULES,
    apply,
    is_operator,
    leaves_among,
    missing,
    name_of,
    positional,
)

__all__ = ["Jet"]

# What modules ask of a tensor besides its numbers: of the rows as of the value.
FACTS = {"layout", "itemsize", *(f"is_{kind}" for kind in (
    "cpu", "xpu", "mps", "meta", "mkldnn", "nested", "quantized", "sparse", "sparse_csr",
))}  # fmt: skip
ARITHMETIC = {name: name for name in ("add", "subtract", "multiply", "matmul", "maximum")}
ARITHMETIC |= {"divide": "divide", "true_divide": "divide", "power": "pow", "minimum": "minimum"}


class Jet:
    """A value with its derivatives: `rows` is (S, *shape), first the value, then as `Basis` says.

    Eq. (3) of docs/mathematics.md.

    The rows are *derivatives* (not divided by k!), those of the basis.  A jet goes wherever a
    tensor of shape `shape` goes; plain tensors it meets are constants.

    Raises:
        NotImplementedError: for a torch function without a rule; the message is the lines to add.
        RuntimeError: where memory that jets share was changed in place, and where derivatives would
            be lost: under torch.no_grad(), or by meeting what was detached from a jet.
        TypeError: for NumPy and math functions, and where a plain tensor is to hold a jet.
        ValueError: where jets of different bases meet.
    """

    def __init__(self, rows: Tensor, basis: Basis) -> None:
        self.rows, self.basis = rows, basis
        # Views share `memory`, a count of in-place changes; `seen` is the count this jet knows of.
        self.memory, self.seen = [0], 0
        # Directions (D, d) where the jet is a straight line with the same ones at all points.
        self.velocity: Tensor | None = None

    @classmethod
    def constant(cls, value: Tensor, basis: Basis) -> Jet:
        """A jet whose derivatives vanish."""
        zeros = value.new_zeros(()).expand(sum(basis.sizes) - 1, *value.shape)
        return cls(torch.cat([value.unsqueeze(0), zeros]), basis)

    def like(self, rows: Tensor) -> Jet:
        """A jet of the same basis."""
        return Jet(rows, self.basis)

    def view_of(self, rows: Tensor) -> Jet:
        """A jet of the same basis whose rows may share this one's memory."""
        view = Jet(rows, self.basis)
        view.memory, view.seen = self.memory, self.seen
        return view

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in RULES:
            raise NotImplementedError(missing(func))
        args, kwargs = positional(args, kwargs or {})
        in_place = kwargs.pop("inplace", False) or func in IN_PLACE
        check(func, [*args, *kwargs.values()])
        result = apply(func, args, kwargs)
        return args[0].replace(result) if in_place and isinstance(args[0], Jet) else result

    def replace(self, other: Jet) -> Jet:
        """Take another jet's rows, in place; jets that share memory with this one become stale.

        Raises:
            RuntimeError: for rows of another shape.
        """
        if other.shape != self.shape:
            found, own = tuple(other.shape), tuple(self.shape)
            raise RuntimeError(f"the in-place result has shape {found}, the jet {own}")
        self.memory[0] += 1
        self.rows, self.seen, self.velocity = other.rows, self.memory[0], other.velocity
        return self

    def orders(self) -> tuple[Tensor, ...]:
        """The rows by order: value (1, *shape), orders 1..K-1 (D, *shape), top (C, *shape)."""
        # One split: its backward is one concatenation, that of a slice is a stack full of zeros.
        return self.rows.split(self.basis.sizes)

    def coefficients(self) -> list[Tensor]:
        """The K + 1 tensors value (*shape), orders 1..K-1 (D, *shape), top (C, *shape)."""
        value, *derivatives = self.orders()
        return [value[0], *derivatives]

    @property
    def value(self) -> Tensor:
        """The value, (*shape)."""
        return self.rows[0]

    @property
    def data(self) -> Tensor:
        """What `detach` gives: the value, marked as having lost its derivatives."""
        return without_derivatives(self.value)

    @property
    def shape(self) -> torch.Size:
        """The shape of the value."""
        return self.rows.shape[1:]

    @property
    def ndim(self) -> int:
        """The number of dimensions of the value."""
        return self.rows.ndim - 1

    @property
    def dtype(self) -> torch.dtype:
        """The floating type."""
        return self.rows.dtype

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.rows.device

    @property
    def is_cuda(self) -> bool:
        """Whether the rows are on a GPU."""
        return self.rows.is_cuda

    @property
    def requires_grad(self) -> bool:
        """Whether autograd follows the rows, to parameters."""
        return self.rows.requires_grad

    @property
    def real(self) -> Jet:
        """The real part."""
        return self.view_of(self.rows.real)

    @property
    def imag(self) -> Jet:
        """The imaginary part, of a complex jet."""
        return self.view_of(self.rows.imag)

    @property
    def T(self) -> Jet:
        """The transpose."""
        return call("permute", self, *reversed(range(self.ndim)))

    @property
    def mT(self) -> Jet:
        """The last two dimensions exchanged."""
        return call("transpose", self, -2, -1)

    @property
    def mH(self) -> Jet:
        """The last two dimensions exchanged, and conjugated."""
        return call("conj", self.mT)

    H = mH

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
        """Whether the type is real."""
        return self.rows.is_floating_point()

    def is_complex(self) -> bool:
        """Whether the type is complex, after a Fourier transform say."""
        return self.rows.is_complex()

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError(
                "torch.tensor(x) and torch.as_tensor(x) copy numbers, which have no derivatives: "
                "use x itself, torch.stack for a list (len() of a number that depends on x)"
            )
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        raise TypeError(NO_NUMPY)

    __int__ = __complex__ = __index__ = __float__

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(NO_NUMPY)

    def __array_function__(self, func: Any, *args: Any) -> Any:
        raise TypeError(f"np.{func.__name__} of what depends on x: {NO_NUMPY}")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Arrays are constants of sums and products; other functions are torch's to evaluate."""
        operator = getattr(torch, ARITHMETIC.get(ufunc.__name__, ""), None)
        if operator is None or method != "__call__" or kwargs:
            raise TypeError(f"np.{ufunc.__name__} of what depends on x: {NO_NUMPY}")
        return operator(*(e if isinstance(e, Jet) else torch.as_tensor(e) for e in inputs))

    def __repr__(self) -> str:
        K, D = self.basis.order, self.basis.count
        return f"Jet(shape={tuple(self.shape)}, order={K}, directions={D}, dtype={self.dtype})"

    def __iter__(self) -> Iterator[Jet]:
        return iter(call("unbind", self, 0))

    def __getattr__(self, name: str) -> Any:
        if name in FACTS:
            return getattr(self.rows, name)
        if name.startswith("_") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(f"a Jet has no {name!r}; its value is .value, all its rows .rows")
        return partial(call, name, self)


class Method:
    """A method of `torch.Tensor` whose `self` may be a jet, for modes to compare and to call."""

    def __init__(self, function: Any) -> None:
        self.function, self.__name__ = function, function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(args[0], Tensor):
            return self.function(*args, **kwargs)
        return handle_torch_function(self, args[:1], *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return bool(self.function == getattr(other, "function", other))

    def __hash__(self) -> int:
        return hash(self.function)


def call(name: str, jet: Jet, *args: Any, **kwargs: Any) -> Any:
    """Call a tensor method on a jet as torch would: active modes see it first, then the table."""
    function = getattr(torch.Tensor, name)
    if torch.compiler.is_compiling():
        return Jet.__torch_function__(function, (Jet,), (jet, *args), kwargs)
    return handle_torch_function(Method(function), (jet,), jet, *args, **kwargs)


def operator(method: str) -> Callable[..., Any]:
    """An operator of Python as the tensor method of that name."""

    def apply(self: Jet, *args: Any) -> Any:
        return call(method, self, *args)

    return apply


# __add__ is Tensor.add, and so on; some operators have methods of other names.
SAME = ("add", "sub", "mul", "pow", "matmul", "neg", "abs", "lt", "le", "gt", "ge", "eq", "ne")
RENAMED = {"radd": "add", "rmul": "mul", "truediv": "div", "pos": "positive", "itruediv": "div_"}
RENAMED |= {"mod": "remainder", "floordiv": "floor_divide"}
RENAMED |= {f"i{name}": f"{name}_" for name in ("add", "sub", "mul", "pow")}
OWN = ("getitem", "setitem", "rsub", "rtruediv", "rpow", "rmatmul", "rmod", "rfloordiv")
RENAMED |= {name: f"__{name}__" for name in OWN}
for _operator, _method in {**{name: name for name in SAME}, **RENAMED}.items():
    setattr(Jet, f"__{_operator}__", operator(_method))
Jet.__hash__ = object.__hash__  # type: ignore[method-assign]


def check(func: Any, arguments: list[Any]) -> None:
    """Refuse jets of different bases, those whose memory another has changed, and lost rows."""
    jets = jets_among(arguments)
    if any(each.basis is not jets[0].basis for each in jets):
        raise ValueError(
            "jets of different bases meet: one of them is left over from another call of taylor, "
            "laplacian, ... Compute all that depends on x inside the function you pass."
        )
    if any(each.seen != each.memory[0] for each in jets):
        raise RuntimeError(
            "this jet shares memory with one that was changed in place, and does not know it. "
            "Write the change out of place: y = y + z for y += z, torch.tanh(y) for y.tanh_()."
        )
    if RULES[func] not in OF_VALUES:
        refuse_losses(func, arguments, jets[0].basis)


def refuse_losses(func: Any, arguments: list[Any], basis: Basis) -> None:
    """Derivatives in x or in the parameters that the result would lack."""
    if basis.differentiable and not torch.is_grad_enabled():
        raise RuntimeError(
            f"{name_of(func)} under torch.no_grad(), in a function that is differentiated: the "
            "result would not depend on the parameters. Take what depends on x out of the block "
            "(statistics are computed from x.detach(); checkpoint takes use_reentrant=False)"
        )
    if any(isinstance(each, Detached) for each in leaves_among(arguments)):
        raise RuntimeError(f"what was detached from a jet meets a jet: it {LOST}")
    if func in IN_PLACE and not isinstance(arguments[0], Jet) and not is_operator(func):
        raise TypeError(
            f"{name_of(func)} writes what depends on x into a plain tensor, which cannot hold "
            "derivatives: write it out of place, y = y + z for y.add_(z)"
        )


def jets_among(arguments: Any) -> list[Jet]:
    """All jets among arguments, in lists and tuples too."""
    return [each for each in leaves_among(arguments) if isinstance(each, Jet)]
