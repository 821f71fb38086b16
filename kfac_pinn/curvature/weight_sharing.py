"""How the shared positions of a layer enter its Kronecker factors: expand or reduce."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from kfac_pinn.jacobian.blocks import LayerInputs, second_moment

__all__ = ["Expand", "Reduce", "Sharing"]


class Sharing(Protocol):
    """How the shared positions s of a layer enter the two factors."""

    def inputs(self, inputs: LayerInputs) -> Tensor:
        """A, shape (d_in + 1, d_in + 1)."""

    def gradients(self, g: Tensor) -> Tensor:
        """B, shape (d_out, d_out), of g (S, N, d_out)."""


@dataclass(frozen=True)
class Expand:
    """Each position counts as a point: A = 1/(NS) sum_ns z z^T, B = 1/N sum_ns g g^T, eq. (13)."""

    def inputs(self, inputs: LayerInputs) -> Tensor:
        return inputs.second_moment() / (inputs.z.shape[0] * inputs.z.shape[1])

    def gradients(self, g: Tensor) -> Tensor:
        return second_moment(g) / g.shape[1]


@dataclass(frozen=True)
class Reduce:
    """Positions are summed first: A = 1/N sum_n zbar zbar^T, B = 1/N sum_n gbar gbar^T, eq. (14).

    zbar_n = 1/S sum_s [z_ns; e_s] and gbar_n = sum_s g_ns.
    """

    def inputs(self, inputs: LayerInputs) -> Tensor:
        # e is averaged with z: a bias that acts on the value alone acts on 1 / S of the positions
        mean = LayerInputs(inputs.z.mean(0, keepdim=True), inputs.unit.mean(0, keepdim=True))
        return mean.second_moment() / inputs.z.shape[1]

    def gradients(self, g: Tensor) -> Tensor:
        return second_moment(g.sum(0, keepdim=True)) / g.shape[1]
