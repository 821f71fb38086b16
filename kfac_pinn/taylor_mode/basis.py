"""Which derivatives a jet carries."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Basis"]


class Basis:
    """Which derivatives a jet carries: orders 1..K along D directions, the top order maybe summed.

    With ``weights`` w of shape (C, D) the top order is kept only as the C sums
    sum_d w_cd d^K/dt^K f(x + t v_d); without, as all D of them (C = D).  A number w stands for the
    one sum with w everywhere, which needs no product with a matrix.  A stack of coefficients has
    S = 1 + D (K - 1) + C rows: the value, orders 1..K-1, and the top order.
    """

    def __init__(self, order: int, count: int, weights: Tensor | float | None = None) -> None:
        if order < 1:
            raise ValueError(f"a jet needs order >= 1, found {order}: call the function itself")
        if isinstance(weights, Tensor) and (weights.ndim != 2 or weights.shape[1] != count):
            raise ValueError(f"weights must be (C, {count}), found {tuple(weights.shape)}")
        self.order, self.count, self.weights = order, count, weights
        self.differentiable = torch.is_grad_enabled()  # with respect to parameters
        # The top order enters everything linearly, so that it can be summed before and not after
        top = count if weights is None else len(weights) if isinstance(weights, Tensor) else 1
        self.sizes = [1, *[count] * (order - 1), top]

    def collapse(self, terms: Tensor) -> Tensor:
        """Sum over directions to the top order: (D, ...) -> (C, ...), sum_d w_cd terms_d."""
        if self.weights is None:
            return terms
        if isinstance(self.weights, Tensor):
            return torch.tensordot(self.weights.to(terms), terms, 1)
        return self.weights * terms.sum(0, keepdim=True)

    def spread(self, top: Tensor) -> Tensor:
        """The transpose of `collapse`: (C, ...) -> (D, ...), sum_c w_cd top_c."""
        if self.weights is None:
            return top
        if isinstance(self.weights, Tensor):
            return torch.tensordot(self.weights.T.to(top), top, 1)
        return (self.weights * top).expand(self.count, *top.shape[1:])
