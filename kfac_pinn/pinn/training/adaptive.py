"""Points where the residual is large: drawn anew from many candidates, for any sampler.

Alone:         x = by_residual(candidates, residuals, 500)
In training:   fit(..., sampling=RAD(every=50))           # or R3(every=50)

The points held out stay as the problem's samplers draw them, so that the warning for points that
were fitted means the same as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from kfac_pinn import settings
from kfac_pinn.pinn.domains import TimeSpace
from kfac_pinn.pinn.problem import Batch, Function, Term, named_equations
from kfac_pinn.pinn.training.run import Run, Sizes
from kfac_pinn.settings import (
    GENERATOR,
    NAMES,
    NOT_NEGATIVE,
    POSITIVE,
    SIZES,
    TENSOR,
    optional,
    takes,
    whole,
)

__all__ = [
    "R3",
    "RAD",
    "Causal",
    "by_residual",
    "by_weight",
    "causal_weights",
    "residual_sizes",
]


def residual_sizes(u: Function, term: Term, x: Tensor) -> Tensor:
    """|r| at points (N, d), (N,): the root of the sum of squares of a system's equations.

    Raises:
        ValueError: for a term whose residual is not one number a point and equation.
    """
    with torch.no_grad():
        found = named_equations("r", term.residual(u, x)).values()
    if not all(isinstance(r, Tensor) and len(r) == len(x) for r in found):
        raise ValueError(
            "points are drawn by the size of residuals, one a point: energies and integrals have "
            "none; name the terms that have, RAD(terms=['interior'])"
        )
    return sum(r.reshape(len(x), -1).square().sum(1) for r in found).sqrt()


@takes(
    candidates=TENSOR,
    sizes=TENSOR,
    n=whole(1),
    power=NOT_NEGATIVE,
    floor=POSITIVE,
    generator=optional(GENERATOR),
)
def by_residual(
    candidates: Tensor,
    sizes: Tensor,
    n: int,
    power: float = 1.0,
    floor: float = 1.0,
    generator: Generator | None = None,
) -> Tensor:
    """n of the candidates, without repetition, with probability ~ |r|^k / mean(|r|^k) + c.

    Args:
        candidates: (M, d), M >= n.
        sizes: |r| at them, (M,).
        n: how many to take.
        power: k; 0 takes them evenly.
        floor: c, above 0; the larger, the more evenly.
        generator: of the draw.

    Raises:
        ValueError: if there are too few candidates, a size is not finite, or c <= 0.

    Source: Wu, Zhu, Tan, Kartha & Lu (2023), eq. 2 (RAD; k = c = 1 by default).
    """
    if sizes.shape != candidates.shape[:1] or n > len(sizes):
        raise ValueError(
            f"{n} points from {len(candidates)} candidates with {tuple(sizes.shape)} sizes of "
            "residuals: one size a candidate, and at least as many candidates as points"
        )
    if wrong := int((~sizes.isfinite()).sum()):
        raise ValueError(f"sizes of residuals must be finite, found {wrong} that are not")
    tiny = torch.finfo(sizes.dtype).tiny
    # In units of the largest: powers of small or large residuals would leave the dtype
    relative = (sizes / sizes.max().clamp(min=tiny)) ** power
    weights = relative / relative.mean().clamp(min=tiny) + floor
    return by_weight(candidates, weights, n, generator)


def by_weight(
    candidates: Tensor, weights: Tensor, n: int, generator: Generator | None = None
) -> Tensor:
    """n of the candidates, without repetition, each draw with probability ~ weight.

    They are the n largest of u_i^(1/w_i), u uniform. Source: Efraimidis & Spirakis (2006).
    """
    device = "cpu" if generator is None else generator.device
    u = torch.rand(len(weights), generator=generator, dtype=torch.float64, device=device)
    # In the order of u^(1/w), which underflows for small w; 1e-300 keeps log 0 and 0 / 0 away
    keys = u.clamp(min=1e-300).log() / weights.to(u).clamp(min=1e-300)
    return candidates[keys.topk(n).indices.to(candidates.device)]


@dataclass(frozen=True)
class RAD:
    """New points every so many steps, where residuals are large (`by_residual`).

    Attributes:
        every: steps between two draws; the first batch is the problem's own.
        power, floor: k and c of `by_residual`.
        candidates: how many are drawn for each point.
        terms: whose points are chosen, by name; `("interior",)` by default. The others are drawn
            anew by their samplers.
        sizes: replaces the problem's numbers of points by term.

    Raises:
        TypeError, ValueError: for settings that are none.
    """

    every: int = 100
    power: float = 1.0
    floor: float = 1.0
    candidates: int = 10
    terms: Sequence[str] = ("interior",)
    sizes: Sizes = None

    def __post_init__(self) -> None:
        settings.check(self, every=whole(1), candidates=whole(1), terms=NAMES, sizes=SIZES)
        settings.check(self, power=NOT_NEGATIVE, floor=POSITIVE)

    def __call__(self, run: Run) -> Batch | None:
        if run.step % self.every:
            return None
        batch = run.draw(self.sizes)
        return batch if run.step == 0 else _changed(run, batch, self.terms, self._chosen)

    def _chosen(self, run: Run, term: Term, x: Tensor, name: str) -> Tensor:
        pool = run.draw({name: self.candidates * len(x)}).points[name]
        sizes = residual_sizes(run.model, term, pool)
        return by_residual(pool, sizes, len(x), self.power, self.floor, run.generator)


@dataclass(frozen=True)
class R3:
    """Keeps the points whose residual is above the mean, and draws the others anew.

    Attributes:
        every: steps between two draws; 1 is the published rule, but a second-order method wants
            to keep a batch for a while.
        terms: whose points are kept so, by name; the others are kept as they are.
        sizes: replaces the problem's numbers of points by term.

    Raises:
        TypeError, ValueError: for settings that are none.

    Source: Daw et al. (2023), "Mitigating propagation failures" (retain, resample, release).
    """

    every: int = 100
    terms: Sequence[str] = ("interior",)
    sizes: Sizes = None

    def __post_init__(self) -> None:
        settings.check(self, every=whole(1), terms=NAMES, sizes=SIZES)

    def __call__(self, run: Run) -> Batch | None:
        if run.step == 0:
            return run.draw(self.sizes)
        return None if run.step % self.every else _changed(run, run.batch, self.terms, self._chosen)

    def _chosen(self, run: Run, term: Term, x: Tensor, name: str) -> Tensor:
        sizes = residual_sizes(run.model, term, x)
        kept = x[sizes > sizes.mean()]
        # So many as before: a loss is a mean over points, and a step compares two of them
        return torch.cat([kept, run.draw({name: len(x) - len(kept)}).points[name]])


@dataclass(frozen=True)
class Causal:
    """New points every so many steps, early ones first, later ones as those are solved.

    Time is cut into M pieces; a point of the i-th is drawn with a probability

        ~ w_i = exp(-eps / M sum_{j < i} L_j),

    L_j the mean square of the residual over the j-th piece. Points in place of weights: the loss
    is a plain mean, which a step and its trials agree on.

    Attributes:
        every: steps between two draws.
        tolerance: eps, in units of 1 / L; 0 draws all times alike.
        pieces: M.
        candidates: how many are drawn for each point.
        terms: whose points are chosen so, by name; the others are drawn anew by their samplers.
        sizes: replaces the problem's numbers of points by term.

    Raises:
        TypeError, ValueError: for settings that are none, or a problem that is not on a TimeSpace.

    Source: Wang, Sankaran & Perdikaris (2024), eq. 12, with weights.
    """

    every: int = 100
    tolerance: float = 1.0
    pieces: int = 16
    candidates: int = 16
    terms: Sequence[str] = ("interior",)
    sizes: Sizes = None

    def __post_init__(self) -> None:
        settings.check(self, every=whole(1), pieces=whole(1), candidates=whole(1))
        settings.check(self, tolerance=NOT_NEGATIVE, terms=NAMES, sizes=SIZES)

    def __call__(self, run: Run) -> Batch | None:
        if not isinstance(run.problem.domain, TimeSpace):
            raise ValueError(
                f"{run.problem.name} has no time: Causal needs a problem on a TimeSpace"
            )
        if run.step % self.every:
            return None
        return _changed(run, run.draw(self.sizes), self.terms, self._chosen)

    def _chosen(self, run: Run, term: Term, x: Tensor, name: str) -> Tensor:
        pool = run.draw({name: self.candidates * len(x)}).points[name]
        domain = run.problem.domain
        assert isinstance(domain, TimeSpace)
        part = (pool[:, 0] - domain.start) / (domain.end - domain.start)
        piece = (part * self.pieces).long().clamp(0, self.pieces - 1)
        weights = causal_weights(residual_sizes(run.model, term, pool) ** 2, piece, self.pieces)
        return by_weight(pool, weights**self.tolerance, len(x), run.generator)


def causal_weights(squares: Tensor, piece: Tensor, count: int) -> Tensor:
    """exp(-1/M sum_{j < i} L_j) of points, (N,), from their squares and pieces i of M."""
    sums = squares.new_zeros(count).index_add(0, piece, squares)
    counts = squares.new_zeros(count).index_add(0, piece, torch.ones_like(squares))
    # A piece that no candidate fell into holds nothing back
    losses = sums / counts.clamp(min=1)
    return torch.exp(-(losses.cumsum(0) - losses) / count)[piece]


Choice = Callable[[Run, Term, Tensor, str], Tensor]


def _changed(run: Run, batch: Batch, names: Sequence[str], choose: Choice) -> Batch:
    """The batch with the points of the named terms chosen anew."""
    if unknown := set(names) - set(batch.terms):
        raise KeyError(
            f"{run.problem.name} has terms {list(batch.terms)}, not {sorted(unknown)}: name those "
            "whose points are to be chosen, terms=[...]"
        )
    points = dict(batch.points)
    for name in names:
        points[name] = choose(run, batch.terms[name], points[name], name)
    return replace(batch, points=points)
