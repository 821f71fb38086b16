"""Energy natural gradient descent: exact Gauss-Newton directions, whole or in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.curvature.kronecker_factors import Average
from kfac_pinn.curvature.sample_space import (
    ExactKernel,
    Kernel,
    NaturalGradient,
    natural_gradient,
)
from kfac_pinn.jacobian.layers import Block
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import damped_inverse
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.search.line import GridSearch, Search
from kfac_pinn.settings import having, optional

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ENGD", "Diagonal", "Full", "Gramian", "PerLayer", "SampleSpace"]

Averages: TypeAlias = dict[Tensor, Tensor]  # of parts of G, by the first parameter of each
EXACT = ExactKernel()
AVERAGE = optional(having("__call__", "Average(0.9)"))


class ENGD(DirectionOptimizer):
    """The natural gradient of the residuals, with a line search.

        d = -(G + lambda I)^-1 grad L,     G = J^T J,     theta <- theta + length * lr * d

    Take it for networks of up to a few thousand parameters, or (in sample space) for as many
    points; it needs an affordable kernel or Gramian, not a small network. With lambda = 0 the
    inverse is the pseudo-inverse, as first published.

    Args:
        params: parameters, named parameters or groups; lr and damping may differ by group.
        lr: multiplies the direction before the search.
        damping: lambda >= 0.
        gramian: how much of G is used: `Full()`, `PerLayer()`, `Diagonal()`, each optionally
            averaged over the steps; or `SampleSpace(kernel)` for approximate kernels.
        search: the step length; by default the best of a grid, as published. `Armijo()` was as good
            with a twentieth of the closure calls.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Mueller & Zeinhofer (2023), arXiv:2302.13163; per layer and diagonal: Dangel, Mueller &
    Zeinhofer (2024), arXiv:2405.15603; sample space: Guzman-Cordero et al. (2025),
    arXiv:2505.12149.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        damping: float = 1e-10,
        gramian: Gramian | None = None,
        search: Search | None = None,
        **common: Unpack[Common],
    ) -> None:
        search = GridSearch() if search is None else search
        super().__init__(params, {"lr": lr, "damping": damping}, search, **common)
        self.gramian = Full() if gramian is None else gramian
        check_parts(self, "gramian")

    def direction(self, linearization: Linearization) -> Tensor:
        """-(G + lambda I)^-1 (J^T r + e), e the linear term of convex losses, eq. (23)."""
        # The ridge is exact: it goes where the damping goes, and into no average
        averages = self._averages(linearization)
        damping = torch.as_tensor(linearization.damped(self.expand("damping")))
        solve = self.gramian.factor(averages, linearization, damping, self.steps)
        return -solve(linearization.residual, linearization.linear_term)

    def _averages(self, linearization: Linearization) -> Averages:
        """Those of the parts of G, brought up to date."""
        kept = {p: self.state[p].get("gramian") for p in self.parameters}
        known = {p: average for p, average in kept.items() if average is not None}
        averages = self.gramian.update(known, linearization)
        for p, average in averages.items():
            self.state[p]["gramian"] = average
        return averages


class Gramian(Protocol):
    """What is kept of G = J^T J, and how it is inverted."""

    def update(self, averages: Averages, linearization: Linearization) -> Averages:
        """The averages over the steps with this one, of what is averaged."""

    def factor(
        self, averages: Averages, linearization: Linearization, damping: Tensor, step: int
    ) -> NaturalGradient:
        """(u, e) -> (G + diag(damping))^-1 (J^T u + e), damping (P,); `step` seeds random parts."""


@dataclass(frozen=True)
class Averaged:
    """A part of G that may be averaged over the steps; None: the current one only."""

    average: Average | None = None

    def __post_init__(self) -> None:
        settings.check(self, average=AVERAGE)


@dataclass(frozen=True)
class Full(Averaged):
    """The whole of G, inverted in parameter space (P^3 / 3 operations) or sample space (R^3 / 3).

    The smaller side is chosen; both give the same step to rounding. An average over the steps, or
    groups that differ in damping, need parameter space.

    Args:
        average: of G over the steps, e.g. `Average(0.9)`; None: the current one only.
    """

    def update(self, averages: Averages, linearization: Linearization) -> Averages:
        if self.average is None:
            return {}
        owner = linearization.parameters[0]
        return {owner: averaged(self.average, averages.get(owner), linearization.gramian())}

    def factor(
        self, averages: Averages, linearization: Linearization, damping: Tensor, step: int
    ) -> NaturalGradient:
        if self.average is None:
            return smaller_side(linearization, None, damping)
        columns = [slice(0, linearization.size)]
        gramian = averages[linearization.parameters[0]]
        return parameter_space(linearization, columns, gramian, damping)


@dataclass(frozen=True)
class PerLayer(Averaged):
    """The diagonal blocks of G, one a layer (weight and bias together) or other leaf.

    Args:
        average: of each block over the steps; None: the current one only.
    """

    def update(self, averages: Averages, linearization: Linearization) -> Averages:
        if self.average is None:
            return {}
        owners = {block.parameters[0]: block for block in linearization.blocks}
        return {
            p: averaged(self.average, averages.get(p), linearization.gramian(block))
            for p, block in owners.items()
        }

    def factor(
        self, averages: Averages, linearization: Linearization, damping: Tensor, step: int
    ) -> NaturalGradient:
        solves = [self._solve(b, averages, linearization, damping) for b in linearization.blocks]
        return lambda u, e: torch.stack([solve(u, e) for solve in solves]).sum(0)

    def _solve(
        self, block: Block, averages: Averages, linearization: Linearization, damping: Tensor
    ) -> NaturalGradient:
        if self.average is None:
            return smaller_side(linearization, block, damping)
        gramian = averages[block.parameters[0]]
        return parameter_space(linearization, block.slices, gramian, damping)


@dataclass(frozen=True)
class Diagonal(Averaged):
    """The diagonal of G.

    Args:
        average: over the steps; None: the current one only.
    """

    def update(self, averages: Averages, linearization: Linearization) -> Averages:
        if self.average is None:
            return {}
        owner, diagonal = linearization.parameters[0], linearization.gramian_diagonal()
        return {owner: averaged(self.average, averages.get(owner), diagonal)}

    def factor(
        self, averages: Averages, linearization: Linearization, damping: Tensor, step: int
    ) -> NaturalGradient:
        owner = linearization.parameters[0]
        diagonal = averages[owner] if self.average is not None else linearization.gramian_diagonal()
        damped = diagonal + damping
        # The pseudo-inverse: a parameter that moves no residual stays where it is
        inverse = torch.where(damped > 0, 1 / damped, 0)
        return lambda u, e: inverse * pulled_back(linearization, u, e)


@dataclass(frozen=True)
class SampleSpace:
    """The whole of G by its kernel J J^T, which may be an approximate one.

    Args:
        kernel: `ExactKernel()`; `NystromKernel()` or `PivotedKernel()` for many points.
    """

    kernel: Kernel = EXACT

    def __post_init__(self) -> None:
        check_parts(self, "kernel")

    def update(self, averages: Averages, linearization: Linearization) -> Averages:
        return {}

    def factor(
        self, averages: Averages, linearization: Linearization, damping: Tensor, step: int
    ) -> NaturalGradient:
        """Raises `ValueError` for groups that differ in damping."""
        shift = common_value(damping)
        if shift is None:
            raise ValueError(
                "the kernel J J^T has one damping for all parameters, but the groups differ; set "
                'group["damping"] to one value, or use Full() or PerLayer()'
            )
        solve = self.kernel.factor(linearization, shift, step)
        return natural_gradient(linearization, solve, shift)


def smaller_side(
    linearization: Linearization, block: Block | None, damping: Tensor
) -> NaturalGradient:
    """The solve for one block of G, or all of it, with the smaller of the two matrices."""
    columns = [slice(0, linearization.size)] if block is None else block.slices
    size = linearization.size if block is None else block.size
    shift = common_value(taken(damping, columns))
    # Woodbury needs one damping; with several only the parameters' side can be solved
    if shift is None or len(linearization.residual) >= size:
        gramian = linearization.gramian(block)
        return parameter_space(linearization, columns, gramian, damping)
    part = linearization if block is None else linearization.restrict(block)
    solve = natural_gradient(part, EXACT.factor(part, shift, 0), shift)
    return lambda u, e: solve(u, None if e is None else put(taken(e, columns), columns, like=e))


def parameter_space(
    linearization: Linearization, columns: Sequence[slice], gramian: Tensor, damping: Tensor
) -> NaturalGradient:
    """(u, e) -> (G + damping)^-1 (J^T u + e) on some columns of J, zero on the others."""
    # Both sides cut the same singular values of J, so that their steps agree where G is singular
    rank = max(len(linearization.residual), linearization.size)
    rtol = rank * torch.finfo(gramian.dtype).eps
    solve = damped_inverse(gramian, taken(damping, columns), rtol)

    def apply(u: Tensor, e: Tensor | None) -> Tensor:
        v = pulled_back(linearization, u, e)
        return put(solve(taken(v, columns)), columns, like=v)

    return apply


def pulled_back(linearization: Linearization, u: Tensor, e: Tensor | None) -> Tensor:
    """J^T u + e."""
    v = linearization.vjp(u)
    return v if e is None else v + e


def taken(v: Tensor, columns: Sequence[slice]) -> Tensor:
    """The entries of a flat vector at some columns, one after the other."""
    return torch.cat([v[place] for place in columns])


def put(values: Tensor, columns: Sequence[slice], like: Tensor) -> Tensor:
    """The reverse of `taken`: a flat vector, zero elsewhere."""
    out = torch.zeros_like(like)
    parts = values.split([place.stop - place.start for place in columns])
    for place, part in zip(columns, parts, strict=True):
        out[place] = part
    return out


def averaged(average: Average, old: Tensor | None, new: Tensor) -> Tensor:
    """decay old + (1 - decay) new; starts again where the set of parameters has changed."""
    return average(old if old is not None and old.shape == new.shape else None, new)


def common_value(values: Tensor) -> float | None:
    """The value that all entries have, or None."""
    lowest, highest = values.aminmax()
    return float(lowest) if lowest == highest else None
