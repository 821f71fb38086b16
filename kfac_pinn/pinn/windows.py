"""Long times by windows: an adapter a window, each started from the one before.

A single network loses the thread where a solution goes on for long. Here [0, T] is cut into
windows of equal length D, and u_i solves the i-th in its own time t - i D, with u_{i-1}'s last
values as initial condition. All share the weights of the base; a window is stored as its factors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hyperlora_ext.frames import Shifted
from hyperlora_ext.lora import Ranks, adapt
from hyperlora_ext.regimes import Train
from kfac_pinn.pinn.domains import TimeSpace
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.taylor_mode.jets import Jet

__all__ = ["Windows", "march", "window"]

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Windows:
    """A solution in pieces: u on consecutive intervals of time.

    Attributes:
        ends: of the windows, increasing.
        pieces: one network of (t, x) a window; what to keep of each is its `state`.
    """

    ends: tuple[float, ...]
    pieces: tuple[nn.Module, ...]

    def __call__(self, x: Any) -> Any:
        """u at points (t, x) of shape (N, 1 + d), or at a jet of them, each by its own window:
        (N, C). So it is certified by residuals, as any network is.
        """
        times = (x.data[0] if isinstance(x, Jet) else x)[:, 0].contiguous()
        places = torch.bucketize(times, times.new_tensor(self.ends[:-1]))[:, None]
        return sum(u(x) * (places == i).to(times) for i, u in enumerate(self.pieces))


def march(
    base: nn.Module,
    problem: Problem,
    count: int,
    train: Train,
    rank: Ranks = 4,
    **budget: Any,
) -> Windows:
    """Solve a problem on so many time windows of equal length, one after the other.

    Args:
        base: trained on the first window (`window(problem, (0, D))`), or on something like it; it
            is not changed.
        problem: on a `TimeSpace`, with a term "initial".
        count: of windows.
        train: the schedule of a window; the budget is each window's.
        rank: of the adapters.

    Raises:
        ValueError: for a problem without time or without a term "initial".
    """
    domain = timed(problem)
    ends = torch.linspace(domain.start, domain.end, count + 1, dtype=torch.float64).tolist()
    pieces: list[Shifted] = []
    for start, end in pairwise(ends):
        before = pieces[-1] if pieces else None
        network = adapt(base, rank) if before is None else warm(before.network)
        pieces.append(Shifted(network, delay(start, domain.dim)))
        train(pieces[-1], window(problem, (start, end), before), **budget)
    return Windows(tuple(ends[1:]), tuple(pieces))


def window(
    problem: Problem,
    interval: tuple[float, float],
    before: Function | None = None,
    weight: float = 10.0,
) -> Problem:
    """The problem on one interval of time.

    Args:
        interval: of time.
        before: the solution up to its start, whose values there are the initial condition; None:
            the problem's own.
        weight: of the mean square of that condition.

    Raises:
        ValueError: for a problem without time or without a term "initial".
    """
    domain = timed(problem)
    terms = {name: moved(term, domain, interval) for name, term in problem.terms.items()}
    if before is not None:
        terms["initial"] = continued(terms["initial"], before, weight)
    return replace(problem, domain=TimeSpace(*interval, domain.space), terms=terms)


def timed(problem: Problem) -> TimeSpace:
    """The domain of a problem in time."""
    if not isinstance(problem.domain, TimeSpace) or "initial" not in problem.terms:
        raise ValueError(
            f"{problem.name} has domain {type(problem.domain).__name__} and terms "
            f'{list(problem.terms)}; windows need a TimeSpace and a term "initial"'
        )
    return problem.domain


def moved(term: Term, domain: TimeSpace, interval: tuple[float, float]) -> Term:
    """The term, its points' times mapped from the whole domain to the interval."""
    scale = (interval[1] - interval[0]) / (domain.end - domain.start)

    def points(n: int, generator: Any = None, dtype: Any = None, device: Any = None) -> Tensor:
        x = term.points(n, generator, dtype, device)
        times = interval[0] + scale * (x[:, :1] - domain.start)
        return torch.cat([times, x[:, 1:]], dim=1)

    return replace(term, points=points)


def continued(term: Term, before: Function, weight: float) -> Term:
    """u = before at the term's points."""

    def residual(u: Function, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            given = before(x)
        return tuple((weight**0.5 * (u(x) - given)).unbind(1))

    return replace(term, residual=residual)


def delay(start: float, dim: int) -> Tensor:
    """The offset of a time of its own, (d,)."""
    return torch.tensor([start] + [0.0] * (dim - 1), dtype=torch.float64)


def warm(adapted: nn.Module) -> nn.Module:
    """A copy with factors of its own, the base shared."""
    memo: dict[int, Any] = {id(p): p for p in adapted.parameters() if not p.requires_grad}
    return copy.deepcopy(adapted, memo)
