"""The factors of an adapted network alone, to be saved for a task, and put on its base again.

torch.save(state(v), "re60.lora")
v = load(u, torch.load("re60.lora"))
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hyperlora_ext.lora import LoRALinear, adapters, frozen, linear_layers, rewired
from hyperlora_ext.symmetry import Shifted

__all__ = ["load", "state"]

OFFSET, BASE = "offset", "base"
OTHER_BASE = (
    "the factors were trained on another base than this one (its weights have other norms): the "
    "network will not be the one that was saved"
)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The factors by name (20 kB instead of the network), detached copies.

    The offset of a network that sees its task in a frame of its own (`frames`) is among them, and
    the norms of the weights W0, by which `load` knows the base.

    Raises:
        ValueError: if the model has no adapters.
    """
    network = model.network if isinstance(model, Shifted) else model
    layers = adapters(network)
    found: dict[str, Tensor] = {
        f"{name}.{key}": value
        for name, adapter in layers.items()
        for key, value in adapter.named_parameters(recurse=False)
    }
    found[BASE] = norms(layers[name].frozen for name in sorted(layers))
    if isinstance(model, Shifted):
        found[OFFSET] = model.offset
    return {name: value.detach().clone() for name, value in found.items()}


def load(model: nn.Module, factors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the base model adapted by saved factors, in the base's dtype and on its device.

    Warns where the factors were trained on a base of other weights.

    Raises:
        ValueError: if these are not factors, or those of a layer that the model does not have, or
            has with other widths.
    """
    layers, saved = linear_layers(model), by_layer(factors)
    if unknown := [name for name in saved if name not in layers]:
        raise ValueError(f"the model has no linear layer {unknown}; it has {list(layers)}")
    own = norms(layers[name] for name in sorted(saved))

    def adapter(name: str, linear: nn.Linear) -> nn.Module:
        return restored(name, linear, saved[name]) if name in saved else frozen(linear)

    adapted = rewired(model, adapter)
    if BASE in factors and not torch.allclose(own, factors[BASE].to(own), rtol=1e-4):
        warnings.warn(OTHER_BASE, stacklevel=2)
    return Shifted(adapted, factors[OFFSET].clone()) if OFFSET in factors else adapted


def by_layer(factors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A, B and, perhaps, shift of each layer."""
    found: dict[str, dict[str, Tensor]] = {}
    for key in (key for key in factors if key not in (OFFSET, BASE)):
        name, _, part = key.rpartition(".")
        found.setdefault(name, {})[part] = factors[key]
    complete = all({"A", "B"} <= set(parts) <= {"A", "B", "shift"} for parts in found.values())
    if not found or not complete:
        raise ValueError(
            f"expected factors A and B of each layer, as state(model) gives them, found "
            f"{list(factors)[:4]}: a whole network is restored by its own load_state_dict"
        )
    return found


def norms(layers: Iterable[nn.Module]) -> Tensor:
    """||W0|| of each layer, (L,)."""
    return torch.stack([layer.weight.detach().norm() for layer in layers])  # type: ignore[operator]


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
