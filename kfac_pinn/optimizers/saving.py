"""Typed state to plain containers and back: frozen dataclasses inside, dicts in `state_dict` only.

A dataclass is saved as the dict of its fields. It is restored by its annotations, so that nothing
but tensors, numbers and containers is stored (`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

__all__ = ["placed", "plain", "restored"]


def plain(value: Any) -> Any:
    """Nested state with every dataclass as the dict of its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(entry) for entry in value)
    return value


def restored(kind: Any, value: Any) -> Any:
    """The reverse of `plain` for a value of this kind: a dataclass, `X | None`, dict[K, X], ...

    Raises:
        TypeError: where the value is not of this kind.
    """
    if get_origin(kind) in (Union, types.UnionType):
        return restored(alternative(get_args(kind), value), value)
    if get_origin(kind) is dict:
        return {key: restored(get_args(kind)[1], entry) for key, entry in value.items()}
    if get_origin(kind) is tuple:
        return tuple(restored(get_args(kind)[0], entry) for entry in value)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return value
    if not matches(kind, value):
        raise TypeError(f"a saved {kind.__name__} has the entries {names(kind)}, found {value!r}")
    hints = get_type_hints(kind)
    return kind(**{name: restored(hints[name], entry) for name, entry in value.items()})


def alternative(kinds: tuple[Any, ...], value: Any) -> Any:
    """Which of several kinds a saved value is: dataclasses are told apart by their fields."""
    typed = [kind for kind in kinds if is_dataclass(kind)] if isinstance(value, dict) else []
    return next((kind for kind in typed if matches(kind, value)), typed[0] if typed else None)


def matches(kind: Any, value: Any) -> bool:
    """Whether a value is a dict with the fields of a dataclass."""
    return isinstance(value, dict) and set(value) == set(names(kind))


def names(kind: Any) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in fields(kind)]


def placed(value: Any, device: torch.device) -> Any:
    """A copy of nested plain state on the device, every dtype as it was saved."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True) if value.ndim else value.clone()
    if isinstance(value, dict):
        return {key: placed(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(entry, device) for entry in value)
    return value
