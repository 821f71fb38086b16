"""One layer and its low-rank adapter: y = W0 x + b + B (A x), W0 shared and frozen.

Shape letters: r rank, d_in and d_out widths, A (r, d_in), B (d_out, r).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfac_pinn.settings import MODULE, takes

__all__ = [
    "LoRALinear",
    "adapters",
    "count",
    "frozen",
    "linear_of",
    "merge",
    "plain",
    "start_of",
]


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
        # Two thin products, not B A first: J is then in factors of width r
        update = F.linear(F.linear(x, self.A), self.B, self.shift)
        return self.frozen(x) + update


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapters of an adapted model by name.

    Raises:
        ValueError: if there are none.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no adapters: make some by adapt(model, rank)")
    return found


@takes(model=MODULE)
def merge(model: nn.Module) -> nn.Module:
    """A copy with plain linear layers of weight W0 + B A, as fast as before the adaptation.

    All parameters of the copy are trained again; the model stays as it is.

    Raises:
        ValueError: for a model without adapters.
    """
    memo: dict[int, Any] = {id(adapter): plain(adapter) for adapter in adapters(model).values()}
    return copy.deepcopy(model, memo).requires_grad_()


def count(model: nn.Module) -> int:
    """The number of trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def frozen(linear: nn.Linear) -> nn.Linear:
    """A linear layer on the same memory that is not trained."""
    # The same memory in another Parameter: the base itself stays trainable
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), False) for p in linear.parameters()}
    return copy.deepcopy(linear, memo)


def plain(layer: LoRALinear | nn.Linear) -> nn.Linear:
    """A new layer of weight W0 + B A, or W0, which may be parametrised (`weight_norm`)."""
    bias = layer.bias
    return linear_of(layer.weight.detach().clone(), None if bias is None else bias.detach().clone())


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer that takes these tensors as its own; it draws no random numbers."""
    d_out, d_in = weight.shape
    # On the meta device: an initialisation would change the user's random numbers
    made = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight)
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


def start_of(linear: nn.Linear, rank: int, rows: Tensor | None = None) -> Tensor:
    """A (r, d_in) to start from: given rows as far as they go, then N(0, 1 / d_in)."""
    weight = linear.weight
    A = torch.randn(rank, weight.shape[1], dtype=weight.dtype, device=weight.device)
    # Unit variance of A x for inputs of unit variance, whatever the width
    A = A / weight.shape[1] ** 0.5
    if rows is not None:
        given = min(rank, len(rows))
        A[:given] = rows[:given].to(A)
    return A
