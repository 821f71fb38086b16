"""A second device without the hardware: tensors that say they are elsewhere, computed on the CPU.

As on a GPU, an operation refuses tensors of two devices, new tensors are where they are asked to
be, and generators belong to a device. What runs on it would bring no tensor of the CPU into an
operation of a GPU; the arithmetic is the CPU's, so that results must agree up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

AVAILABLE = hasattr(registration, "_setup_privateuseone_for_python_backend")  # torch >= 2.10
NAME = "elsewhere"
MOVES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class Elsewhere(Tensor):
    """A tensor of the second device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        like = {"dtype": held.dtype, "layout": held.layout, "strides": held.stride()}
        offset, device = held.storage_offset(), torch.device(NAME, 0)
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, storage_offset=offset, device=device, **like
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"


class SecondDevice(TorchDispatchMode):
    """While it is entered, tensors may be made on the device, moved there and back."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class SecondGenerator(torch.Generator):
    """A generator of the second device, or of the CPU, which draws the same numbers."""

    def __new__(cls, device: Any = "cpu") -> SecondGenerator:
        self = super().__new__(cls)
        self.place = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.place


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the numbers, its results where the device would leave them."""
    there: dict[int, Elsewhere] = {}
    here: list[Tensor] = []
    plain, options = held(args, there, here), held(kwargs, there, here)
    if there and here and func not in MOVES:
        raise RuntimeError(
            f"{func}: tensors on two devices, of shapes {[tuple(t.shape) for t in there.values()]} "
            f"on {NAME} and {[tuple(t.shape) for t in here]} on the CPU"
        )
    on_device = bool(there)
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], Elsewhere)
    elif options.get("device") is not None:
        on_device = torch.device(options["device"]).type == NAME
        options["device"] = torch.device("cpu")
    out = func(*plain, **options)
    return placed(out, there) if on_device else out


def held(value: Any, there: dict[int, Elsewhere], here: list[Tensor]) -> Any:
    """The value with numbers for tensors; notes which are there, and which here have dimensions."""
    if isinstance(value, Elsewhere):
        there[id(value.held)] = value
        return value.held
    if isinstance(value, Tensor):
        if value.ndim:
            here.append(value)
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(held(v, there, here) for v in value)
    if isinstance(value, dict):
        return {key: held(v, there, here) for key, v in value.items()}
    return value


def placed(out: Any, there: dict[int, Elsewhere]) -> Any:
    """Results on the device; an argument that was changed in place is itself."""
    if isinstance(out, Tensor):
        return there[id(out)] if id(out) in there else Elsewhere(out)
    if isinstance(out, (list, tuple)):
        return type(out)(placed(value, there) for value in out)
    return out


def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    """What C++ asks a device for when it copies a tensor to it."""
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Numbers from one device to another."""
    numbers = [t.held if isinstance(t, Elsewhere) else t for t in (source, target)]
    numbers[1].copy_(numbers[0])
    return target


def register() -> torch.device:
    """The device; once a process."""
    registration._setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")
    register.library = library  # registrations last as long as this object
    return torch.device(NAME, 0)
