"""Parameters as one flat vector: what an optimizer's groups and state mean to linear algebra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kfac_pinn.linalg import dimension, flatten, real, unflatten

__all__ = ["FlatOptimizer", "Parameters"]

Parameters: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class FlatOptimizer(Optimizer):
    """A torch optimizer whose trained tensors are also read as a flat vector (P,)."""

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        if isinstance(params, nn.Module):
            name = type(params).__name__
            raise TypeError(f"found a module ({name}) for its parameters: write model.parameters()")
        super().__init__(params, defaults)

    @property
    def parameters(self) -> list[Tensor]:
        """All trained tensors in the order of the groups: the order of flat vectors."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def expand(self, key: str) -> Tensor:
        """A hyper-parameter of the groups as a flat vector (P,)."""
        parts = [
            # A vector, not a number a group: all formulas are then those of one group
            real(p.detach()).new_full((dimension(p),), float(group[key]))
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        return torch.cat(parts)

    def shared(self, key: str) -> float:
        """A hyper-parameter that all groups must agree on.

        Raises:
            ValueError: if they do not.
        """
        values = {float(group[key]) for group in self.param_groups}
        if len(values) > 1:
            raise ValueError(
                f"{type(self).__name__} works with one {key} for all parameters, but the groups "
                f"have {sorted(values)}; set group[{key!r}] to one value"
            )
        return values.pop()

    def gather(self, key: str) -> Tensor:
        """The parameters' state tensors of one name as a flat vector (P,), zero where missing."""
        parts = [self.state[p].get(key) for p in self.parameters]
        pairs = zip(parts, self.parameters, strict=True)
        return flatten(torch.zeros_like(p) if s is None else s for s, p in pairs)

    def scatter(self, key: str, flat: Tensor) -> None:
        """The reverse of `gather`."""
        for p, part in zip(self.parameters, unflatten(flat, self.parameters), strict=True):
            # A tensor of its own each: a view would save the whole flat vector with every parameter
            self.state[p][key] = part.clone()

    def names(self) -> list[str]:
        """Of the trained tensors, for errors: as given, or number and shape."""
        names: list[str] = []
        for group in self.param_groups:
            known = group.get("param_names", [None] * len(group["params"]))
            for name, p in zip(known, group["params"], strict=True):
                if p.requires_grad:
                    names.append(name or f"{len(names)} of shape {tuple(p.shape)}")
        return names
