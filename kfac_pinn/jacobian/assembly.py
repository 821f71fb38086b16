"""From captured uses to Jacobians: one backward pass a residual, sorted by layer and by leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.jacobian.blocks import BlockJacobian, LayerInputs, LayerJacobian, LeafJacobian
from kfac_pinn.jacobian.capture import Capture, LayerCall
from kfac_pinn.jacobian.dense_rows import BroadcastJacobian, chain, leaf_rows
from kfac_pinn.jacobian.layers import Block, Layer, Leaf
from kfac_pinn.jacobian.partition import NOWHERE, Partition
from kfac_pinn.jacobian.term_jacobian import TermJacobian

__all__ = ["LARGEST_LEAF", "Assembly", "MixedError"]

# Larger tensors keep no dense block (`LARGEST_GRAMIAN`), for which alone their rows are worth a
# backward pass each; products by autograd cost one.
LARGEST_LEAF = 4096


class MixedError(Exception):
    """The captured calls do not tell the rows of a residual apart."""


class Assembly:
    """Which layers and leaves a closure used, and their Jacobians for each of its residuals.

    Args:
        partition: of the parameters.
        capture: what was seen while the closure ran.
    """

    def __init__(self, partition: Partition, capture: Capture) -> None:
        self.capture = capture
        self.layers, self.leaves = partition.layers, list(partition.leaves.values())
        self.inputs: dict[tuple[int, ...], LayerInputs] = {}

    def term(self, name: str, output: Tensor, value: Tensor) -> TermJacobian:
        """The Jacobian of one residual: `output` (N,) with its graph, `value` its numbers.

        Raises:
            MixedError: if it depends on no captured call, or one whose rows are not told apart.
        """
        seen = Backward(output, self.capture, self.layers)
        blocks = {**self._layer_jacobians(seen), **self._leaf_jacobians(seen)}
        if not blocks:
            raise MixedError
        return TermJacobian(name, value, blocks)

    def _layer_jacobians(self, seen: Backward) -> dict[Block, BlockJacobian]:
        grouped: dict[Layer, list[LayerCall]] = {}
        for use in seen.reached:
            if id(use.weight) in self.layers:
                grouped.setdefault(self.layers[id(use.weight)], []).append(use)
        return {layer: self._layer_jacobian(layer, uses, seen) for layer, uses in grouped.items()}

    def _layer_jacobian(self, layer: Layer, uses: list[LayerCall], seen: Backward) -> LayerJacobian:
        """Several uses of one weight are further shared positions; residuals share the inputs."""
        # Terms of one pass have the same inputs, and then share what is computed from them
        key = (seen.points, *map(id, uses))
        # One use that is not told apart spoils the layer, and so the residual
        if any(use not in seen.g for use in uses):
            raise MixedError
        if key not in self.inputs:
            self.inputs[key] = join_inputs([inputs_of(u, layer, seen.points) for u in uses])
        return LayerJacobian(layer, self.inputs[key], joined([seen.g[use] for use in uses]))

    def _leaf_jacobians(self, seen: Backward) -> dict[Block, BlockJacobian]:
        leaves = [leaf for leaf in self.leaves if self._fits(leaf, seen.output)]
        if not leaves:
            return {}
        found = leaf_rows(seen.output, [leaf.parameter for leaf in leaves], seen.shares)
        pairs = zip(leaves, found, strict=True)
        return {leaf: LeafJacobian(leaf, rows) for leaf, rows in pairs if rows is not None}

    def _fits(self, leaf: Leaf, output: Tensor) -> bool:
        """Whether a leaf is small enough; one that is not may not reach the residual at all."""
        if leaf.size <= LARGEST_LEAF:
            return True
        # A large leaf that the residual does not read costs nothing
        if backward(output, [leaf.parameter])[0] is None:
            return False
        raise MixedError


class Backward:
    """One residual's gradients at all captured places, sorted by points.

    Attributes:
        output, points: the residual and its length N.
        reached: the uses that it depends on.
        g: d r_n / d y_ns, shape (S, N, d_out), of those uses whose points can be told apart.
        shares: d r_n / d t of the tensors t that all points read, layers' own parameters excepted.
    """

    def __init__(self, output: Tensor, capture: Capture, layers: Mapping[int, Layer]) -> None:
        self.output, self.points = output, len(output)
        uses, broadcasts = capture.uses, capture.broadcasts
        # One backward pass of the sum: as no point reads another's row, its rows are all of J
        gradients = backward(output, [u.output for u in uses] + [b.copies for b in broadcasts])
        pairs = zip(uses, gradients[: len(uses)], strict=True)
        by_use = {use: gradient for use, gradient in pairs if gradient is not None}
        self.reached = list(by_use)
        self.g = {
            use: by_point(use.positions(gradient), self.points)
            for use, gradient in by_use.items()
            # One residual sums over its points, N have a row each; anything else mixes them
            if self.points in (1, use.inputs.shape[1])
        }
        self.shares = [
            BroadcastJacobian(each.tensor, flat_rows(gradient, self.points).__getitem__)
            for each, gradient in zip(broadcasts, gradients[len(uses) :], strict=True)
            if gradient is not None
            and self.points in (1, len(gradient))
            and not mixes_points(each.tensor, uses)
        ]
        self.shares += [s for use in self.g for s in self._computed(use, layers)]
        self._separate_single_points()

    def _computed(self, use: LayerCall, layers: Mapping[int, Layer]) -> list[BroadcastJacobian]:
        """The weight and the bias of a use where they are not a layer's own."""
        own = layers.get(id(use.weight), Layer(None, None, NOWHERE, NOWHERE))
        parts = [
            Layer(use.weight if own.weight is None else None, None, NOWHERE, NOWHERE),
            Layer(None, use.bias if own.bias is None else None, NOWHERE, NOWHERE),
        ]
        return [
            BroadcastJacobian(
                p, LayerJacobian(part, inputs_of(use, part, self.points), self.g[use]).rows
            )
            for part in parts
            for p in part.parameters
            if p.requires_grad
        ]

    def _separate_single_points(self) -> None:
        """Uses at one point that all N points read: the chain rule through what they read."""
        # A hypernetwork at one input, say, whose output is the weight at all points
        uses = [use for use in self.reached if use not in self.g and use.inputs.shape[1] == 1]
        found = chain(self.shares, [use.output for use in uses], self.points)
        for use, gradients in zip(uses, found, strict=True):
            if gradients is not None:
                self.g[use] = torch.vmap(use.positions)(gradients)[:, :, 0].transpose(0, 1)


def backward(
    output: Tensor, places: Sequence[Tensor] | Sequence[GradientEdge]
) -> Sequence[Tensor | None]:
    """d (sum of all entries) / d place, None where there is no path; the graph is kept."""
    if not places:
        return []
    return torch.autograd.grad(output.sum(), places, retain_graph=True, allow_unused=True)


def mixes_points(tensor: Tensor, uses: Sequence[LayerCall]) -> bool:
    """Whether a tensor that all points read, a mean of outputs say, was computed from many."""
    many = [use.output for use in uses if use.inputs.shape[1] > 1]
    return not tensor.is_leaf and any(g is not None for g in backward(tensor, many))


def inputs_of(use: LayerCall, layer: Layer, points: int) -> LayerInputs:
    """z and e of one use; e vanishes if it leaves out the layer's bias."""
    unit = use.unit if use.bias is layer.bias else torch.zeros_like(use.unit)
    if points == 1:
        return LayerInputs(by_point(use.inputs, 1), unit.repeat_interleave(use.inputs.shape[1]))
    # A view: one row that all points read is not copied for each
    return LayerInputs(use.inputs.expand(-1, points, -1), unit)


def join_inputs(parts: list[LayerInputs]) -> LayerInputs:
    """Several uses of one weight."""
    return LayerInputs(joined([part.z for part in parts]), joined([part.unit for part in parts]))


def joined(parts: list[Tensor]) -> Tensor:
    """torch.cat, without a copy of a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def by_point(positions: Tensor, points: int) -> Tensor:
    """(S, M, d) as it is, or (S M, 1, d) where one residual sums over all M points."""
    return positions.reshape(-1, 1, positions.shape[2]) if points == 1 else positions


def flat_rows(gradient: Tensor, points: int) -> Tensor:
    """The rows (N, numel t) of a tensor t from the gradient at its copies, a sum where N = 1."""
    return gradient.reshape(points, -1) if points > 1 else gradient.sum(0).reshape(1, -1)
