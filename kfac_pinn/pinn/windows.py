"""Long times by windows: one network a window, each started from the one before.

A single network often fails on long intervals of time. Here [0, T] is cut into
windows of equal length D, and u_i solves the i-th in its own time t - i D, with the last values of
u_{i-1} as initial condition.

    def train(u, problem):
        fit(u, problem, GaussNewton(u.parameters()), steps=20)

    solved = march(network, problem, 8, train)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kfac_pinn.pinn.domains import TimeSpace
from kfac_pinn.pinn.problem import PROBLEM, Problem, Term, placed_like
from kfac_pinn.settings import (
    FINITE,
    FLAG,
    FUNCTION,
    MODULE,
    POSITIVE,
    TEXT,
    increasing,
    many,
    optional,
    takes,
    whole,
)
from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.operators import taylor

__all__ = ["Continued", "Shifted", "Windows", "march", "window"]

Function = Callable[[Any], Any]


class Shifted(nn.Module):
    """u(x) = network(x - offset), the offset being that of the last q coordinates.

    Args:
        network: of points (N, d).
        offset: (q,), q <= d.
    """

    offset: Tensor

    def __init__(self, network: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", offset)

    def forward(self, x: Any) -> Any:
        """Fields (N, C) at the points x (N, d), or at a jet of them."""
        missing = x.shape[-1] - len(self.offset)
        offset = nn.functional.pad(self.offset, (missing, 0))
        return self.network(x - offset.to(x.device, x.dtype))


class Continued(nn.Module):
    """u(t, x) = before(t_0, x) + (v(t, x) - v(t_0, x)): what was before goes on exactly at t_0.

    Args:
        before: the solution up to t_0, not trained; u costs what it does, and v twice.
        network: v.
        start: t_0.
    """

    def __init__(self, before: nn.Module, network: nn.Module, start: float) -> None:
        super().__init__()
        self.before, self.network, self.start = before, network, start

    def forward(self, x: Any) -> Any:
        """Fields (N, C) at the points x (N, d), or at a jet of them."""
        # 0 * x: of a jet this is a jet whose derivatives in time vanish
        first = torch.cat([0 * x[:, :1] + self.start, x[:, 1:]], dim=1)
        return self.before(first) + (self.network(x) - self.network(first))


class Windows(nn.Module):
    """A solution in pieces: u on consecutive intervals of time.

    Args:
        ends: of the windows, increasing.
        pieces: one network of (t, x) a window.

    Raises:
        TypeError: for ends that are no numbers, or pieces that are no modules.
        ValueError: for another number of ends than of pieces, or ends out of order.
    """

    def __init__(self, ends: Iterable[float], pieces: Iterable[nn.Module]) -> None:
        super().__init__()
        ends, pieces = held(ends), held(pieces)
        many(FINITE)("Windows: ends", ends)
        many(MODULE)("Windows: pieces", pieces)
        self.ends, self.pieces = tuple(ends), nn.ModuleList(pieces)
        if len(self.ends) != len(self.pieces):
            raise ValueError(f"{len(self.ends)} ends of {len(self.pieces)} windows: one a window")
        if not all(a < b for a, b in pairwise(self.ends)):
            raise ValueError(f"Windows: ends must increase, found {self.ends}")

    def forward(self, x: Any) -> Any:
        """u at points (t, x) of shape (N, 1 + d), or at a jet of them, each by its own window:
        (N, C). So it is judged by residuals, as any network is.
        """
        # By value alone: which window a point lies in has no derivative
        times = (x.rows[0] if isinstance(x, Jet) else x)[:, 0].contiguous()
        places = torch.bucketize(times, times.new_tensor(self.ends[:-1]))[:, None]
        # All windows at all points: choosing rows would tear a jet's points apart
        return sum(u(x) * (places == i).to(times) for i, u in enumerate(self.pieces))


def held(values: Any) -> Any:
    """An iterable's values, to be looked at more than once; anything else as it is."""
    return (
        list(values)
        if isinstance(values, Iterable) and not isinstance(values, (str, bytes))
        else values
    )


@takes(
    network=MODULE,
    problem=PROBLEM,
    count=whole(1),
    train=FUNCTION,
    initial=TEXT,
    velocity=optional(TEXT),
    hard=FLAG,
    features=optional(MODULE),
)
def march(
    network: nn.Module,
    problem: Problem,
    count: int,
    train: Callable[[nn.Module, Problem], Any],
    initial: str = "initial",
    *,
    velocity: str | None = None,
    hard: bool = False,
    features: nn.Module | None = None,
) -> Windows:
    """Solve a problem on so many time windows of equal length, one after the other.

    Args:
        network: where the first window starts from; it is not changed. Trained on that window
            (`window(problem, (0, D))`) beforehand, or on something like it, it saves time. What it
            does not train (the base of adapters, say) all windows share. Every later window starts
            from the one before, moved in time.
        problem: on a `TimeSpace`.
        count: of windows.
        train: trains a network on a problem: `fit` with an optimizer and a budget.
        initial: the term of the initial values.
        velocity: the term of the initial velocities u_t, where there is one.
        hard: whether the values are handed over exactly (`Continued`), not by a term of the loss.
            The i-th window then evaluates all networks before it.
        features: of the points, (t, x) -> (t, ...), whose further columns belong to the time of the
            whole problem (`CornerLayers`) and are not moved. `network` is one of features then.

    Raises:
        TypeError: for features that are no module.
        ValueError: for a problem without time or without these terms, fewer windows than one,
            another term that holds at the start only, or features that are trained or do not begin
            with t.
    """
    domain = timed(problem, initial)
    columns = 1 + domain.space.dim if features is None else columns_of(features, network, domain)
    ends = torch.linspace(domain.start, domain.end, count + 1, dtype=torch.float64).tolist()
    pieces: list[nn.Module] = []
    frozen: list[nn.Parameter] = []
    start_from = network
    for start, end in pairwise(ends):
        before = pieces[-1] if pieces else None
        offset = torch.zeros(columns, dtype=torch.float64)
        offset[0] = start - domain.start
        moving = Shifted(copied(start_from), offset)
        own = moving if features is None else nn.Sequential(features, moving)
        one = window(problem, (start, end), before, initial=initial, velocity=velocity)
        if hard and before is not None:
            terms = {name: term for name, term in one.terms.items() if name != initial}
            pieces.append(Continued(before, own, start))
            train(pieces[-1], replace(one, terms=terms))
        else:
            pieces.append(own)
            train(own, one)
        start_from = moving.network
        if hard:  # copied before it is frozen, since copies share what is frozen
            start_from = copied(moving.network)
            frozen += [p for p in own.parameters() if p.requires_grad]
            own.requires_grad_(False)
    for parameter in frozen:
        parameter.requires_grad_(True)
    return Windows(ends[1:], pieces)


def columns_of(features: nn.Module, network: nn.Module, domain: TimeSpace) -> int:
    """How many features there are, t the first of them."""
    if any(p.requires_grad for p in features.parameters()):
        raise ValueError(
            "march: features have parameters that are trained, and all windows share them: put "
            "them into the network, or freeze them with requires_grad_(False)"
        )
    x = domain.interior(3, torch.Generator().manual_seed(0), torch.float64, "cpu")
    x = x.to(**placed_like(next(network.parameters(), x)))
    with torch.no_grad():
        found = features(x)
    if not torch.equal(found[:, 0], x[:, 0]):
        raise ValueError(
            "march: the first of the features must be t, as it is of CornerLayers: it is what "
            "windows move"
        )
    return int(found.shape[1])


@takes(
    problem=PROBLEM,
    interval=increasing(FINITE),
    before=optional(FUNCTION),
    weight=POSITIVE,
    initial=TEXT,
    velocity=optional(TEXT),
)
def window(
    problem: Problem,
    interval: tuple[float, float],
    before: Function | None = None,
    weight: float = 10.0,
    initial: str = "initial",
    velocity: str | None = None,
) -> Problem:
    """The problem on one interval of time.

    Args:
        interval: of time.
        before: the solution up to its start, whose values there are the initial condition; None:
            the problem's own.
        weight: of the mean square of that condition.
        initial: the term of the initial values.
        velocity: the term of the initial velocities u_t, where there is one.

    Raises:
        ValueError: for a problem without time or without these terms, or with another term that
            holds at the start only and would be asked for at the start of every window.
    """
    domain = timed(problem, initial)
    if velocity is not None and velocity not in problem.terms:
        known = list(problem.terms)
        raise ValueError(f"{problem.name} has terms {known}, and no velocity {velocity!r}")
    terms = {name: moved(term, domain, interval) for name, term in problem.terms.items()}
    if before is not None:
        check_start(problem, domain, {initial, velocity})
        terms[initial] = continued(terms[initial], before, weight, 0)
        if velocity is not None:
            terms[velocity] = continued(terms[velocity], before, weight, 1)
    return replace(problem, domain=TimeSpace(*interval, domain.space), terms=terms)


def check_start(problem: Problem, domain: TimeSpace, known: set[str | None]) -> None:
    """Every term that holds at the start only is one of those that are handed over."""
    for name in set(problem.terms) - known:
        points: Any = problem.terms[name].points
        # A few points tell: a term of the start has no other time
        x = points(4, torch.Generator().manual_seed(0), torch.float64, "cpu")
        if (x[:, 0] == domain.start).all():
            raise ValueError(
                f"the term {name!r} of {problem.name} holds at the start of time: if it is that of "
                f"the velocities, say velocity={name!r}; windows hand over values and velocities"
            )


def timed(problem: Problem, initial: str) -> TimeSpace:
    """The domain of a problem in time."""
    if not isinstance(problem.domain, TimeSpace):
        raise ValueError(
            f"{problem.name} has domain {type(problem.domain).__name__}; windows need a TimeSpace"
        )
    if initial not in problem.terms:
        raise ValueError(
            f"{problem.name} has terms {list(problem.terms)} and none {initial!r}: windows replace "
            "the initial values, so give these a term of their own and say initial=its name"
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


def continued(term: Term, before: Function, weight: float, order: int) -> Term:
    """The order-th derivative in t of u is that of before, at the term's points."""

    def at(u: Function, x: Tensor) -> Tensor:
        if order == 0:
            return u(x)
        along = torch.zeros_like(x[:1])
        along[:, 0] = 1.0
        return taylor(u, x, order, along)[-1][0]

    def residual(u: Function, x: Tensor) -> tuple[Tensor, ...]:
        # What was solved before is data to this window
        with torch.no_grad():
            given = at(before, x)
        return tuple((weight**0.5 * (at(u, x) - given)).unbind(1))

    return replace(term, residual=residual)


def copied(network: nn.Module) -> nn.Module:
    """A copy that trains parameters of its own; those that are frozen are shared."""
    # Frozen bases are large, and the same in all windows
    memo: dict[int, Any] = {id(p): p for p in network.parameters() if not p.requires_grad}
    return copy.deepcopy(network, memo)
