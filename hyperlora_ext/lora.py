"""Low-rank adapters: W = W0 + B A on every linear layer of a module, W0 shared and frozen.

    v = adapt(u, rank=4)            # u is untouched; v(x) == u(x) until A and B are trained
    w = merge(v)                    # plain layers again

Shape letters: r rank, d_in and d_out widths, A (r, d_in), B (d_out, r).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "LoRALinear",
    "Ranks",
    "adapt",
    "adapters",
    "count",
    "frozen",
    "linear_layers",
    "linear_of",
    "merge",
    "ranks_for",
    "rewired",
    "start_of",
    "widest",
]

Ranks = int | Mapping[str, int]


class LoRALinear(nn.Module):
    """y = W0 x + b + B (A x): a frozen linear layer and a trained update of low rank.

    Both products are uses of ordinary weights, so jets, capture and every optimizer know them.

    Args:
        linear: holds W0 and b; its tensors are shared, not copied, and not trained here.
        A: shape (r, d_in).
        B: shape (d_out, r); zero by default, so that training starts from W0.
        bias: also train a shift of b.
    """

    def __init__(
        self, linear: nn.Linear, A: Tensor, B: Tensor | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.frozen = frozen(linear)
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(A.new_zeros(linear.out_features, len(A)) if B is None else B)
        self.shift = nn.Parameter(A.new_zeros(linear.out_features)) if bias else None

    @property
    def rank(self) -> int:
        """r."""
        return len(self.A)

    @property
    def weight(self) -> Tensor:
        """W0 + B A, (d_out, d_in)."""
        return self.frozen.weight + self.B @ self.A

    @property
    def bias(self) -> Tensor | None:
        """b, shifted where the bias is trained."""
        bias = self.frozen.bias
        return bias if self.shift is None else self.shift if bias is None else bias + self.shift

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(x, self.A), self.B, self.shift)
        return self.frozen(x) + update


def adapt(
    model: nn.Module,
    rank: Ranks = 4,
    *,
    bias: bool = False,
    cap: bool = True,
    directions: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """A copy of the model with an adapter on every linear layer; everything else is shared.

    B = 0, so the copy starts as the model. Only adapters are trained: `optimizer(v.parameters())`.

    Args:
        model: any module; the layers must be called as modules. Classes that derive from nn.Linear
            with a forward of their own are not linear layers, and stay as they are.
        rank: of every layer, or by the layer's name (layers not named get none).
        bias: also train the biases.
        cap: use at most min(d_in, d_out) in a layer; the paper does not, and trains redundant
            factors in the first and last layer.
        directions: rows (>= r, d_in) to start A from, by name (`rank.directions`); random
            N(0, 1 / d_in) otherwise.

    Raises:
        ValueError: for a model without linear layers, or with adapters already, a rank below one
            or above every layer's, or a rank by name above its own layer's.
    """
    ranks = ranks_for(model, rank, cap)
    starts = directions or {}

    def adapter(name: str, linear: nn.Linear) -> nn.Module:
        if name not in ranks:
            return frozen(linear)
        return LoRALinear(linear, start_of(linear, ranks[name], starts.get(name)), bias=bias)

    return rewired(model, adapter)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of an adapted model by name.

    Raises:
        ValueError: if there are none.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no adapters: make some by adapt(model, rank)")
    return found


def merge(model: nn.Module) -> nn.Module:
    """A copy with plain linear layers of weight W0 + B A, as fast as before the adaptation; all its
    parameters are trained again.
    """
    memo: dict[int, Any] = {id(adapter): plain(adapter) for adapter in adapters(model).values()}
    return copy.deepcopy(model, memo).requires_grad_()


def count(model: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by name.

    Raises:
        ValueError: if there are none, or if they have adapters already.
    """
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has adapters already: start from its base, or make plain "
            "layers of them first, by merge(model)"
        )
    found = {n: m for n, m in model.named_modules() if is_linear(m)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear layer to adapt. Low-rank updates act on "
            "matrices: build the base of nn.Linear layers (kfac_pinn's MLP, say)"
        )
    return found


def ranks_for(model: nn.Module, rank: Ranks, cap: bool = True) -> dict[str, int]:
    """The rank of each layer by name; arguments and errors as `adapt`."""
    full = full_ranks(model)
    if isinstance(rank, Mapping):
        if not rank:
            raise ValueError(f"ranks of no layer at all; the model has {list(full)}")
        for name, r in rank.items():
            if name not in full:
                raise ValueError(f"no linear layer {name!r}; the model has {list(full)}")
            check_rank(r, full[name], f"layer {name}")
        return dict(rank)
    check_rank(rank, widest(model) if cap else None, "the largest layer")
    return {name: min(rank, bound) if cap else rank for name, bound in full.items()}


def full_ranks(model: nn.Module) -> dict[str, int]:
    """min(d_in, d_out) of each layer by name."""
    return {name: min(layer.weight.shape) for name, layer in linear_layers(model).items()}


def widest(model: nn.Module) -> int:
    """The largest rank that some layer can take."""
    return max(full_ranks(model).values())


def check_rank(rank: int, bound: int | None, layer: str) -> None:
    """1 <= rank <= min(d_in, d_out), where there is a bound, or an error that says so."""
    if rank < 1 and bound is None:
        raise ValueError(f"rank {rank}: give at least 1")
    if bound is not None and not 1 <= rank <= bound:
        raise ValueError(f"rank {rank} for {layer}, whose full rank is {bound}: give 1 to {bound}")


def rewired(model: nn.Module, replace: Callable[[str, nn.Linear], nn.Module]) -> nn.Module:
    """A copy with every linear layer replaced; all other tensors are shared and frozen."""
    memo: dict[int, Any] = {
        id(layer): replace(n, layer) for n, layer in linear_layers(model).items()
    }
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def frozen(linear: nn.Linear) -> nn.Linear:
    """A linear layer on the same memory that is not trained."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), False) for p in linear.parameters()}
    return copy.deepcopy(linear, memo)


def is_linear(module: nn.Module) -> bool:
    """Whether it computes W x + b; a subclass may do otherwise."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def plain(adapter: LoRALinear) -> nn.Linear:
    """A new layer of weight W0 + B A: that of W0 may be parametrised (`weight_norm`)."""
    bias = adapter.bias
    return linear_of(adapter.weight.detach(), None if bias is None else bias.detach().clone())


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that takes these tensors as its own; it draws no random numbers."""
    d_out, d_in = weight.shape
    made = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


def start_of(linear: nn.Linear, rank: int, rows: Tensor | None = None) -> Tensor:
    """A (r, d_in) to start from: given rows as far as they go, then N(0, 1 / d_in)."""
    weight = linear.weight
    A = torch.randn(rank, weight.shape[1], dtype=weight.dtype, device=weight.device)
    A = A / weight.shape[1] ** 0.5
    if rows is not None:
        given = min(rank, len(rows))
        A[:given] = rows[:given].to(A)
    return A
