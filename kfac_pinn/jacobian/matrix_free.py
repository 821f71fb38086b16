"""The Jacobian of what cannot be factored: exact products by autograd, rows only when asked for.

Where residuals mix the points (a mean over them, BatchNorm, attention, a fixed matrix times the
values of the network) no row of the graph belongs to one residual. Then

    J^T u   is a backward pass with the weights u,
    J v     the derivative of v . J^T u in u (J^T u is linear in u): a backward pass of that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from kfac_pinn.jacobian.layers import Layer, Leaf
from kfac_pinn.linalg import dimension, real, rows_at_once
from kfac_pinn.linalg.memory import NUMBERS

__all__ = ["AutogradJacobian"]

# Rows of one backward pass: fewer spend their time on calls, more on memory that leaves the cache.
AT_ONCE = 32


class AutogradJacobian:
    """J (N, P) of one residual, for the columns of some blocks; zero elsewhere.

    The graph is kept, and with it the parameters of this moment: should they have been moved when
    a product is asked for, they are put back while it is computed.

    Args:
        output: r, shape (N,), with its graph.
        blocks: whose columns to compute.
    """

    def __init__(self, output: Tensor, blocks: Sequence[Layer | Leaf]) -> None:
        self.output, self.blocks = output, list(blocks)
        self.parameters = [p for block in blocks for p in block.parameters]
        self.places = [place for block in blocks for place in block.slices]
        self.origin = [p.detach().clone() for p in self.parameters]
        self._known: Tensor | None = None
        self._transposed: tuple[Tensor, list[Tensor | None]] | None = None
        self._twice: bool | None = None  # whether it can be differentiated twice, once known

    def jvp(self, v: Tensor) -> Tensor:
        """J v, shape (N,), or (N, m) for v (P, m)."""
        if v.ndim == 2:
            return torch.stack([self.jvp(column) for column in v.unbind(1)], dim=1)
        if self._known is not None:
            return self._known @ torch.cat([v[place] for place in self.places])
        # Tried once: whether a graph can be differentiated twice does not change
        product = self._derivative_of_vjp(v) if self._twice is not False else None
        if self._twice is None:
            self._twice = product is not None and self._is_adjoint(v, product)
        if self._twice and product is not None:
            return product
        # The way that is left: as many backward passes as residuals
        return self.all_rows() @ torch.cat([v[place] for place in self.places])

    def add_vjp(self, u: Tensor, out: Tensor) -> None:
        """out += J^T u."""
        if self._known is not None:
            found = (u @ self._known).split([dimension(p) for p in self.parameters])
        else:
            with self._at_origin():
                found = self._pull(u)
        for place, part in zip(self.places, found, strict=True):
            if part is not None:
                out[place] += real(part).reshape(-1)

    def rows(self, points: slice = slice(None), block: Layer | Leaf | None = None) -> Tensor:
        """The rows (N, sum of the blocks' sizes), or the columns of one block."""
        # Who asks for some rows will ask for all
        if self._known is None and self._numel <= NUMBERS:
            self.all_rows()
        rows = self._compute(points) if self._known is None else self._known[points]
        if block is None:
            return rows
        start = 0
        for each in self.blocks:
            if each is block:
                return rows[:, start : start + each.size]
            start += each.size
        return rows[:, :0]

    def all_rows(self) -> Tensor:
        """J of all N points, remembered."""
        if self._known is None:
            self._known = self._compute(slice(None))
        return self._known

    @property
    def _numel(self) -> int:
        return len(self.output) * sum(block.size for block in self.blocks)

    def _is_adjoint(self, v: Tensor, product: Tensor) -> bool:
        """Whether u . J v = v . J^T u: a function without a second derivative may say 0."""
        generator = torch.Generator().manual_seed(0)
        u = torch.rand(len(product), generator=generator).to(product)
        pulled = torch.zeros_like(v)
        self.add_vjp(u, pulled)
        size = float(u.norm() * product.norm() + pulled.norm() * v.norm())
        # two orders of the same sum agree to a few roundings, a missing second derivative by none
        error = abs(float(u @ product) - float(pulled @ v))
        return error <= torch.finfo(v.dtype).eps ** 0.5 * size

    def _derivative_of_vjp(self, v: Tensor) -> Tensor | None:
        """None for a function without a second derivative, if it says so."""
        try:
            return self._pushed(v)
        except RuntimeError:
            return None

    def _pushed(self, v: Tensor) -> Tensor:
        with self._at_origin(), torch.enable_grad():
            if self._transposed is None:
                # At u = 0 as at any other: J^T u is linear in u
                u = torch.zeros_like(self.output, requires_grad=True)
                self._transposed = u, self._pull(u, create_graph=True)
            u, found = self._transposed
            pairs = [
                (real(part), v[place].view_as(real(part)))
                for part, place in zip(found, self.places, strict=True)
                if part is not None and part.requires_grad
            ]
            if not pairs:
                return torch.zeros_like(self.output)
            parts, directions = zip(*pairs, strict=True)
            (product,) = torch.autograd.grad(
                parts, u, directions, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return product

    def _pull(self, u: Tensor, create_graph: bool = False) -> list[Tensor | None]:
        return list(
            torch.autograd.grad(
                self.output,
                self.parameters,
                u,
                retain_graph=True,
                create_graph=create_graph,
                allow_unused=True,
            )
        )

    def _compute(self, points: slice) -> Tensor:
        """Rows by backward passes, several at once where autograd can."""
        indices = torch.arange(len(self.output), device=self.output.device)[points]
        # Beside the gradients each row holds tensors of the graph, say eight of the residual's size
        width = sum(map(dimension, self.parameters)) + 8 * len(self.output)
        size = min(AT_ONCE, rows_at_once(width))  # each holds gradients of the whole graph
        with self._at_origin():
            return torch.cat([self._batch(part) for part in indices.split(size)])

    def _batch(self, indices: Tensor) -> Tensor:
        u = self.output.new_zeros(len(indices), len(self.output))
        u[torch.arange(len(indices)), indices] = 1
        try:
            found = torch.autograd.grad(
                self.output,
                self.parameters,
                u,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
        except RuntimeError:  # a function that cannot be batched
            each = zip(*(self._pull(row) for row in u), strict=True)
            found = tuple(None if p[0] is None else torch.stack(p) for p in each)  # type: ignore
        return torch.cat(
            [
                u.new_zeros(len(u), dimension(p))
                if f is None
                else real(f.detach()).reshape(len(u), -1)
                for f, p in zip(found, self.parameters, strict=True)
            ],
            dim=1,
        )

    @contextmanager
    def _at_origin(self) -> Iterator[None]:
        """The parameters as they were; `.data` leaves autograd's version counters alone."""
        pairs = list(zip(self.parameters, self.origin, strict=True))
        # Bit by bit: a graph's backward pass reads the parameters' memory as it is now
        moved = [(p, p.detach().clone(), old) for p, old in pairs if not torch.equal(p, old)]
        for p, _, old in moved:
            p.data.copy_(old)
        try:
            yield
        finally:
            for p, new, _ in moved:
                p.data.copy_(new)
