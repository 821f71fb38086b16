"""A copy of a model with other layers in the place of its linear ones, all else being shared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeGuard

from torch import nn
from torch.nn.parameter import UninitializedParameter

from hyperlora_ext.emitted_layers import TaskLinear
from hyperlora_ext.lora import LoRALinear, frozen

__all__ = ["is_linear", "linear_layers", "rewired"]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by name.

    Raises:
        ValueError: if there are none, if they have adapters already or are emitted, or no size yet.
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has adapters already: start from its base, or make plain "
            "layers of them first, by merge(model)"
        )
    if any(isinstance(m, TaskLinear) for m in model.modules()):
        raise ValueError(
            f"the weights of {type(model).__name__} are emitted for each task: adapt its base, or "
            "polish the network of one task, hyper.pinn(task), which has adapters"
        )
    found = {n: m for n, m in model.named_modules() if is_linear(m)}
    if unmade := [n for n, m in found.items() if isinstance(m.weight, UninitializedParameter)]:
        raise ValueError(
            f"layer {unmade[0]!r} has no size yet: call {type(model).__name__} at some points first"
        )
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear layer to adapt. Low-rank updates act on "
            "matrices: build the base of nn.Linear layers (kfac_pinn's MLP, say)"
        )
    return found


def rewired(
    model: nn.Module, names: Iterable[str], replace: Callable[[str, nn.Linear], nn.Module]
) -> nn.Module:
    """A copy with these linear layers replaced; all other tensors are shared and frozen.

    Raises:
        ValueError: if a weight of theirs has another place in the model, which would keep it.
    """
    layers, names = linear_layers(model), set(names)
    refuse_shared(model, names)
    memo: dict[int, Any] = {
        id(layer): replace(n, layer) if n in names else frozen(layer) for n, layer in layers.items()
    }
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    # After the line above: a replaced layer's weight held elsewhere must not work silently
    memo |= {id(p): Bypassed(n) for n in names for p in layers[n].parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def refuse_shared(model: nn.Module, names: Iterable[str]) -> None:
    """Each parameter of the layers belongs to one module: else the other would not be adapted."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for own, p in module.named_parameters(prefix=name, recurse=False):
            places.setdefault(id(p), []).append(own)
    for name in names:
        for p in model.get_submodule(name).parameters():
            if len(found := places[id(p)]) > 1:
                raise ValueError(
                    f"{' and '.join(found)} are one Parameter: adapting layer {name!r} would part "
                    "them. Use one module in both places (self.b = self.a), give each a Parameter "
                    "of its own, or name the ranks of the other layers only"
                )


class Bypassed:
    """Stands where a model holds the weight of a replaced layer outside of it: any use is refused.

    Used as it was, it would not be adapted, without a word.

    Args:
        layer: its name.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        next(value for value in given if isinstance(value, cls)).refuse()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying and pickling ask for
            raise AttributeError(name)
        self.refuse()

    def refuse(self) -> NoReturn:
        """Name the layer."""
        raise RuntimeError(
            f"the weight of layer {self.layer!r} is used outside of the layer, where it is not "
            "adapted: call the layer as a module, self.layer(x) instead of F.linear(x, weight), "
            "or leave it out by naming the ranks of the other layers"
        )


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it computes W x + b; a subclass may do otherwise."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
