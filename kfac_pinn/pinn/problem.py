"""A PDE problem as data: points, residuals, and a reference solution to measure errors against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict

import torch
from torch import Generator, Tensor

from kfac_pinn import settings
from kfac_pinn.pinn.domains import Device, Domain
from kfac_pinn.processes import Group
from kfac_pinn.settings import (
    FINITE,
    FUNCTION,
    GENERATOR,
    SIZES,
    TENSOR,
    TEXT,
    WIDTHS,
    instance,
    many,
    named,
    optional,
    takes,
    whole,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "PROBLEM",
    "Batch",
    "InverseProblem",
    "Problem",
    "Term",
    "Unknown",
    "is_domain",
    "named_equations",
    "placed_like",
    "relative_l2",
    "root_mean_square_error",
]

Function: TypeAlias = Callable[[Any], Any]
Points: TypeAlias = Callable[[int, "Generator | None", "torch.dtype | None", Device], Tensor]


class Place(TypedDict):
    """Where points are, and in which precision."""

    dtype: torch.dtype
    device: torch.device


def placed_like(parameter: Tensor) -> Place:
    """Of the points for a network with this parameter: points are real where networks are not.

    problem.sample(generator, sizes, **placed_like(p)), x.to(**placed_like(p))
    """
    return {"dtype": parameter.dtype.to_real(), "device": parameter.device}


@dataclass(frozen=True)
class Term:
    """One condition on u: its residual vanishes at the points.

    Attributes:
        points: a sampler, called as points(n, generator, dtype, device) -> (n, d).
        residual: (u, x) -> (N,) or (N, 1); a tuple of them for a system; or what else the
            optimizers take. Weights are factors sqrt(w) written here.
        size: how many points to draw unless told otherwise.

    Raises:
        TypeError, ValueError: for what is none of these; it is named.
    """

    points: Points
    residual: Callable[[Function, Tensor], Any]
    size: int

    def __post_init__(self) -> None:
        settings.check(self, points=FUNCTION, residual=FUNCTION, size=whole(1))


TERM = instance(Term, "a Term, e.g. Term(box.interior, residual, 100)")


def is_domain(name: str, value: Any) -> None:
    """A set to draw points from."""
    if isinstance(value, type) or not callable(getattr(value, "interior", None)):
        raise TypeError(f"{name} must be a domain, e.g. Box.cube(2), found {value!r}")


@dataclass(frozen=True)
class Problem:
    """Find u such that every term's residual vanishes.

    Attributes:
        name: for reports.
        domain: where errors are measured.
        terms: the conditions by name; the loss is sum_k 1/2 mean(r_k^2).
        solution: the exact (or reference) u, (N, d) -> (N, 1), or None where there is none.
        networks: sizes (d, hidden ..., 1) of the networks it was published with, small to large.
        resample_every: steps after which the published runs drew new points; None is never.

    Raises:
        TypeError, ValueError: for what is none of these; it is named.
    """

    name: str
    domain: Domain
    terms: Mapping[str, Term]
    solution: Callable[[Tensor], Tensor] | None = None
    networks: tuple[tuple[int, ...], ...] = ()
    resample_every: int | None = None

    def __post_init__(self) -> None:
        settings.check(self, name=TEXT, domain=is_domain, terms=named(TERM))
        settings.check(self, solution=optional(FUNCTION), networks=many(WIDTHS, 0))
        settings.check(self, resample_every=optional(whole(1)))

    @takes(generator=optional(GENERATOR), sizes=SIZES)
    def sample(
        self,
        generator: Generator | None = None,
        sizes: Mapping[str, int] | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Batch:
        """New points for every term; `sizes` replaces the terms' own sizes by name.

        Raises:
            KeyError: if `sizes` names a term that the problem does not have.
        """
        sizes = sizes or {}
        if unknown := set(sizes) - set(self.terms):
            raise KeyError(f"{self.name} has terms {list(self.terms)}, not {sorted(unknown)}")
        points = {
            name: term.points(sizes.get(name, term.size), generator, dtype, device)
            for name, term in self.terms.items()
        }
        return Batch(self.terms, points)

    @takes(generator=optional(GENERATOR), n=optional(whole(0)))
    def held_out(
        self,
        generator: Generator | None = None,
        n: int | None = None,
        dtype: torch.dtype | None = None,
        device: Device = None,
    ) -> Tensor:
        """Points of the domain to measure errors on: ten times the largest term's by default."""
        n = 10 * max(term.size for term in self.terms.values()) if n is None else n
        return self.domain.interior(n, generator, dtype, device)

    def value(self, model: Function, x: Tensor) -> Tensor:
        """What a model that is trained on it says at points (N, d)."""
        found: Tensor = model(x)
        return found


PROBLEM = settings.instance(Problem, "a Problem, e.g. poisson_2d()")


class Numbers(NamedTuple):
    """Those of an unknown."""

    guess: float
    truth: float


class Unknown(Numbers):
    """A number to be found: where the search starts (guess), and what it is (truth).

    Raises:
        TypeError, ValueError: for what is no finite number.
    """

    def __new__(cls, guess: float, truth: float) -> Self:
        """A tuple is what it is made of."""
        found = super().__new__(cls, guess, truth)
        settings.check(found, guess=FINITE, truth=FINITE)
        return found


@dataclass(frozen=True)
class InverseProblem(Problem):
    """Find numbers too: the residuals read them as attributes of the model (`WithUnknowns`).

    Attributes:
        name, domain, terms, solution, networks, resample_every: as of `Problem`.
        unknowns: by the name of the attribute.
    """

    unknowns: Mapping[str, Unknown] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.check(
            self, unknowns=named(instance(Unknown, "an Unknown, Unknown(guess=1.0, truth=0.5)"))
        )


@dataclass(frozen=True)
class Batch:
    """The points of every term, drawn once.

    Attributes:
        terms: what is asked of them.
        points: (N_k, d) by the name of the term: plain tensors, to be stored in checkpoints.
    """

    terms: Mapping[str, Term] = field(repr=False)
    points: dict[str, Tensor]

    def __post_init__(self) -> None:
        settings.check(self, terms=named(TERM), points=named(TENSOR))

    def share(self, processes: Group) -> Batch:
        """The part of one process, where several have the same batch.

        Raises:
            ValueError: for a term of fewer points than processes.
        """
        for name, x in self.points.items():
            if len(x) < processes.count:
                raise ValueError(
                    f"the term {name!r} has {len(x)} points for {processes.count} processes: give "
                    "each of them one, at least"
                )
        return replace(self, points={name: processes.share(x) for name, x in self.points.items()})

    def residuals(self, u: Function) -> Callable[[], dict[str, Any]]:
        """The closure an optimizer takes: called without arguments it returns r_k(u) by name."""

        def closure() -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, term in self.terms.items():
                residual = term.residual(u, self.points[name])
                found.update(named_equations(name, residual))
            return found

        return closure


@takes(u=FUNCTION, solution=FUNCTION, x=TENSOR)
def relative_l2(u: Function, solution: Function, x: Tensor) -> float:
    """||u - u*|| / ||u*|| over the points x (N, d), u* the solution.

    Raises:
        ValueError: if u(x) and u*(x) differ in shape (N, 1) against (N,) would broadcast.
    """
    error, size = squares(u, solution, x)
    return float((error / size).sqrt())


@takes(u=FUNCTION, solution=FUNCTION, x=TENSOR)
def root_mean_square_error(u: Function, solution: Function, x: Tensor) -> float:
    """sqrt(mean (u - u*)^2), u* the solution at x (N, d): what tables often call relative L2.

    Raises:
        ValueError: if u(x) and u*(x) differ in shape.
    """
    return float((squares(u, solution, x)[0] / solution(x).numel()).sqrt())


def squares(u: Function, solution: Function, x: Tensor) -> Tensor:
    """||u - u*||^2 and ||u*||^2 over the points x (N, d), (2,).

    Raises:
        ValueError: if u(x) and u*(x) differ in shape.
    """
    with torch.no_grad():
        found, expected = u(x), solution(x)
    if found.shape != expected.shape:
        raise ValueError(
            f"the model returned shape {tuple(found.shape)} and the solution "
            f"{tuple(expected.shape)}; return (N, 1) from both"
        )
    return torch.stack([(found - expected).square().sum(), expected.square().sum()])


def named_equations(name: str, residual: Any) -> dict[str, Any]:
    """The residual by name; those of a system are numbered."""
    if isinstance(residual, (tuple, list)):
        return {f"{name} {index}": r for index, r in enumerate(residual)}
    return {name: residual}
