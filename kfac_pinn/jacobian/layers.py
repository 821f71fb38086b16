"""Which parameters act together: a layer's weight and bias, or one other trained tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn.linalg import dimension

__all__ = ["Block", "Layer", "Leaf"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and bias that act together; `columns` of [W | b] in the flat parameter vector.

    Attributes:
        weight, bias: the tracked tensors, None where frozen or absent.
        weight_slice, bias_slice: their places in the flat vector of length P.
        transposed: whether the weight is stored as (d_in, d_out), as in x @ W + b.
    """

    weight: Tensor | None
    bias: Tensor | None
    weight_slice: slice
    bias_slice: slice
    transposed: bool = False

    @property
    def parameters(self) -> list[Tensor]:
        """The tracked tensors of this block."""
        return [p for p in (self.weight, self.bias) if p is not None]

    @property
    def slices(self) -> list[slice]:
        """Where the block stands in the flat vector."""
        pairs = ((self.weight, self.weight_slice), (self.bias, self.bias_slice))
        return [place for p, place in pairs if p is not None]

    @property
    def size(self) -> int:
        """The number of parameters of the block."""
        return sum(p.numel() for p in self.parameters)

    @property
    def columns(self) -> slice:
        """The trained columns of [W | b]."""
        # The factors know a column for the bias even where nothing trains it
        first = 0 if self.weight is not None else -1
        return slice(first, None if self.bias is not None else -1)

    @property
    def outputs(self) -> int:
        """d_out."""
        p = self.parameters[0]
        return p.shape[1] if p is self.weight and self.transposed else len(p)

    def stored(self, flat: Tensor) -> Tensor:
        """A weight's flat numbers as a view (d_out, d_in)."""
        # A view either way: what is written into it stands in the flat vector
        if self.transposed:
            return flat.view(-1, self.outputs).mT
        return flat.view(self.outputs, -1)

    def matrix(self, v: Tensor) -> Tensor:
        """[W | b] (d_out, d_in + 1) of a flat vector (P,)."""
        parts = [self.stored(v[self.weight_slice])] if self.weight is not None else []
        parts += [v[self.bias_slice][:, None]] if self.bias is not None else []
        return torch.cat(parts, dim=1)

    def write(self, matrix: Tensor, out: Tensor) -> None:
        """The reverse of `matrix`, into the flat vector `out`."""
        if self.weight is not None:
            width = self.weight.numel() // self.outputs
            self.stored(out[self.weight_slice]).copy_(matrix[:, :width])
        if self.bias is not None:
            out[self.bias_slice] = matrix[:, -1]


@dataclass(frozen=True, eq=False)
class Leaf:
    """Any other trained tensor: a PDE coefficient, a slope, a norm's scale. Treated exactly."""

    parameter: Tensor
    place: slice

    @property
    def parameters(self) -> list[Tensor]:
        """The one tensor."""
        return [self.parameter]

    @property
    def slices(self) -> list[slice]:
        """Where the block stands in the flat vector."""
        return [self.place]

    @property
    def size(self) -> int:
        """The number of parameters of the block, two an entry if it is complex."""
        return dimension(self.parameter)


Block: TypeAlias = Layer | Leaf
