"""What a run is of, as facts to compare: a checkpoint belongs to one problem, model, optimizer.

A fact is a place and a text, `model.layers.0.weight: float64 (8, 2)`. Modules, dataclasses,
mappings and sequences are entered; a function is its name, its code and the values it was closed
over. What training changes is left out: of parameters and buffers only dtype and shape count.
"""

from __future__ import annotations

import dis
import functools
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kfac_pinn.pinn.problem import Problem

__all__ = ["differences", "facts_of"]

Facts: TypeAlias = Iterator[tuple[str, str]]

_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, range)
_LONG = 200  # characters of a sequence that are shown
_LIBRARIES = ("kfac_pinn", "hyperlora_ext", "torch")  # a later version of them may go on
# Attributes of an optimizer; a run may go on in another number of processes
_OF_A_RUN = {"state", "param_groups", "defaults", "stats", "step", "processes"}


def facts_of(problem: Problem, model: nn.Module, optimizer: Optimizer) -> dict[str, str]:
    """All facts of a run that is about to start, by their places."""
    seen: dict[int, Any] = {}
    roots = {"problem": problem, "model": model, "optimizer": optimizer}
    return dict(fact for name, value in roots.items() for fact in _facts(value, name, seen))


def differences(
    start: Mapping[str, str], end: Mapping[str, str], now: Mapping[str, str]
) -> list[str]:
    """Where a run differs from a stored one, in what stayed the same from its start to its end.

    What changed in between (a scheduled learning rate, a counter in the model) is restored, or is
    found as it was left by whoever uses the same objects again.
    """
    absent = "nothing"
    return [
        f"{place}: {start.get(place, absent)} there, {now.get(place, absent)} here"
        for place in dict.fromkeys([*now, *start])
        if start.get(place) == end.get(place) != now.get(place)
    ]


def _facts(value: Any, place: str, seen: dict[int, Any]) -> Facts:
    """The facts of a value and of what it is made of; of each object once, as there are cycles."""
    if isinstance(value, _PLAIN):
        yield place, repr(value)
    elif hasattr(type(value), "__array__"):  # a tensor, or NumPy's
        yield place, _numbers(torch.as_tensor(value))
    elif id(value) not in seen:
        seen[id(value)] = value  # kept, so that no other object takes its id
        yield place, _title(value)
        for name, part in _parts(value):
            yield from _facts(part, f"{place}.{name}", seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, by name."""
    for kind, parts in _KINDS:
        if isinstance(value, kind):
            yield from parts(value)
            return
    if is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    elif not isinstance(value, type):  # any other object: only what is plainly a setting
        yield from (pair for pair in _public(value) if isinstance(pair[1], _SETTINGS))


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from (pair for pair in _public(module) if pair[0] != "training")
    yield from module.named_parameters(recurse=False)
    yield from ((name, _shape(buffer)) for name, buffer in module.named_buffers(recurse=False))
    yield from module.named_children()


def _of_optimizer(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    for index, group in enumerate(optimizer.param_groups):
        settings = {key: value for key, value in group.items() if key != "initial_lr"}
        settings["lr"] = group.get("initial_lr", group.get("lr"))  # what a scheduler started from
        yield f"group {index}", settings
    yield from (pair for pair in _public(optimizer) if pair[0] not in _OF_A_RUN)


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Its code, defaults, and the variables it was closed over but those that are set again."""
    code = function.__code__
    if str(function.__module__).partition(".")[0] not in _LIBRARIES:
        yield (
            "code",
            f"{_fingerprint(code):08x}, Python {sys.version_info[0]}.{sys.version_info[1]}",
        )
    yield "defaults", (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items())
    changed = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_DEREF"}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # not set yet
            continue
        if name not in changed and not isinstance(value, (list, dict, set)):  # they may be filled
            yield name, value


def _of_sequence(values: Any) -> Iterator[tuple[str, Any]]:
    if not all(isinstance(value, _PLAIN) for value in values):
        yield from ((str(index), value) for index, value in enumerate(values))


_SETTINGS = (*_PLAIN, Tensor, FunctionType, tuple)
_KINDS: tuple[tuple[Any, Callable[[Any], Iterator[tuple[str, Any]]]], ...] = (
    (nn.Module, _of_module),
    (Optimizer, _of_optimizer),
    (FunctionType, _of_function),
    (MethodType, lambda m: iter([("function", m.__func__), ("object", m.__self__)])),
    (
        functools.partial,
        lambda p: iter([("function", p.func), ("arguments", p.args), ("keywords", p.keywords)]),
    ),
    (Mapping, lambda m: ((str(key), part) for key, part in m.items())),
    ((list, tuple), _of_sequence),
    ((set, frozenset), lambda s: iter([("items", tuple(sorted(map(repr, s))))])),
)


def _public(value: Any) -> list[tuple[str, Any]]:
    """The attributes of an object whose names do not begin with an underscore."""
    return [pair for pair in getattr(value, "__dict__", {}).items() if pair[0][:1] != "_"]


def _title(value: Any) -> str:
    """A function's name, a plain sequence itself, the type of anything else."""
    if isinstance(value, (list, tuple)) and all(isinstance(entry, _PLAIN) for entry in value):
        text = repr(tuple(value))
        return text if len(text) < _LONG else f"{len(value)} values {zlib.crc32(text.encode()):08x}"
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return str(name).removeprefix("_VariableFunctionsClass.")


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _numbers(tensor: Tensor) -> str:
    """Dtype and shape; and of a constant its norm and one projection, to four digits."""
    if tensor.requires_grad or tensor.layout != torch.strided or not tensor.numel():
        return _shape(tensor)
    values = tensor.detach().cpu()
    x = (torch.view_as_real(values) if values.is_complex() else values).double().flatten()
    norm = float(x.norm())
    weighted = float(x @ torch.arange(1.0, 1 + len(x), dtype=x.dtype).cos())
    return f"{_shape(tensor)}, norm {norm:.4g}, {weighted / (norm or 1) + 0.0:.3f}"


def _fingerprint(code: CodeType) -> int:
    """Of what a function computes, wherever it is written."""
    return zlib.crc32(repr((code.co_code, code.co_names, _constants(code.co_consts))).encode())


def _constants(value: Any) -> Any:
    """Constants with a text that does not depend on addresses or the order of sets."""
    if isinstance(value, CodeType):
        return _fingerprint(value)
    if isinstance(value, tuple):
        return tuple(map(_constants, value))
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value
