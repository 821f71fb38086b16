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

__all__ = ["placed", "plain", "refuse_foreign", "restored", "signature_of"]


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
    if kind is type(None) and value is not None:
        raise TypeError(f"nothing is remembered here, but something was saved: {value!r}")
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
    # Annotations are text under `from __future__ import annotations`
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
        # A copy: two optimizers loaded from one dict must not share memory
        return value.detach().to(device, copy=True) if value.ndim else value.clone()
    if isinstance(value, dict):
        return {key: placed(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(entry, device) for entry in value)
    return value


def signature_of(optimizer: Any) -> dict[str, Any]:
    """What a state belongs to: the optimizer's name, its parameters' shapes and their dtype."""
    shapes = [list(p.shape) for group in optimizer.param_groups for p in group["params"]]
    name, precision = type(optimizer).__name__, optimizer._precision
    dtype = "" if precision is None else precision.name
    return {"optimizer": name, "shapes": shapes, "precision": dtype}


def refuse_foreign(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a state that belongs to another optimizer or to other shapes."""
    own = type(optimizer).__name__
    found = saved.get("optimizer", guess(saved))
    if found != own:
        raise ValueError(
            f"this is the state of {found}, not of {own}; construct {found} to load it"
        )
    names = [name for group in optimizer.param_groups for name in names_in(group)]
    here = [list(p.shape) for group in optimizer.param_groups for p in group["params"]]
    if len(here) != len(saved["shapes"]):
        count = f"{len(here)} parameters, the saved state has {len(saved['shapes'])}"
        raise ValueError(f"this {own} has {count}: it belongs to another model")
    for name, shape, other in zip(names, here, saved["shapes"], strict=True):
        if shape != list(other):
            raise ValueError(
                f"parameter {name} has shape {tuple(shape)}, in the saved state {tuple(other)}: "
                f"it is the state of a {own} of another model"
            )


def names_in(group: Mapping[str, Any]) -> list[str]:
    """The names of a group's parameters, or their numbers."""
    return list(group.get("param_names", map(str, range(len(group["params"])))))


# Of torch's optimizers, by what only they keep in a group; the first that fits.
MARKS = {
    "LBFGS": {"history_size"},
    "SGD": {"nesterov"},
    "Adam (or AdamW)": {"betas", "amsgrad"},
    "an optimizer like Adam": {"betas"},
    "RMSprop": {"alpha", "centered"},
    "Adagrad": {"lr_decay"},
    "Rprop": {"etas"},
}


def guess(saved: Mapping[str, Any]) -> str:
    """Whose state it is that does not say so."""
    keys = {key for group in saved.get("param_groups", ()) for key in group}
    return next((name for name, marks in MARKS.items() if marks <= keys), "another optimizer")
