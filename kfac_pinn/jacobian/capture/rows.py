"""Which residual a row of the graph belongs to.

A backward pass with the weights w_n tells a row m its gradient g_m = sum_n w_n d r_n / d y_m. If
only one residual n reads that row, a second pass with the weights w_n t_n gives t_n g_m: the ratio
of the two is the *tag* t_n, and the tags are all different. A row that several residuals read has
no such ratio. So points may be concatenated, sliced, permuted or read twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["Owners", "Tagged", "arrange"]

Rows = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Owners:
    """n of every row m: shape (M,), -1 where the row reaches no residual."""

    index: Tensor

    @cached_property
    def all_live(self) -> bool:
        """Whether every row reaches a residual."""
        return bool((self.index >= 0).all())

    def is_identity(self, points: int) -> bool:
        """Whether the rows are 0, ..., N - 1."""
        # The usual case, in which neither gathering nor scattering is needed
        return self._counts and len(self.index) == points

    @cached_property
    def _counts(self) -> bool:
        return torch.equal(self.index, torch.arange(len(self.index), device=self.index.device))

    def of(self, values: Tensor, otherwise: float) -> Tensor:
        """values[n] of every row, shape (M,)."""
        if self.is_identity(len(values)):
            return values
        found = values[self.index.clamp_min(0)]
        return torch.where(self.index >= 0, found, otherwise)


class Tagged:
    """Backward passes of one residual to some edges of its graph, with different weights.

    Args:
        output: r, shape (N,), with its graph.
        edges: where to.
        known: the owners that an earlier evaluation of the same program found, edge by edge: they
            are compared with this one's gradients, and looked for anew only where they differ.
        trust: take the known ones as they are, for a graph that cannot read other rows.
    """

    def __init__(
        self,
        output: Tensor,
        edges: Sequence[GradientEdge],
        known: dict[int, Owners | None],
        trust: bool = False,
    ) -> None:
        self.output, self.edges, self.known, self.trust = output, list(edges), known, trust
        # Seeded: a look must not change the user's random numbers, and runs repeat
        self.generator = torch.Generator().manual_seed(len(output))
        self.weights = self._powers_of_two()
        self.first = self._backward(self.weights)

    def gradient(self, i: int, rows: Rows, owners: Owners) -> Tensor:
        """d r_n / d y_m of the one residual n that reads row m, shape (M, d)."""
        first = self.first[i]
        assert first is not None
        return rows(first) / owners.of(self.weights, 1.0)[:, None]

    def owners(self, i: int, rows: Rows, key: int) -> Owners | None:
        """The owners of the rows at one edge, None where a row has several.

        Args:
            i: the number of the edge.
            rows: brings a gradient there to the shape (M, d).
            key: under which they are remembered.
        """
        first = self.first[i]
        assert first is not None
        first = rows(first)
        # One residual owns whatever reaches it
        if len(self.output) == 1:
            return Owners(torch.zeros(len(first), dtype=torch.long, device=first.device))
        # The second pass is saved, which costs as much as all of J
        if self.trust and key in self.known and self._dead_is_dead(first, self.known[key]):
            return self.known[key]
        known = self.known.get(key)
        if known is not None and len(known.index) == len(first):
            tags, second = self._random_pass
            if fits(first, rows(second[i]), known.of(tags, 0.0)):  # type: ignore[arg-type]
                return known
        return self._decode(i, rows, key, first)

    def _dead_is_dead(self, first: Tensor, owners: Owners | None) -> bool:
        """Whether rows that reached no residual still do not: a factor 0 may have changed."""
        if owners is None or owners.all_live:
            return True
        return not first[owners.index < 0].any()

    def _decode(self, i: int, rows: Rows, key: int, first: Tensor) -> Owners | None:
        levels, index = self._levels(), torch.zeros(len(first), dtype=torch.long)
        index = index.to(first.device)
        size, tiny = first.norm(dim=1), torch.finfo(first.dtype).tiny
        # Rounding of rows that cancel, of some thirty terms: they reach no residual
        dead = size <= 32 * torch.finfo(first.dtype).eps * size.max()
        for digit, second in enumerate(self._digit_passes):
            gradient = rows(second[i])  # type: ignore[arg-type]
            # The least-squares ratio of two vectors: small entries, mostly rounding, count little
            ratio = (first * gradient).sum(1) / first.square().sum(1).clamp_min(tiny)
            # Clamped, so that a row of several owners, whose ratio may be anything, fails below
            level = ((ratio - 1) * levels).round().clamp(0, levels - 1)
            if not fits(first, gradient, torch.where(dead, 0.0, 1 + level / levels)):
                self.known[key] = None
                return None
            index += level.nan_to_num().long() * levels**digit
        found = torch.where(dead, -1, index)
        self.known[key] = Owners(found) if (found < len(self.output)).all() else None
        return self.known[key]

    def _levels(self) -> int:
        """So many tags are told apart by one pass."""
        # Neighbours must differ by more than `fits` allows: by 6e-5 (1e-6), in float32 2e-2 (2e-3)
        return 2**14 if self.output.dtype == torch.float64 else 2**6

    @cached_property
    def _random_pass(self) -> tuple[Tensor, list[Tensor | None]]:
        """Random tags, and the gradients with them: known owners are compared with these."""
        # Within [1, 2): none is lost in another's rounding
        tags = 1 + torch.rand(len(self.output), generator=self.generator).to(self.output)
        return tags, self._backward(self.weights * tags)

    @cached_property
    def _digit_passes(self) -> list[list[Tensor | None]]:
        """The gradients with tags that number the residuals, a pass a digit."""
        return [self._backward(self.weights * tags) for tags in self._digits()]

    def _digits(self) -> list[Tensor]:
        """1 + (a digit of n) / levels, for all digits."""
        n, levels = torch.arange(len(self.output), device=self.output.device), self._levels()
        # One pass up to 16,384 points, two up to 2.7e8; in float32 two up to 4,096
        count = max(1, math.ceil(math.log(len(n)) / math.log(levels)))
        return [1 + (n // levels**k % levels).to(self.output) / levels for k in range(count)]

    def _powers_of_two(self) -> Tensor:
        """Random, so that nothing cancels as ones would in u - mean(u); dividing is exact."""
        choices = torch.tensor([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
        picked = torch.randint(len(choices), (len(self.output),), generator=self.generator)
        return choices[picked].to(self.output)

    def _backward(self, weights: Tensor) -> list[Tensor | None]:
        if not self.edges:
            return []
        return list(
            torch.autograd.grad(
                self.output, self.edges, weights, retain_graph=True, allow_unused=True
            )
        )


def fits(first: Tensor, second: Tensor, tags: Tensor) -> bool:
    """Whether second_m = tag_m first_m, up to rounding; tag 0: both vanish."""
    double = first.dtype == torch.float64
    error, size = (second - tags[:, None] * first).norm(dim=1), first.norm(dim=1)
    # Rows far below the largest are what is left of sums that cancel: they prove nothing
    floor = 1e4 * torch.finfo(first.dtype).eps * size.max()
    # Rounding of a whole backward pass; `_levels` keeps neighbouring tags further apart than this
    return bool((error <= (1e-6 if double else 2e-3) * size + floor).all())


def arrange(owners: Owners, points: int) -> Tensor | None:
    """Row numbers as (S, N), -1 where a residual has fewer than S; None: they are 0, ..., N - 1."""
    if owners.is_identity(points):
        return None
    index = owners.index
    live = (index >= 0).nonzero()[:, 0]
    # Stable, so that positions keep their order from run to run, and with it every rounding
    order = live[index[live].argsort(stable=True)]
    owner = index[order]
    counts = owner.bincount(minlength=points)
    rank = torch.arange(len(order), device=index.device) - (counts.cumsum(0) - counts)[owner]
    places = index.new_full((max(1, int(counts.max())), points), -1)
    places[rank, owner] = order
    return places
