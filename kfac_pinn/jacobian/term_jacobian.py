"""One residual term, linearised: layers in factors, other blocks by rows or by products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, starmap

import torch
from torch import Tensor

from kfac_pinn.jacobian.blocks import BlockJacobian, EntriesJacobian, LayerJacobian
from kfac_pinn.jacobian.layers import Block, Layer
from kfac_pinn.jacobian.matrix_free import AutogradJacobian
from kfac_pinn.jacobian.sampled import Sampler, Signs, factors_of_entries
from kfac_pinn.linalg import CountSketch, batches_of_rows, real

__all__ = ["TermJacobian"]


@dataclass(frozen=True)
class TermJacobian:
    """One residual term, linearised: N rows of J, unscaled.

    Attributes:
        name: of the term.
        residual: r_k, shape (N,).
        blocks: the Jacobian with respect to each block whose rows are known, layers in factors.
        rest: that of all other blocks that it depends on, by products; None if there are none.
        sampler: Kronecker factors of layers among the rest.
        points: N of all processes, whose mean the loss is; None: those of its own.
    """

    name: str
    residual: Tensor
    blocks: dict[Block, BlockJacobian]
    rest: AutogradJacobian | None = None
    sampler: Sampler | None = None
    points: int | None = None

    @property
    def scale(self) -> float:
        """1 / sqrt(N), by which residual and rows enter the stacked ones."""
        return 1 / math.sqrt(self.points or len(self.residual))

    @property
    def share(self) -> float:
        """Of all points of the term, those of this process."""
        return len(self.residual) / (self.points or len(self.residual))

    @property
    def depends_on(self) -> list[Block]:
        """All blocks whose columns are not zero."""
        return [*self.blocks, *(self.rest.blocks if self.rest is not None else [])]

    def jvp(self, v: Tensor) -> Tensor:
        """J v scaled, shape (N,) or (N, m)."""
        product = v.new_zeros(len(self.residual), *v.shape[1:])
        for block in self._parts:
            product += block.jvp(v)
        return self.scale * product

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += J^T u, J scaled."""
        for block in self._parts:
            block.add_vjp(self.scale * u, out)

    def arrange(self) -> None:
        """Before many products: the factors of layers with the points last in memory."""
        for block in self.blocks.values():
            if isinstance(block, LayerJacobian):
                block.arrange()

    def write_rows(self, points: slice, out: Tensor) -> None:
        """Write the scaled rows of some points into zeros (n, P)."""
        for columns, rows in self._columns(points):
            # Scaled on the way into place: a pass over the rows less
            torch.mul(rows, self.scale, out=out[:, columns])

    def write_sketch(self, sketch: CountSketch, out: Tensor) -> None:
        """Write S J, scaled, into zeros (m, P), for a sketch of its N rows."""
        sums: list[tuple[Sequence[slice], Tensor]] = [
            (block.slices, jacobian.sketched(sketch)) for block, jacobian in self.blocks.items()
        ]
        if self.rest is not None:
            batches = batches_of_rows(len(self.residual), out.shape[1])
            # A generator: one batch of rows in memory at a time
            sums.append((self.rest.places, sketch.of(map(self.rest.rows, batches))))
        for columns, rows in chain.from_iterable(starmap(apart, sums)):
            torch.mul(rows, self.scale, out=out[:, columns])

    def block_rows(self, points: slice, block: Block) -> Tensor:
        """The scaled rows of some points, one block's columns."""
        if block in self.blocks:
            return self.scale * self.blocks[block].rows(points)
        if self.rest is not None and block in self.rest.blocks:
            return self.scale * self.rest.rows(points, block)
        return self.residual.new_zeros(len(self.residual[points]), block.size)

    def factors(self, block: Block, signs: Signs) -> tuple[LayerJacobian, bool] | None:
        """z and g for the Kronecker factors of a layer, and whether g is that of each point.

        Where it is not, g is a sample with random signs, of unit variance.
        """
        found = self.blocks.get(block)
        if isinstance(found, LayerJacobian):
            return found, True
        if isinstance(found, EntriesJacobian):
            found = factors_of_entries(found)
        elif self.sampler is not None and isinstance(block, Layer):
            found = self.sampler(block, signs)
        return (found, False) if isinstance(found, LayerJacobian) else None

    def restrict(self, block: Block) -> TermJacobian:
        """The same with all columns zero but those of one block."""
        blocks = {b: j for b, j in self.blocks.items() if b is block}
        mine = self.rest is not None and block in self.rest.blocks
        rest = AutogradJacobian(self.rest.output, [block]) if self.rest and mine else None
        return TermJacobian(self.name, self.residual, blocks, rest, points=self.points)

    def outline(self) -> TermJacobian:
        """The same without its points: which blocks it has, in which way, and none of its rows."""
        blocks: dict[Block, BlockJacobian] = {block: NoPoints(block) for block in self.blocks}
        rest = self.rest and AutogradJacobian(self.residual.new_zeros(0), self.rest.blocks)
        return TermJacobian(self.name, self.residual[:0].clone(), blocks, rest, points=self.points)

    @property
    def _parts(self) -> list[BlockJacobian | AutogradJacobian]:
        rest = [] if self.rest is None else [self.rest]
        return [*self.blocks.values(), *rest]

    def _columns(self, points: slice) -> Iterator[tuple[slice, Tensor]]:
        for block, jacobian in self.blocks.items():
            # Weight and bias apart: joining them would copy the rows of the weight
            if isinstance(jacobian, LayerJacobian):
                yield from zip(block.slices, jacobian.parts(points), strict=True)
            else:
                yield from apart(block.slices, jacobian.rows(points))
        if self.rest is not None:
            yield from apart(self.rest.places, self.rest.rows(points))


def apart(places: Sequence[slice], rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of several tensors, one after the other."""
    widths = [place.stop - place.start for place in places]
    return zip(places, rows.split(widths, dim=1), strict=True)


class NoPoints:
    """J (0, size) of a block: no rows."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (0,), or (0, m) for v (P, m)."""
        return v.new_zeros(0, *v.shape[1:])

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += 0."""

    def rows(self, points: slice = slice(None)) -> Tensor:
        """The rows (0, size)."""
        return real(self.block.parameters[0].detach()).new_zeros(0, self.block.size)

    def sketched(self, sketch: CountSketch) -> Tensor:
        """S J = 0, shape (m, size)."""
        return self.rows().new_zeros(sketch.size, self.block.size)
