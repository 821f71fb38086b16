"""Kronecker factors of the Gauss-Newton matrix, a layer and a term; exact blocks for other leaves.

Of one layer the term k of the loss has the Gramian (docs/mathematics.md, "Kronecker factors")

    1/N sum_n J_n^T J_n,  J_n = sum_s g_ns [z_ns; e_s]^T    ~    A_k (x) B_k,

    A_k = 1/(N S) sum_ns [z_ns; e_s] [z_ns; e_s]^T,      B_k = 1/N sum_ns g_ns g_ns^T.

Source: Dangel, Mueller & Zeinhofer (2024), "Kronecker-factored approximate curvature for
physics-informed neural networks"; Eschenhagen et al. (2023) for weight sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.curvature.factor_damping import DampingRule, EqualDamping
from kfac_pinn.curvature.fisher import Fisher, Type2
from kfac_pinn.curvature.shared_inverses import inverses
from kfac_pinn.curvature.weight_sharing import Expand, Sharing
from kfac_pinn.jacobian.layers import Block, Layer, Leaf
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.sampled import Signs
from kfac_pinn.linalg import KroneckerInverse, KroneckerSum, damped_solve
from kfac_pinn.processes import Group
from kfac_pinn.settings import BELOW_ONE, NOT_NEGATIVE, having, optional, whole

__all__ = [
    "Average",
    "BlockCurvature",
    "DenseInverse",
    "Factors",
    "KroneckerCurvature",
    "KroneckerPair",
    "LayerFactors",
    "LeafGramian",
    "precondition",
]


def identity(like: Tensor) -> Tensor:
    """I of the size of the last dimension; for a diagonal (n,), ones."""
    if like.ndim == 1:
        return torch.ones_like(like)
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Average:
    """M <- decay M + (1 - decay) M_new, from `start` times the identity; M of shape (d, d).

    Args:
        decay: in [0, 1); 0 forgets at once.
        start: 1 is the identity, 0 is zero, None the first M itself.
    """

    decay: float = 0.95  # Martens & Grosse (2015), section 5
    start: float | None = 1.0

    def __post_init__(self) -> None:
        settings.check(self, decay=BELOW_ONE, start=optional(NOT_NEGATIVE))

    def __call__(self, old: Tensor | None, new: Tensor) -> Tensor:
        """The average with one more M."""
        if old is None:
            if self.start is None:
                return new
            old = self.start * identity(new)
        # One pass over the memory, where a sum of two products takes three
        return torch.lerp(new, old, self.decay)


AVERAGE, RULE = having("__call__", "Average()"), having("__call__", "EqualDamping()")


@dataclass(frozen=True)
class Factors:
    """Everything about the curvature of one optimizer; the numbers live in its state, eq. (12).

    Args:
        fisher: what is sent backwards.
        sharing: expand or reduce.
        average: over the steps.
        rule: how damping enters.
        every: steps from one update of the averages to the next.
        invert_every: steps from one inversion to the next.

    Raises:
        TypeError, ValueError: for a period that is not 1, 2, ..., or a part of another kind.
    """

    fisher: Fisher = Type2()
    sharing: Sharing = Expand()
    average: Average = Average()
    rule: DampingRule = EqualDamping()
    every: int = 1
    invert_every: int = 1

    def __post_init__(self) -> None:
        settings.check(self, every=whole(1), invert_every=whole(1), average=AVERAGE, rule=RULE)
        settings.check(
            self, fisher=having("cotangents", "Type2()"), sharing=having("inputs", "Expand()")
        )

    def measure(self, linearization: Linearization, step: int) -> dict[Block, BlockFactors]:
        """The factors of every block at the current parameters."""
        pairs = self._pairs(linearization, step)
        return {
            block: LeafGramian(linearization.leaf_gramian(block, step))
            if isinstance(block, Leaf)
            else LayerFactors({k: pair for (i, k), pair in pairs.items() if i == number})
            for number, block in enumerate(linearization.blocks)
        }

    def average_of(self, known: BlockFactors | None, measured: BlockFactors) -> BlockFactors:
        """The averages with the factors just measured; a term that is gone is forgotten."""
        if isinstance(measured, LeafGramian):
            old = known.gramian if isinstance(known, LeafGramian) else None
            return LeafGramian(self.average(old, measured.gramian))
        old_pairs = known.pairs if isinstance(known, LayerFactors) else {}
        pairs = {k: self._average_pair(old_pairs.get(k), new) for k, new in measured.pairs.items()}
        return LayerFactors(pairs)

    def invert(
        self, factors: BlockFactors, damping: float, ridge: Tensor | None = None
    ) -> BlockInverse:
        """The damped inverse of a block.

        Args:
            ridge: is added to its diagonal: one number a column of [W | b] of a layer, where it is
                one more pair diag(ridge) (x) I, one an entry of another leaf; None: nothing.
        """
        if isinstance(factors, LeafGramian):
            return DenseInverse(leaf_inverse(factors.gramian, damping, ridge))
        return self._damped(factors, damping, ridge).inverse()

    def _damped(self, factors: LayerFactors, damping: float, ridge: Tensor | None) -> KroneckerSum:
        """What is inverted of a layer."""
        pairs = [self.rule(pair.A, pair.B, damping) for pair in factors.pairs.values()]
        if ridge is not None:
            # Exact, where adding it to the factors would leave a cross term
            pairs.append((torch.diag(ridge), identity(pairs[0][1])))
        return KroneckerSum(pairs)

    def refresh(
        self,
        known: Mapping[Block, BlockCurvature],
        linearization: Linearization,
        step: int,
        damping: Callable[[Block], float],
        ridge: Tensor | None = None,
    ) -> KroneckerCurvature:
        """Averages and inverses, each brought up to date where its period has passed or it is new.

        Args:
            known: what was kept of the blocks; a block of another size counts as new.
            step: how many steps were taken.
            damping: lambda of a block.
            ridge: is added to the diagonal of F, shape (P,).
        """
        blocks = linearization.blocks
        kept = {b: known[b] for b in blocks if b in known and known[b].size == b.size}
        due, invert = step % self.every == 0, step % self.invert_every == 0
        measured = self.measure(linearization, step) if due or len(kept) < len(blocks) else {}
        factors = {b: kept[b].factors for b in kept} | {
            b: self.average_of(kept[b].factors if b in kept else None, measured[b])
            for b in blocks
            if due or b not in kept
        }
        jobs = {
            b: (factors[b], damping(b), part_of(ridge, b))
            for b in blocks
            if invert or b not in kept
        }
        found = {b: kept[b].inverse for b in kept} | self._inverses(jobs, linearization.processes)
        return KroneckerCurvature(
            {b: BlockCurvature(b.size, factors[b], found[b]) for b in blocks}, ridge
        )

    def _inverses(self, jobs: Mapping[Block, Job], processes: Group) -> dict[Block, BlockInverse]:
        """Of several blocks; those of layers are shared out among the processes."""
        sums, leaves = {}, {}
        for block, (factors, damping, ridge) in jobs.items():
            if isinstance(factors, LayerFactors):
                sums[block] = self._damped(factors, damping, ridge)
            else:
                leaves[block] = self.invert(factors, damping, ridge)
        return {**inverses(sums, processes), **leaves}

    def _pairs(self, linearization: Linearization, step: int) -> dict[Place, KroneckerPair]:
        """Of every layer and term, A_k = sum_s N_ks / N_k A_ks and B_k over the parts s of J."""
        # One after another: of many batches neither J nor the factors are in memory together
        found = reduce(added, map(partial(self._pairs_of, step), linearization.parts()))
        places = list(found)
        whole = linearization.processes.sum(*(found[p][side] for side in (0, 1) for p in places))
        A, B = whole[: len(places)], whole[len(places) :]
        return dict(zip(places, map(KroneckerPair, A, B), strict=True))

    def _pairs_of(self, step: int, part: Linearization) -> Pairs:
        """What one part adds to them."""
        cotangents, pairs = self.fisher.cotangents(part, step), {}
        # Residuals of one pass share their inputs; kept with these, it would stay with a batch
        moment = cache(self.sharing.inputs)
        layers = [(i, block) for i, block in enumerate(part.blocks) if isinstance(block, Layer)]
        for number, block in layers:
            for k, (term, u) in enumerate(zip(part.terms, cotangents, strict=True)):
                signs = Signs(step, part.totals[k], part.places[k].start or 0)
                if (found := term.factors(block, signs)) is not None:
                    jacobian, by_point = found
                    A = moment(jacobian.inputs)[block.columns, block.columns]
                    # A sampled g has random signs already, and u is one number a point
                    B = self._gradients(jacobian.g, u if by_point or u is None else 1.0)
                    pairs[number, k] = term.share * A, term.share * B
        return pairs

    def _gradients(self, g: Tensor, u: Tensor | float | None) -> Tensor:
        if u is None:
            return identity(g)
        return self.sharing.gradients(g * u[:, None] if isinstance(u, Tensor) else g)

    def _average_pair(self, old: KroneckerPair | None, new: KroneckerPair) -> KroneckerPair:
        if old is None:
            return KroneckerPair(self.average(None, new.A), self.average(None, new.B))
        return KroneckerPair(self.average(old.A, new.A), self.average(old.B, new.B))


# What stands in `optimizer.state` is not frozen: Lightning moves it between devices field by field.


@dataclass
class KroneckerPair:
    """A (d_in, d_in) and B (d_out, d_out) of one layer and one term."""

    A: Tensor
    B: Tensor


@dataclass
class LayerFactors:
    """The pairs of a layer by the number of the term, sum_k A_k (x) B_k."""

    pairs: dict[int, KroneckerPair]


@dataclass
class LeafGramian:
    """The exact block of J^T J of any other leaf, (size, size), or of a large one its diagonal."""

    gramian: Tensor


@dataclass
class DenseInverse:
    """The damped inverse of a `LeafGramian`, of its shape."""

    inverse: Tensor


BlockFactors: TypeAlias = LayerFactors | LeafGramian
BlockInverse: TypeAlias = KroneckerInverse | DenseInverse
Job: TypeAlias = tuple[BlockFactors, float, Tensor | None]  # factors, damping and ridge
Place: TypeAlias = tuple[int, int]  # the number of a block and of a term
Pairs: TypeAlias = dict[Place, tuple[Tensor, Tensor]]  # A and B


@dataclass
class BlockCurvature:
    """What is kept of a block between two steps.

    Attributes:
        size: number of its parameters: with another one it is another block.
        factors: averaged over the steps.
        inverse: damped, of the factors or of earlier ones.
    """

    size: int
    factors: LayerFactors | LeafGramian
    inverse: KroneckerInverse | DenseInverse


@dataclass(frozen=True)
class KroneckerCurvature:
    """F, block diagonal and damped: sum_k A_k (x) B_k of each layer, Gramians of other leaves."""

    blocks: Mapping[Block, BlockCurvature]
    ridge: Tensor | None = None

    def inverse(self, v: Tensor) -> Tensor:
        """F^-1 v, shape (P,); zero for parameters that neither residual nor ridge depends on.

        Eq. (19) of docs/mathematics.md.
        """
        out = torch.zeros_like(v)
        if self.ridge is not None:
            out = torch.where(self.ridge > 0, v / self.ridge, out)
        for block, curvature in self.blocks.items():
            precondition(block, curvature.inverse, v, out)
        return out


def added(sums: Pairs, parts: Pairs) -> Pairs:
    """Place by place."""
    return {place: (A + parts[place][0], B + parts[place][1]) for place, (A, B) in sums.items()}


def leaf_inverse(gramian: Tensor, damping: float, ridge: Tensor | None) -> Tensor:
    """(gramian + damping + ridge)^-1, of a whole matrix or of a diagonal (size,)."""
    shift = damping if ridge is None else damping + ridge
    if gramian.ndim == 1:
        return 1 / (gramian + shift)
    return damped_solve(gramian, identity(gramian), shift)


def part_of(ridge: Tensor | None, block: Block) -> Tensor | None:
    """A ridge (P,) on one block: of a layer, one number a column of [W | b]; None where it is 0."""
    parts = [] if ridge is None else [ridge[place] for place in block.slices]
    if not any(part.any() for part in parts):
        return None
    if isinstance(block, Leaf) or ridge is None:
        return torch.cat(parts)
    return block.matrix(ridge)[0]  # weight and bias each have one number


def precondition(block: Block, inverse: BlockInverse, v: Tensor, out: Tensor) -> None:
    """Write the block of F^-1 v into the flat vector `out`."""
    if isinstance(block, Leaf) and isinstance(inverse, DenseInverse):
        known, part = inverse.inverse, v[block.place]
        out[block.place] = known * part if known.ndim == 1 else known @ part
    elif isinstance(block, Layer) and isinstance(inverse, KroneckerInverse):
        block.write(inverse.solve(block.matrix(v)), out)
