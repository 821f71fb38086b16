"""Second-order steps need digits: what dtype the parameters have, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

__all__ = ["Precision", "refuse_inference", "refuse_scaler", "refuse_untrainable"]

HALF = (
    "second-order steps need all digits of float32, better float64. Leave out autocast and the "
    "scaler, and call optimizer.step(closure), or loss.backward() and optimizer.step()"
)


@dataclass(frozen=True)
class Precision:
    """In which dtype steps were taken, and on which device."""

    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, parameter: Tensor) -> Precision:
        """Those of a parameter."""
        return cls(parameter.dtype.to_real(), parameter.device)

    @classmethod
    def named(cls, name: str, device: torch.device) -> Precision | None:
        """The dtype of this name, as saved, on the device that a state is moved to."""
        return cls(getattr(torch, name), device) if name else None

    @property
    def name(self) -> str:
        """Of the dtype."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} on {self.device}"


def refuse_scaler(optimizer: Any) -> None:
    """Raise `TypeError` under a `GradScaler`, which leaves its mark on an optimizer."""
    if hasattr(optimizer, "found_inf"):
        # The mark is taken off: after the error the optimizer is as before
        del optimizer.grad_scale, optimizer.found_inf
        raise TypeError(f"GradScaler.step has no meaning here: {HALF}")


def refuse_inference() -> None:
    """Raise `RuntimeError` under `torch.inference_mode`, in which there is no autograd."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "step() was called under torch.inference_mode(), where nothing can be differentiated: "
            "call it outside"
        )


def refuse_untrainable(parameters: Sequence[Tensor]) -> None:
    """Raise `ValueError` for parameters that are not there yet, and under autocast."""
    if not parameters:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    if any(map(is_lazy, parameters)):
        raise ValueError(
            "a lazy module (LazyLinear, ...) has no parameters before its first call: call "
            "model(x) once before the first step"
        )
    if parameters[0].is_meta:
        raise ValueError(
            "the parameters are on the meta device, which holds no numbers: call "
            'model.to_empty(device="cpu"), and initialise them'
        )
    if torch.is_autocast_enabled(parameters[0].device.type):
        raise ValueError(f"step() was called under autocast: {HALF}")
