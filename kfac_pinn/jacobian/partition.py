"""The parameters as blocks: layers, and all other tensors each on its own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from kfac_pinn.jacobian.layers import Layer, Leaf
from kfac_pinn.linalg import dimension

__all__ = ["NOWHERE", "Pair", "Partition"]

NOWHERE = slice(0, 0)  # the place of a tensor that is not trained


@dataclass(frozen=True, eq=False)
class Pair:
    """A weight and the bias that was added to its product, either of them trained or not.

    Attributes:
        weight, bias: the tensors.
        transposed: whether the weight is stored as (d_in, d_out).
    """

    weight: Tensor
    bias: Tensor | None
    transposed: bool = False


class Partition:
    """Blocks of the parameters.

    Args:
        names: of the parameters, which are in the order of the flat vector.
        pairs: how they were used, in order.
        alone: ids of biases that are read elsewhere too, and so cannot belong to a layer.
    """

    def __init__(
        self, names: Mapping[Tensor, str], pairs: Iterable[Pair], alone: Iterable[int] = ()
    ) -> None:
        ends = itertools.accumulate(map(dimension, names), initial=0)
        places = [slice(*pair) for pair in itertools.pairwise(ends)]
        self.names = names
        self.places = dict(zip(map(id, names), places, strict=True))
        # A complex matrix acts as a real one of twice the width with shared entries: no factors
        layers = [pair for pair in pairs if not pair.weight.is_complex()]
        self.layers = self._layers(layers, frozenset(alone))
        layered = {id(p) for layer in self.layers.values() for p in layer.parameters}
        self.leaves = {id(p): Leaf(p, self.places[id(p)]) for p in names if id(p) not in layered}

    def block(self, parameter: int) -> Layer | Leaf:
        """The block that a parameter belongs to."""
        if parameter in self.leaves:
            return self.leaves[parameter]
        return next(
            layer
            for layer in self.layers.values()
            if any(id(p) == parameter for p in layer.parameters)
        )

    def _layers(self, pairs: list[Pair], alone: frozenset[int]) -> dict[int, Layer]:
        """One a weight, by its id. A bias that has other partners too is a leaf."""
        # Read in all pairs first: a bias is a layer's only if no other product has it
        found = {
            (id(p.weight), id(p.bias)): p.bias
            for p in pairs
            if p.bias is not None and id(p.bias) in self.places and id(p.bias) not in alone
        }
        partners = Counter(itertools.chain.from_iterable(found))
        biases = {w: bias for (w, b), bias in found.items() if partners[w] == partners[b] == 1}
        # The forward pass's pair, which comes first, says how the weight is stored
        first = {id(p.weight): p for p in reversed(pairs)}
        weights = {i: p.weight for i, p in first.items() if i in self.places}
        ids = dict.fromkeys(id(p.weight) for p in pairs)
        return {
            i: self._layer(weights.get(i), biases.get(i), first[i].transposed)
            for i in ids
            if i in weights or i in biases
        }

    def _layer(self, weight: Tensor | None, bias: Tensor | None, transposed: bool) -> Layer:
        first, second = (self.places.get(id(p), NOWHERE) for p in (weight, bias))
        return Layer(weight, bias, first, second, transposed and weight is not None)
