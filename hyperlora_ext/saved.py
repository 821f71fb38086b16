"""The factors of an adapted network alone, to be saved for a task, and put on its base again.

torch.save(state(v), "re60.lora")
v = load(u, torch.load("re60.lora"))
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from hyperlora_ext.frames import Shifted
from hyperlora_ext.lora import LoRALinear, adapters, frozen, linear_layers, rewired

__all__ = ["load", "state"]

OFFSET = "offset"


def state(model: nn.Module) -> dict[str, Tensor]:
    """The factors by name (20 kB instead of the network), detached copies.

    The offset of a network that sees its task in a frame of its own (`frames`) is among them.

    Raises:
        ValueError: if the model has no adapters.
    """
    network = model.network if isinstance(model, Shifted) else model
    found = {
        f"{name}.{key}": value
        for name, adapter in adapters(network).items()
        for key, value in adapter.named_parameters(recurse=False)
    }
    frame = {OFFSET: model.offset} if isinstance(model, Shifted) else {}
    return {name: value.detach().clone() for name, value in (found | frame).items()}


def load(model: nn.Module, factors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the base model adapted by saved factors, in the base's dtype and on its device.

    Raises:
        ValueError: if these are not factors, or those of a layer that the model does not have, or
            has with other widths.
    """
    layers, saved = linear_layers(model), by_layer(factors)
    if unknown := [name for name in saved if name not in layers]:
        raise ValueError(f"the model has no linear layer {unknown}; it has {list(layers)}")

    def adapter(name: str, linear: nn.Linear) -> nn.Module:
        return restored(name, linear, saved[name]) if name in saved else frozen(linear)

    adapted = rewired(model, adapter)
    return Shifted(adapted, factors[OFFSET].clone()) if OFFSET in factors else adapted


def by_layer(factors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A, B and, perhaps, shift of each layer."""
    found: dict[str, dict[str, Tensor]] = {}
    for key in (key for key in factors if key != OFFSET):
        name, _, part = key.rpartition(".")
        found.setdefault(name, {})[part] = factors[key]
    complete = all({"A", "B"} <= set(parts) <= {"A", "B", "shift"} for parts in found.values())
    if not found or not complete:
        raise ValueError(
            f"expected factors A and B of each layer, as state(model) gives them, found "
            f"{list(factors)[:4]}: a whole network is restored by its own load_state_dict"
        )
    return found


def restored(name: str, linear: nn.Linear, saved: Mapping[str, Tensor]) -> LoRALinear:
    """The adapter of a layer from its saved factors."""
    parts = {key: value.to(linear.weight, copy=True) for key, value in saved.items()}
    shape = len(parts["B"]), parts["A"].shape[1]
    if shape != tuple(linear.weight.shape):
        raise ValueError(
            f"layer {name} has weight {tuple(linear.weight.shape)}, but the saved factors "
            f"update one of shape {shape}: they belong to another base"
        )
    made = LoRALinear(linear, parts["A"], parts["B"], bias="shift" in parts)
    if made.shift is not None:
        made.shift.data.copy_(parts["shift"])
    return made
