"""The factors of an adapted network alone, saved for a task, and put on its base again.

save(v, "re60.lora")            # 20 kB instead of the network
v = load(u, "re60.lora")        # on the same base; refused on another one

save(h, "flow.hyper")           # a hypernetwork with its base
h = load(made_alike, "flow.hyper")
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import LoRALinear, adapters
from hyperlora_ext.rewiring import linear_layers, rewired
from hyperlora_ext.symmetry import Shifted
from kfac_pinn.pinn.problem import placed_like
from kfac_pinn.pinn.training.storage import load as read
from kfac_pinn.pinn.training.storage import save as write
from kfac_pinn.pinn.training.storage import writable
from kfac_pinn.settings import MODULE, instance, takes

__all__ = ["load", "save", "state", "with_factors"]

PATH = instance((str, PathLike), "the path of a file")
State = Mapping[str, Any]


@takes(model=MODULE, path=PATH)
def save(model: nn.Module, path: str | Path) -> None:
    """Write the factors of an adapted network, and what they belong to; the file is whole or not.

    Of a hypernetwork all is written, its base as well.

    Args:
        model: of `adapt`, or `HyperLoRA.pinn`; or a `HyperLoRA`.
        path: of the file.

    Raises:
        ValueError: if the model has no adapters, or a number of them is not finite.
        OSError: if the file cannot be written.
    """
    if isinstance(model, HyperLoRA):
        save_whole(model, Path(path))
        return
    content = state(model)
    # Looked at before the file is touched: a good one is not overwritten by a bad one
    for name, factors in content["factors"].items():
        for key, factor in factors.items():
            if not factor.isfinite().all():
                raise ValueError(f"factor {name}.{key} is not finite: {path} is not written")
    writable(Path(path))
    write(content, Path(path))


@takes(model=MODULE, path=PATH)
def load(model: nn.Module, path: str | Path) -> nn.Module:
    """A copy of the base model adapted by saved factors, in the base's dtype and on its device.

    Args:
        model: the base; of a hypernetwork, one made alike, whose numbers do not matter.
        path: of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        RuntimeError: if it is damaged, or was not written by `save`.
        ValueError: if it belongs to another base, or to another hypernetwork.
    """
    if isinstance(model, HyperLoRA):
        return with_state(model, read(Path(path)), str(path))
    return with_factors(model, read(Path(path)), str(path))


def save_whole(hyper: HyperLoRA, path: Path) -> None:
    """Write all tensors of a hypernetwork, and the class of its task space."""
    tensors = hyper.state_dict()
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite: {path} is not written")
    writable(path)
    write({"hypernetwork": tensors, "space": repr(hyper.space)}, path)


def with_state(hyper: HyperLoRA, saved: Any, source: str) -> HyperLoRA:
    """A copy of a hypernetwork with saved tensors, in its own dtype and on its device.

    Raises:
        ValueError: if these are no hypernetwork's, or those of one with other layers or tasks.
    """
    if not isinstance(saved, Mapping) or "hypernetwork" not in saved:
        raise ValueError(f"{source} holds no hypernetwork, as save(hyper, path) writes it")
    shapes = {n: tuple(v.shape) for n, v in hyper.state_dict().items()}
    there = {n: tuple(v.shape) for n, v in saved["hypernetwork"].items()}
    for name in sorted(shapes.keys() | there.keys()):
        if shapes.get(name) != there.get(name):
            raise ValueError(
                f"{source} belongs to another hypernetwork: {name} is "
                f"{there.get(name, 'missing')} there, {shapes.get(name, 'missing')} here. Make it "
                "with the same base, rank and hidden widths"
            )
    if (own := without_addresses(repr(hyper.space))) != without_addresses(saved["space"]):
        raise ValueError(f"{source} was trained on tasks {saved['space']}, not {own}")
    # Its base is shared with the user's own: not to be written into
    loaded = copy.deepcopy(hyper)
    loaded.load_state_dict(saved["hypernetwork"])
    return loaded


def without_addresses(text: str) -> str:
    """A repr that is the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def state(model: nn.Module) -> dict[str, Any]:
    """What `save` writes: tensors, strings and numbers.

    factors: A, B and perhaps shift by layer, detached copies; offset: of a network that sees
    its task in a frame of its own (`symmetry`), or None; base: marks of the frozen weights, by
    which the base is known again, and of what kind it is.

    Raises:
        ValueError: if the model has no adapters.
    """
    network = model.network if isinstance(model, Shifted) else model
    layers = adapters(network)
    factors = {
        name: {key: p.detach().clone() for key, p in adapter.named_parameters(recurse=False)}
        for name, adapter in layers.items()
    }
    return {
        "factors": factors,
        "offset": model.offset.clone() if isinstance(model, Shifted) else None,
        "base": {"kind": kind_of(network)} | {n: mark(a.frozen) for n, a in layers.items()},
    }


def with_factors(model: nn.Module, saved: State, source: str = "the state") -> nn.Module:
    """A copy of the base model adapted by a `state`; errors as of `load`, naming the source.

    Raises:
        ValueError: if this is no state, or that of another base.
    """
    layers, parts = linear_layers(model), by_layer(saved, source)
    for difference in differences(model, layers, parts, saved["base"]):
        raise ValueError(f"{source} belongs to another base: {difference}")

    def adapter(name: str, linear: nn.Linear) -> nn.Module:
        return restored(linear, parts[name])

    adapted, offset = rewired(model, parts, adapter), saved["offset"]
    if offset is None:
        return adapted
    return Shifted(adapted, offset.to(**placed_like(next(model.parameters())), copy=True))


def by_layer(saved: State, source: str) -> dict[str, dict[str, Tensor]]:
    """A, B and, perhaps, shift of each layer."""
    known = isinstance(saved, Mapping) and {"factors", "offset", "base"} <= set(saved)
    found: dict[str, dict[str, Tensor]] = saved["factors"] if known else {}
    if not found or not all(map(is_complete, found.values())):
        shown = list(saved)[:4] if isinstance(saved, Mapping) else type(saved).__name__
        raise ValueError(
            f"{source} holds no factors A and B of layers, as save(model, path) writes them, but "
            f"{shown}: a whole network is restored by its own load_state_dict"
        )
    return found


def is_complete(factors: Any) -> bool:
    """Whether these are the factors of one layer."""
    return isinstance(factors, Mapping) and {"A", "B"} <= set(factors) <= {"A", "B", "shift"}


def differences(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    parts: Mapping[str, Mapping[str, Tensor]],
    base: Mapping[str, Any],
) -> Iterator[str]:
    """In what the model is not the base that the factors were trained on."""
    if (kind := kind_of(model)) != base["kind"]:
        yield f"a {base['kind']}, here a {kind}"
    for name, factors in parts.items():
        if name not in layers:
            yield f"it has no linear layer {name!r}, but {list(layers)}"
            continue
        shape = len(factors["B"]), factors["A"].shape[1]
        if shape != (own := tuple(layers[name].weight.shape)):
            yield f"the weight of layer {name!r} has shape {shape} there, {own} here"
        # A float32 copy of a float64 base differs by 1e-7 and is the same base
        elif not torch.allclose(found := mark(layers[name]), base[name].to(found), rtol=1e-5):
            yield (
                f"the weight of layer {name!r} has norm {base[name][0]:.6g} and mark "
                f"{base[name][1]:.6g} there, {found[0]:.6g} and {found[1]:.6g} here"
            )


def kind_of(network: nn.Module) -> str:
    """The class of a base, adapted or not."""
    return type(network.frozen if isinstance(network, LoRALinear) else network).__name__


def mark(layer: nn.Linear) -> Tensor:
    """What a layer is known by in any dtype: the norm of [W | b], and that plus a projection."""
    parts = [
        p.detach().double().cpu().flatten() for p in (layer.weight, layer.bias) if p is not None
    ]
    flat = torch.cat(parts)
    # A fixed direction that no symmetry of a network, such as swapped neurons, leaves alone
    waves = torch.arange(1.0, 1 + len(flat), dtype=torch.float64).cos()
    return torch.stack([flat.norm(), 2 * flat.norm() + flat @ waves / waves.norm()])


def restored(linear: nn.Linear, saved: Mapping[str, Tensor]) -> LoRALinear:
    """The adapter of a layer from its saved factors."""
    parts = {key: value.to(linear.weight, copy=True) for key, value in saved.items()}
    made = LoRALinear(linear, parts["A"], parts["B"], bias="shift" in parts)
    if made.shift is not None:
        made.shift.data.copy_(parts["shift"])
    return made
