"""From captured calls to Jacobians: one backward pass a residual, sorted by layer and by leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from kfac_pinn.jacobian.blocks import BlockJacobian, LayerInputs, LayerJacobian, LeafJacobian
from kfac_pinn.jacobian.capture import Capture, LayerCall
from kfac_pinn.jacobian.dense_rows import BroadcastJacobian, MixedError, chain, leaf_rows
from kfac_pinn.jacobian.layers import Block, Layer, Leaf
from kfac_pinn.jacobian.partition import NOWHERE, Partition
from kfac_pinn.jacobian.term_jacobian import TermJacobian
from kfac_pinn.linalg import real

__all__ = ["LARGEST_LEAF", "Assembly"]

# Larger tensors keep no dense block (`LARGEST_GRAMIAN`), for which alone their rows are worth a
# backward pass each; products by autograd cost one.
LARGEST_LEAF = 4096


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
        for call in seen.reached:
            if id(call.weight) in self.layers:
                grouped.setdefault(self.layers[id(call.weight)], []).append(call)
        return {layer: self._layer_jacobian(layer, calls, seen) for layer, calls in grouped.items()}

    def _layer_jacobian(
        self, layer: Layer, calls: list[LayerCall], seen: Backward
    ) -> LayerJacobian:
        """Several calls of one weight are further shared positions; residuals share the inputs."""
        # Terms of one pass have the same inputs, and then share what is computed from them
        key = (seen.points, *map(id, calls))
        # One call that is not told apart spoils the layer, and so the residual
        if any(call not in seen.g for call in calls):
            raise MixedError
        if key not in self.inputs:
            self.inputs[key] = join_inputs([inputs_of(call, layer, seen.points) for call in calls])
        return LayerJacobian(layer, self.inputs[key], joined([seen.g[call] for call in calls]))

    def _leaf_jacobians(self, seen: Backward) -> dict[Block, BlockJacobian]:
        leaves = [leaf for leaf in self.leaves if self._fits(leaf, seen.output)]
        if not leaves:
            return {}
        found = leaf_rows(seen.output, [leaf.parameter for leaf in leaves], seen.broadcasts)
        pairs = zip(leaves, found, strict=True)
        return {leaf: LeafJacobian(leaf, rows) for leaf, rows in pairs if rows is not None}

    def _fits(self, leaf: Leaf, output: Tensor) -> bool:
        """Whether a leaf is small enough, and real; else it may not reach the residual at all."""
        if leaf.size <= LARGEST_LEAF and not leaf.parameter.is_complex():
            return True
        # A leaf that the residual does not read costs nothing
        if backward(output, [leaf.parameter])[0] is None:
            return False
        raise MixedError


class Backward:
    """One residual's gradients at all captured places, sorted by points.

    Attributes:
        output, points: the residual and its length N.
        reached: the calls that it depends on.
        g: d r_n / d y_ns, shape (S, N, d_out), of those calls whose points can be told apart.
        broadcasts: d r_n / d t of tensors t that all points read, layers' own parameters excepted.
    """

    def __init__(self, output: Tensor, capture: Capture, layers: Mapping[int, Layer]) -> None:
        self.output, self.points = output, len(output)
        calls, copied = capture.calls, capture.broadcasts
        # One backward pass of the sum: as no point reads another's row, its rows are all of J
        gradients = backward(
            output, [call.output for call in calls] + [each.copies for each in copied]
        )
        pairs = zip(calls, gradients[: len(calls)], strict=True)
        by_call = {call: gradient for call, gradient in pairs if gradient is not None}
        self.reached = list(by_call)
        self.g = {
            call: by_point(call.positions(gradient), self.points)
            for call, gradient in by_call.items()
            # One residual sums over its points, N have a row each; anything else mixes them
            if self.points in (1, call.inputs.shape[1])
        }
        self.broadcasts = [
            BroadcastJacobian(each.tensor, flat_rows(gradient, self.points).__getitem__)
            for each, gradient in zip(copied, gradients[len(calls) :], strict=True)
            if gradient is not None
            and self.points in (1, len(gradient))
            and not mixes_points(each.tensor, calls)
        ]
        self.broadcasts += [b for call in self.g for b in self._computed(call, layers)]
        self._separate_single_points()

    def _computed(self, call: LayerCall, layers: Mapping[int, Layer]) -> list[BroadcastJacobian]:
        """The weight and the bias of a call where they are not a layer's own."""
        own = layers.get(id(call.weight), Layer(None, None, NOWHERE, NOWHERE))
        parts = [
            Layer(call.weight if own.weight is None else None, None, NOWHERE, NOWHERE),
            Layer(None, call.bias if own.bias is None else None, NOWHERE, NOWHERE),
        ]
        return [
            BroadcastJacobian(
                p, LayerJacobian(part, inputs_of(call, part, self.points), self.g[call]).rows
            )
            for part in parts
            for p in part.parameters
            if p.requires_grad
        ]

    def _separate_single_points(self) -> None:
        """Calls at one point that all N points read: the chain rule through what they read."""
        # A hypernetwork at one input, say, whose output is the weight at all points
        calls = [call for call in self.reached if call not in self.g and call.inputs.shape[1] == 1]
        found = chain(self.broadcasts, [call.output for call in calls], self.points)
        for call, gradients in zip(calls, found, strict=True):
            if gradients is not None:
                self.g[call] = torch.vmap(call.positions)(gradients)[:, :, 0].transpose(0, 1)


def backward(
    output: Tensor, places: Sequence[Tensor] | Sequence[GradientEdge]
) -> Sequence[Tensor | None]:
    """d (sum of all entries) / d place, None where there is no path; the graph is kept."""
    if not places:
        return []
    return torch.autograd.grad(real(output).sum(), places, retain_graph=True, allow_unused=True)


def mixes_points(tensor: Tensor, calls: Sequence[LayerCall]) -> bool:
    """Whether a tensor that all points read, a mean of outputs say, was computed from many."""
    many = [call.output for call in calls if call.inputs.shape[1] > 1]
    return not tensor.is_leaf and any(g is not None for g in backward(tensor, many))


def inputs_of(call: LayerCall, layer: Layer, points: int) -> LayerInputs:
    """z and e of one call; e vanishes if it leaves out the layer's bias."""
    unit = call.unit if call.bias is layer.bias else torch.zeros_like(call.unit)
    if points == 1:
        return LayerInputs(by_point(call.inputs, 1), unit.repeat_interleave(call.inputs.shape[1]))
    # A view: one row that all points read is not copied for each
    return LayerInputs(call.inputs.expand(-1, points, -1), unit)


def join_inputs(parts: list[LayerInputs]) -> LayerInputs:
    """Several calls of one weight."""
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
