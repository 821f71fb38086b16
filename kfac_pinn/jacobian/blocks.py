"""The Jacobian of one residual with respect to one layer, kept in factored form.

Shapes: N points, S shared positions, d_in inputs and d_out outputs of the layer. A layer
y_ns = W z_ns + e_s b has the Jacobian rows (docs/mathematics.md, "Weight sharing")

    J_n = sum_s g_ns [z_ns; e_s]^T        (d_out, d_in + 1),   g_ns = d r_n / d y_ns.

Loops over s keep the temporaries in the cache: they are small, and reused.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from kfac_pinn.jacobian.layers import Layer, Leaf
from kfac_pinn.linalg import CountSketch, sum_of_squares

__all__ = [
    "BlockJacobian",
    "EntriesJacobian",
    "LayerInputs",
    "LayerJacobian",
    "LeafJacobian",
    "ManyPositions",
]


class BlockJacobian(Protocol):
    """What every block offers: J v, J^T u and the rows of J, for N points."""

    def jvp(self, v: Tensor) -> Tensor:
        """J v (N,) for a flat vector v (P,)."""

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += J^T u for u (N,), out (P,)."""

    def rows(self, points: slice = slice(None)) -> Tensor:
        """The rows (N, size), columns in the order of the block's `slices`."""

    def sketched(self, sketch: CountSketch) -> Tensor:
        """S J, shape (m, size)."""


def points_last(positions: Tensor) -> Tensor:
    """The same z (S, N, d) with the points last in memory: of a copy, unless they are already.

    Products d x N times N x d', of which J v and J^T u consist, run a third faster with the long
    sides in the direction of memory.
    """
    return positions.transpose(1, 2).contiguous().transpose(1, 2)


def empty_as(z: Tensor, columns: int) -> Tensor:
    """Memory for (N, columns) numbers in the order of z (N, d), points first or last."""
    if z.stride(0) == 1:
        return z.new_empty(columns, len(z)).T
    return z.new_empty(len(z), columns)


def second_moment(positions: Tensor) -> Tensor:
    """sum_ns z_ns z_ns^T, shape (d, d), for z (S, N, d)."""
    return sum_of_squares(positions)


def weighted_sum(weights: Tensor, positions: Tensor) -> Tensor:
    """sum_s w_s z_s, shape (N, d); most weights are zero."""
    total = torch.zeros_like(positions[0])
    for weight, position in zip(weights.tolist(), positions, strict=True):
        # Derivatives do not see the bias: e is zero on most positions
        if weight:
            total.add_(position, alpha=weight)
    return total


class LayerInputs:
    """z (S, N, d_in) and e (S,): the inputs of a layer, shared by all residuals of one pass."""

    def __init__(self, z: Tensor, unit: Tensor) -> None:
        self.z, self.unit = z, unit

    def second_moment(self) -> Tensor:
        """sum_ns [z; e][z; e]^T, shape (d_in + 1, d_in + 1)."""
        z, e = self.z, self.unit
        moment = z.new_zeros(z.shape[2] + 1, z.shape[2] + 1)
        moment[:-1, :-1] = second_moment(z)
        # The column of e by sums: appending it to z would copy all inputs
        moment[-1, :-1] = moment[:-1, -1] = weighted_sum(e, z).sum(0)
        moment[-1, -1] = (e @ e) * z.shape[1]
        return moment

    @cached_property
    def extended(self) -> Tensor:
        """[z; e], shape (S, N, d_in + 1)."""
        column = self.unit[:, None, None].expand(-1, self.z.shape[1], 1)
        return torch.cat([self.z, column], dim=2)


class LayerJacobian:
    """J_n = sum_s g_ns [z_ns; e_s]^T for the N points of one residual.

    Args:
        layer: which parameters.
        inputs: z and e.
        g: d r_n / d y_ns, shape (S, N, d_out).
    """

    def __init__(self, layer: Layer, inputs: LayerInputs, g: Tensor) -> None:
        self.layer, self.inputs, self.g = layer, inputs, g

    def arrange(self) -> None:
        """Points last in memory: to be done before many products, which then are a third faster."""
        self.inputs.z, self.g = points_last(self.inputs.z), points_last(self.g)

    @cached_property
    def bias_gradient(self) -> Tensor:
        """d r_n / d b = sum_s e_s g_ns, shape (N, d_out)."""
        return weighted_sum(self.inputs.unit, self.g)

    def jvp(self, v: Tensor) -> Tensor:
        """(J v)_n = sum_s g_ns . (W z_ns + e_s b); several v (P, m) share the passes over z.

        Eq. (10) of docs/mathematics.md.
        """
        product = v.new_zeros(self.g.shape[1], *v.shape[1:])
        if self.layer.weight is not None:
            product += self._weight_times(v[self.layer.weight_slice])
        if self.layer.bias is not None:
            product += self.bias_gradient @ v[self.layer.bias_slice]
        return product

    def _weight_times(self, v: Tensor) -> Tensor:
        """sum_s g_ns . W z_ns: the wider side is multiplied by W, for a small buffer."""
        narrow, wide, swap = self._sides()
        shape = (self.g.shape[2], self.inputs.z.shape[2])
        if self.layer.transposed:
            matrices = v.view(*shape[::-1], *v.shape[1:]).transpose(0, 1)
        else:
            matrices = v.view(*shape, *v.shape[1:])
        matrices = matrices.movedim(int(not swap), 0).movedim(1, -1)  # (wide, m, narrow)
        matrix = matrices.flatten(1)
        # One buffer for all positions: page faults of fresh memory cost more than the arithmetic
        buffer = empty_as(wide[0], matrix.shape[1])
        products = buffer.view(-1, *matrices.shape[1:])
        total = torch.zeros_like(products)
        for a, b in zip(wide, narrow, strict=True):
            torch.mm(a, matrix, out=buffer)
            # Summed over the narrow side once, at the end, and not for every position
            total.addcmul_(products, b if v.ndim == 1 else b[:, None])
        return total.sum(-1)

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """J^T u = sum_ns u_n g_ns [z_ns; e_s]^T, added into the flat vector `out`, eq. (10)."""
        if self.layer.weight is not None:
            narrow, wide, swap = self._sides()
            target = self.layer.stored(out[self.layer.weight_slice])
            # u multiplies the narrower side, which is less of both arithmetic and memory
            target, buffer = target.T if swap else target, torch.empty_like(narrow[0])
            for a, b in zip(wide, narrow, strict=True):
                target.addmm_(torch.mul(b, u[:, None], out=buffer).T, a)
        if self.layer.bias is not None:
            out[self.layer.bias_slice] += u @ self.bias_gradient

    def _sides(self) -> tuple[Tensor, Tensor, bool]:
        """(g, z, False), or (z, g, True) where the layer has fewer inputs than outputs."""
        swap = self.inputs.z.shape[2] < self.g.shape[2]
        return (self.inputs.z, self.g, True) if swap else (self.g, self.inputs.z, False)

    def rows(self, points: slice = slice(None)) -> Tensor:
        """J_n with [W, b] flattened, shape (N, size), eq. (9)."""
        parts = self.parts(points)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def parts(self, points: slice = slice(None)) -> list[Tensor]:
        """The same, weight and bias apart."""
        parts = []
        if self.layer.weight is not None:
            g, z = self.g[:, points], self.inputs.z[:, points]
            g, z = (z, g) if self.layer.transposed else (g, z)
            # The sum over s is the inner dimension of the products, one a point
            parts.append(torch.bmm(g.permute(1, 2, 0), z.transpose(0, 1)).flatten(1))
        if self.layer.bias is not None:
            parts.append(self.bias_gradient[points])
        return parts

    def sketched(self, sketch: CountSketch) -> Tensor:
        """(S J)_b = sum_(n in b) +-J_n = sum_(n in b, s) +-g_ns [z_ns; e_s]^T, shape (m, size).

        As many operations as J itself, and m / N of its memory.
        """
        # J_n itself is never formed: the sum over a bucket's points joins the one over s
        return torch.cat([self._sums(*group[1:]) for group in sketch.groups()]) / sketch.scale

    def _sums(self, index: Tensor, sign: Tensor) -> Tensor:
        """sum_k sign_bk J_n, n = index_bk, shape (m, size), for index and sign (m, k)."""
        index, sign = index.to(self.g.device), sign.to(self.g)[:, :, None]
        parts = []
        if self.layer.weight is not None:
            g, z = self.g[:, index] * sign, self.inputs.z[:, index]  # (S, m, k, d)
            g, z = (z, g) if self.layer.transposed else (g, z)
            g, z = g.permute(1, 3, 0, 2).flatten(2), z.transpose(0, 1).flatten(1, 2)
            parts.append(torch.bmm(g, z).flatten(1))
        if self.layer.bias is not None:
            parts.append((self.bias_gradient[index] * sign).sum(1))
        return torch.cat(parts, dim=1)

    def kernel(self, other: LayerJacobian) -> Tensor:
        """J J'^T = sum_ss' (z_ns . z'_ms' + e_s e'_s') (g_ns . g'_ms'), shape (N, M), eq. (11)."""
        kernel = self.g.new_zeros(self.g.shape[1], other.g.shape[1])
        weight, bias = self.layer.weight is not None, self.layer.bias is not None
        if weight:
            for z, g in zip(self.inputs.z, self.g, strict=True):
                for z_other, g_other in zip(other.inputs.z, other.g, strict=True):
                    # Two thin products and one elementwise, in place of one with d_in d_out columns
                    kernel.addcmul_(z @ z_other.T, g @ g_other.T)
        if bias:
            kernel.addmm_(self.bias_gradient, other.bias_gradient.T)
        return kernel

    def kernel_cost(self, other: LayerJacobian) -> int:
        """Multiplications of `kernel`, to choose between it and `rows`."""
        positions = self.g.shape[0] * other.g.shape[0]
        # 4: the elementwise product, beside the two thin ones
        widths = self.inputs.z.shape[2] + self.g.shape[2] + 4
        return positions * widths * self.g.shape[1] * other.g.shape[1]


class ManyPositions(LayerJacobian):
    """The same where there are more positions than its rows have numbers: products by the rows."""

    @cached_property
    def dense(self) -> Tensor:
        """J, shape (N, size)."""
        return torch.cat(super().parts(), dim=1)

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (N,) or (N, m)."""
        return self.dense @ torch.cat([v[place] for place in self.layer.slices])

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += J^T u."""
        start, found = 0, u @ self.dense
        for place in self.layer.slices:
            width = place.stop - place.start
            out[place] += found[start : start + width]
            start += width

    def rows(self, points: slice = slice(None)) -> Tensor:
        """The rows (N, size)."""
        return self.dense[points]

    def sketched(self, sketch: CountSketch) -> Tensor:
        """S J, shape (m, size)."""
        return sketch(self.dense)

    def parts(self, points: slice = slice(None)) -> list[Tensor]:
        """The rows, weight and bias apart."""
        return list(self.dense[points].split([p.numel() for p in self.layer.parameters], dim=1))


class EntriesJacobian:
    """J with one entry a column at most: J[n_i, c_i] = j_i, for a few of a block's columns.

    A penalty on the weights themselves, and anything else that residuals read entry by entry.

    Args:
        block: whose columns they are.
        columns: c, places in the flat vector of length P, shape (I,).
        owners: n, shape (I,).
        values: j, shape (I,).
        points: N.
    """

    def __init__(
        self, block: Layer | Leaf, columns: Tensor, owners: Tensor, values: Tensor, points: int
    ) -> None:
        self.block, self.points = block, points
        self.columns, self.owners, self.values = columns, owners, values

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (N,), or (N, m) for v (P, m)."""
        j = self.values if v.ndim == 1 else self.values[:, None]
        return v.new_zeros(self.points, *v.shape[1:]).index_add_(
            0, self.owners, j * v[self.columns]
        )

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += J^T u."""
        out.index_add_(0, self.columns, self.values * u[self.owners])

    def rows(self, points: slice = slice(None)) -> Tensor:
        """The rows (N, size)."""
        start, stop, _ = points.indices(self.points)
        kept = (self.owners >= start) & (self.owners < stop)
        rows = self.values.new_zeros(stop - start, self.block.size)
        place = (self.owners[kept] - start, self.within(self.columns[kept]))
        # Accumulated: two uses of one entry are two triples with the same place
        return rows.index_put_(place, self.values[kept], accumulate=True)

    def sketched(self, sketch: CountSketch) -> Tensor:
        """S J, shape (m, size)."""
        found = self.values.new_zeros(sketch.size, self.block.size)
        columns = self.within(self.columns)
        for bucket, sign in zip(sketch.bucket.T, sketch.sign.T, strict=True):
            bucket, sign = bucket.to(self.owners.device), sign.to(self.values)
            place = bucket[self.owners], columns
            found.index_put_(place, sign[self.owners] * self.values, accumulate=True)
        return found / sketch.scale

    def within(self, columns: Tensor) -> Tensor:
        """Columns of the flat vector as columns of the block."""
        found, start = torch.zeros_like(columns), 0
        for place in self.block.slices:
            inside = (columns >= place.start) & (columns < place.stop)
            found = torch.where(inside, columns - place.start + start, found)
            start += place.stop - place.start
        return found


class LeafJacobian:
    """The dense rows d r_n / d p of any other trained tensor p.

    Args:
        leaf: which parameter.
        dense: shape (N, numel p).
    """

    def __init__(self, leaf: Leaf, dense: Tensor) -> None:
        self.leaf, self.dense = leaf, dense

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (N,)."""
        return self.dense @ v[self.leaf.place]

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += J^T u."""
        out[self.leaf.place] += u @ self.dense

    def rows(self, points: slice = slice(None)) -> Tensor:
        """The rows (N, numel p)."""
        return self.dense[points]

    def sketched(self, sketch: CountSketch) -> Tensor:
        """S J, shape (m, numel p)."""
        return sketch(self.dense)
