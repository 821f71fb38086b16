"""Conjugate gradients: any operator, any preconditioner, stop rules as objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.settings import NOT_NEGATIVE, whole

__all__ = [
    "Operator",
    "ProgressOfSolve",
    "RelativeProgress",
    "RelativeResidual",
    "Solution",
    "Stop",
    "StopRule",
    "conjugate_gradients",
    "geometric_indices",
]

Operator = Callable[[Tensor], Tensor]


class Stop(Enum):
    """Why conjugate gradients stopped; the text is for people."""

    SOLVED = "solved"  # the residual is zero
    RELATIVE_RESIDUAL = "relative residual"
    RELATIVE_PROGRESS = "relative progress"
    PROGRESS_OF_SOLVE = "progress of this solve"
    RULE = "a rule of one's own"
    ITERATION_LIMIT = "iteration limit"
    NEGATIVE_CURVATURE = "negative curvature"
    NOT_FINITE = "not finite"


@dataclass
class Solution:
    """What conjugate gradients found, and how.

    Attributes:
        x: the last iterate, shape of b.
        stop: why it stopped; None while it has not.
        residual_norms: ||b - A x_i||, i = 0, 1, ..., by the recurrence; relative to ||b||.
        model_values: phi(x_i) = 1/2 x_i.A x_i - b.x_i.
        kept: pairs (i, x_i) at the indices asked for, ending with the last iterate.
    """

    x: Tensor
    stop: Stop | None = None
    residual_norms: list[float] = field(default_factory=list)
    model_values: list[float] = field(default_factory=list)
    kept: list[tuple[int, Tensor]] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """Products with A spent after the start."""
        return len(self.residual_norms) - 1


class StopRule(Protocol):
    """Looks at the history after every iteration; returns the reason to stop, or None."""

    def __call__(self, history: Solution) -> Stop | None: ...


@dataclass(frozen=True)
class RelativeResidual:
    """Stop once ||b - A x|| <= tolerance ||b||."""

    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        settings.check(self, tolerance=NOT_NEGATIVE)

    def __call__(self, history: Solution) -> Stop | None:
        small = history.residual_norms[-1] <= self.tolerance
        return Stop.RELATIVE_RESIDUAL if small else None


@dataclass(frozen=True)
class RelativeProgress:
    """Stop once the last k iterations brought less than k tolerance of phi, k = max(least, i/10).
    Eq. (26) of docs/mathematics.md.

    (phi_i - phi_{i-k}) / phi_i < k tolerance with phi_i < 0. Source: Martens (2010), section 4.4.
    """

    tolerance: float = 5e-4  # with the least, Martens (2010)
    least: int = 10

    def __post_init__(self) -> None:
        settings.check(self, tolerance=NOT_NEGATIVE, least=whole(1))

    def __call__(self, history: Solution) -> Stop | None:
        i, phi = history.iterations, history.model_values
        k = max(self.least, math.ceil(0.1 * i))
        if i <= k or phi[i] >= 0:
            return None
        # phi < 0 from here on, so that this is the decrease of k iterations as a part of all of it
        slow = (phi[i] - phi[i - k]) / phi[i] < k * self.tolerance
        return Stop.RELATIVE_PROGRESS if slow else None


@dataclass(frozen=True)
class ProgressOfSolve:
    """Stop once the last k iterations brought less than a fraction of what all of them did.

        phi_(i-k) - phi_i < tolerance (phi_0 - phi_i),    k = max(least, i // 10)

    `RelativeProgress` allows for k tolerance |phi_i|, and stops a solve that starts from the last
    one's solution, where phi_0 < 0, much earlier. The published Hessian-free runs were made with
    this rule, that of github.com/ltatzel/PyTorchHessianFree.
    """

    tolerance: float = 5e-4
    least: int = 10

    def __post_init__(self) -> None:
        settings.check(self, tolerance=NOT_NEGATIVE, least=whole(1))

    def __call__(self, history: Solution) -> Stop | None:
        i, phi = history.iterations, history.model_values
        k = max(self.least, i // 10)
        slow = i > k and phi[i - k] - phi[i] < self.tolerance * (phi[0] - phi[i])
        return Stop.PROGRESS_OF_SOLVE if slow else None


def geometric_indices(limit: int, growth: float = 1.3) -> list[int]:
    """ceil(growth^j) <= limit, j = 0, 1, ...: the iterates Martens (2010) keeps to backtrack on.

    Raises:
        ValueError: if growth <= 1.
    """
    if growth <= 1:
        raise ValueError(f"growth is {growth}; geometric indices need a growth above 1")
    count = int(math.log(max(limit, 1)) / math.log(growth)) + 2
    return sorted({i for j in range(count) if (i := math.ceil(growth**j)) <= limit})


def conjugate_gradients(
    product: Operator,
    rhs: Tensor,
    stop: Sequence[StopRule] = (RelativeResidual(),),
    *,
    start: Tensor | None = None,
    preconditioner: Operator | None = None,
    iterations: int = 1000,
    keep: Sequence[int] = (),
    conjugate: bool = False,
) -> Solution:
    """A^-1 b by (preconditioned) conjugate gradients, A symmetric positive definite.

    Args:
        product: v -> A v; v has the shape of b, which may be any.
        rhs: b.
        stop: the first rule that names a reason ends the iteration.
        start: x_0, zero by default.
        preconditioner: v -> M^-1 v with M ~ A symmetric positive definite.
        iterations: the most products to spend.
        keep: indices of the iterates to return besides the last.
        conjugate: make each direction conjugate to all former ones, not to the last alone. In exact
            arithmetic nothing changes; in floating point every converged eigenvalue multiplies the
            rounding of what follows. Costs two vectors of memory an iteration.

    Source: Hestenes & Stiefel (1952); Nocedal & Wright, algorithm 5.3.
    """
    precondition = preconditioner or (lambda v: v)
    x = torch.zeros_like(rhs) if start is None else start
    residual = rhs.clone() if start is None else rhs - product(x)
    history = Solution(x)
    # b = 0 has the solution 0, and no relative residual
    scale = _norm(rhs) or 1.0
    wanted = set(keep)
    direction = y = precondition(residual)
    slope = _dot(residual, y)
    former: list[tuple[Tensor, Tensor]] = []
    _record(history, x, residual, rhs, scale)
    while (reason := _reason(history, stop, iterations)) is None:
        image = product(direction)
        curvature = _dot(direction, image)
        # Written so that nan ends the iteration too
        if not curvature > 0:
            reason = Stop.NEGATIVE_CURVATURE if curvature <= 0 else Stop.NOT_FINITE
            break
        # Not slope / curvature, in exact arithmetic the same: this is the minimum along the
        # direction that rounding, or `_conjugate`, has made of the textbook's
        alpha = _dot(residual, direction) / curvature
        x, residual = x + alpha * direction, residual - alpha * image
        _record(history, x, residual, rhs, scale)
        if history.iterations in wanted:
            history.kept.append((history.iterations, x))
        y = precondition(residual)
        slope, previous = _dot(residual, y), slope
        if conjugate:
            former.append((direction, image / curvature))
        direction = _conjugate(y + (slope / previous) * direction, former)
    return _finish(history, reason)


def _conjugate(direction: Tensor, former: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Without its parts along former directions p, given with A p / p.Ap."""
    for known, image in former:
        direction = direction - _dot(direction, image) * known
    return direction


def _record(history: Solution, x: Tensor, residual: Tensor, rhs: Tensor, scale: float) -> None:
    """Append x, its residual norm and phi(x) = -1/2 (b + residual).x."""
    history.x = x
    history.residual_norms.append(_norm(residual) / scale)
    # phi = x.A x / 2 - b.x with A x = b - residual: no product more
    history.model_values.append(-0.5 * _dot(rhs + residual, x))


def _reason(history: Solution, stop: Sequence[StopRule], iterations: int) -> Stop | None:
    """Why to stop now, or None."""
    norm = history.residual_norms[-1]
    if not math.isfinite(norm):
        return Stop.NOT_FINITE
    if norm == 0:
        return Stop.SOLVED
    if reason := next((why for rule in stop if (why := rule(history))), None):
        return reason
    return Stop.ITERATION_LIMIT if history.iterations >= iterations else None


def _finish(history: Solution, reason: Stop) -> Solution:
    """The reason is written down; the last iterate is always kept."""
    history.stop = reason
    if not history.kept or history.kept[-1][0] != history.iterations:
        history.kept.append((history.iterations, history.x))
    return history


def _dot(u: Tensor, v: Tensor) -> float:
    return float((u * v).sum())


def _norm(v: Tensor) -> float:
    return float(v.norm())
