"""Kronecker factors of what is not factored: one random cotangent in place of all rows.

Where several residuals read a row m of a layer, no g belongs to one of them. With random signs s_n

    g_m = sum_n s_n d r_n / d y_m,      E[g_m g_m^T] = sum_n (d r_n / d y_m) (d r_n / d y_m)^T,

so that one backward pass estimates B, and A is the mean of z z^T over all rows, as in K-FAC for any
other network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.jacobian.blocks import EntriesJacobian, LayerInputs, LayerJacobian
from kfac_pinn.jacobian.capture.readers import Product
from kfac_pinn.jacobian.layers import Layer, Leaf

__all__ = ["Sampler", "Signs", "factors_of_entries", "signs"]


def signs(like: Tensor, seed: int) -> Tensor:
    """Random signs of the shape of a vector."""
    # On the CPU: the same signs on every device
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randint(2, like.shape, generator=generator) - 1).to(like)


@dataclass(frozen=True)
class Signs:
    """Those of some rows of a term: the same numbers, however its rows are shared out.

    Attributes:
        seed: of all of them.
        total: how many rows the term has.
        start: the first of these.
    """

    seed: int
    total: int
    start: int = 0

    def __call__(self, like: Tensor) -> Tensor:
        """As many as a vector has entries."""
        rows = slice(self.start, self.start + len(like))
        return signs(like.new_empty(self.total), self.seed)[rows]


class Sampler:
    """Factors of the layers of one residual whose rows it shares with others.

    Args:
        output: r, shape (N,), with its graph.
        products: of every layer, in the order of its positions.
        biased: the products to which the layer's bias is added.
    """

    def __init__(
        self,
        output: Tensor,
        products: Mapping[Layer, Sequence[Product]],
        biased: set[Product],
    ) -> None:
        self.output, self.products, self.biased = output, products, biased
        self.known: tuple[Signs, dict[Product, Tensor]] | None = None

    def __call__(self, layer: Layer, signs: Signs) -> LayerJacobian | None:
        """Rows (z, g) as those of one point each; None if the layer is another's."""
        if layer not in self.products:
            return None
        gradients = self._gradients(signs)
        z, g, unit = [], [], []
        for product in self.products[layer]:
            inside, outside = product.z.to(self.output), gradients[product]
            if product.transposed != layer.transposed:
                inside, outside = outside, inside
            z.append(inside)
            g.append(outside)
            unit.append(inside.new_full((len(inside),), float(product in self.biased)))
        # B is a mean over residuals, and the signs stand for their sum
        rows = torch.cat(g) / len(self.output) ** 0.5
        return LayerJacobian(
            layer, LayerInputs(torch.cat(z)[:, None], torch.cat(unit)), rows[:, None]
        )

    def _gradients(self, signs: Signs) -> dict[Product, Tensor]:
        # One backward pass serves all layers of a step
        if self.known is None or self.known[0] != signs:
            products = [p for each in self.products.values() for p in each]
            found = torch.autograd.grad(
                self.output,
                [GradientEdge(p.node, 0) for p in products],
                signs(self.output),
                retain_graph=True,
            )
            pairs = zip(products, found, strict=True)
            self.known = signs, {p: p.rows(g).to(self.output) for p, g in pairs}
        return self.known[1]


def factors_of_entries(jacobian: EntriesJacobian) -> LayerJacobian | None:
    """z and g of a penalty on a layer's parameters, sqrt(w) theta: A = I, B = w / N I.

    Its block of J^T J is a multiple of the identity on the penalised columns.
    """
    layer = jacobian.block
    if isinstance(layer, Leaf):
        return None
    like, width = jacobian.values, sum(p.numel() for p in layer.parameters) // layer.outputs
    bias = layer.bias is not None
    inputs = width - int(bias)
    within = jacobian.within(jacobian.columns)
    weight_is_penalised = bool((within < inputs * layer.outputs).any())
    bias_is_penalised = bias and bool((within >= inputs * layer.outputs).any())
    # One point a column: their second moments add up to A = I
    z = torch.eye(inputs + 1, dtype=like.dtype, device=like.device)
    z[:-1] *= float(weight_is_penalised)
    unit = z[:, -1] * float(bias_is_penalised)
    root = len(z) ** 0.5
    # Penalties of different weights in one layer have no product A (x) B: their mean stands in
    size = (like.square().mean() / jacobian.points).sqrt()
    g = size * torch.eye(layer.outputs, dtype=like.dtype, device=like.device)
    return LayerJacobian(layer, LayerInputs(root * z[:, None, :-1], root * unit), g[:, None])
