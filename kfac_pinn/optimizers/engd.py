"""Energy natural gradient descent: exact Gauss-Newton directions, whole or in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kfac_pinn.curvature.kronecker_factors import Average
from kfac_pinn.curvature.sample_space import (
    ExactKernel,
    Kernel,
    NaturalGradient,
    sample_space,
)
from kfac_pinn.jacobian.linearization import Block, Linearization
from kfac_pinn.linalg import damped_inverse
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.geodesic import Geodesic
from kfac_pinn.search.line import GridSearch, Objective, Search, Step

__all__ = ["ENGD", "Diagonal", "Full", "Gramian", "PerLayer", "SampleSpace"]

Memory: TypeAlias = dict[str, Any]
EXACT = ExactKernel()


class ENGD(LeastSquaresOptimizer):
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
        acceleration: `Geodesic()` bends the path by the residual's second derivative.

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
        acceleration: Geodesic | None = None,
    ) -> None:
        if not damping >= 0:
            raise ValueError(f"damping must not be negative, found {damping}")
        super().__init__(params, {"lr": lr, "damping": damping}, search or GridSearch())
        self.gramian = gramian or Full()
        self.acceleration = acceleration

    def direction(self, linearization: Linearization) -> Tensor:
        """-(G + lambda I)^-1 (J^T r + e), e the linear term of convex losses."""
        return -self.natural_gradient(linearization)(
            linearization.residual, linearization.linear_term
        )

    def natural_gradient(self, linearization: Linearization) -> NaturalGradient:
        """(u, e) -> (G + lambda I)^-1 (J^T u + e), factored; brings the averages up to date."""
        memory = self.gramian.update(self.common.get("gramian", {}), linearization)
        self.common["gramian"] = memory
        return self.gramian.factor(memory, linearization, self.expand("damping"))

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The search along the direction, or along the curve that starts with it."""
        if self.acceleration is None:
            return super().propose(linearization, objective)
        solve = self.natural_gradient(linearization)
        velocity = -solve(linearization.residual, linearization.linear_term) * self.expand("lr")
        if not torch.isfinite(velocity).all():
            return Step(velocity, info={"reason": "the direction is not finite"})
        return self.acceleration.search(
            self.search, (objective, linearization), velocity, lambda u: solve(u, None)
        )


class Gramian(Protocol):
    """What is kept of G = J^T J, and how it is inverted."""

    def update(self, memory: Memory, linearization: Linearization) -> Memory:
        """What to remember for the next step, from what was remembered of the last one."""

    def factor(
        self, memory: Memory, linearization: Linearization, damping: Tensor
    ) -> NaturalGradient:
        """(u, e) -> (G + diag(damping))^-1 (J^T u + e), damping (P,)."""


@dataclass(frozen=True)
class Full:
    """The whole of G, inverted in parameter space (P^3 / 3 operations) or sample space (R^3 / 3).

    The smaller side is chosen; both give the same step to rounding. An average over the steps, or
    groups that differ in damping, need parameter space.

    Args:
        average: of G over the steps, e.g. `Average(0.9)`; None: the current one only.
    """

    average: Average | None = None

    def update(self, memory: Memory, linearization: Linearization) -> Memory:
        if self.average is None:
            return {}
        return {"whole": averaged(self.average, memory.get("whole"), linearization.gramian())}

    def factor(
        self, memory: Memory, linearization: Linearization, damping: Tensor
    ) -> NaturalGradient:
        if "whole" in memory:
            columns = [slice(0, linearization.size)]
            return parameter_space(linearization, columns, memory["whole"], damping)
        return smaller_side(linearization, None, damping)


@dataclass(frozen=True)
class PerLayer:
    """The diagonal blocks of G, one a layer (weight and bias together) or other leaf.

    Args:
        average: of each block over the steps; None: the current one only.
    """

    average: Average | None = None

    def update(self, memory: Memory, linearization: Linearization) -> Memory:
        if self.average is None:
            return {}
        new = {name(block): linearization.gramian(block) for block in linearization.blocks}
        averages = {key: averaged(self.average, memory.get(key), new[key]) for key in new}
        return {**memory, **averages}

    def factor(
        self, memory: Memory, linearization: Linearization, damping: Tensor
    ) -> NaturalGradient:
        solves = []
        for block in linearization.blocks:
            if name(block) in memory:
                gramian = memory[name(block)]
                solve = parameter_space(linearization, block.slices, gramian, damping)
            else:
                solve = smaller_side(linearization, block, damping)
            solves.append(solve)
        return lambda u, e: torch.stack([solve(u, e) for solve in solves]).sum(0)


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of G.

    Args:
        average: over the steps; None: the current one only.
    """

    average: Average | None = None

    def update(self, memory: Memory, linearization: Linearization) -> Memory:
        diagonal = linearization.gramian_diagonal()
        if self.average is not None:
            diagonal = averaged(self.average, memory.get("diagonal"), diagonal)
        return {"diagonal": diagonal}

    def factor(
        self, memory: Memory, linearization: Linearization, damping: Tensor
    ) -> NaturalGradient:
        damped = memory["diagonal"] + damping
        inverse = torch.where(damped > 0, 1 / damped, 0)
        return lambda u, e: inverse * pulled_back(linearization, u, e)


@dataclass(frozen=True)
class SampleSpace:
    """The whole of G by its kernel J J^T, which may be an approximate one.

    Args:
        kernel: `ExactKernel()`, or `NystromKernel()` for many points.
    """

    kernel: Kernel = EXACT

    def update(self, memory: Memory, linearization: Linearization) -> Memory:
        return {"step": memory.get("step", -1) + 1}

    def factor(
        self, memory: Memory, linearization: Linearization, damping: Tensor
    ) -> NaturalGradient:
        shift = common_value(damping)
        if shift is None:
            raise ValueError(
                "the kernel J J^T has one damping for all parameters, but the groups differ; set "
                'group["damping"] to one value, or use Full() or PerLayer()'
            )
        solve = self.kernel.factor(linearization, shift, memory["step"])
        return sample_space(linearization, solve, shift)


def smaller_side(
    linearization: Linearization, block: Block | None, damping: Tensor
) -> NaturalGradient:
    """The solve for one block of G, or all of it, with the smaller of the two matrices."""
    columns = [slice(0, linearization.size)] if block is None else block.slices
    size = linearization.size if block is None else block.size
    shift = common_value(taken(damping, columns))
    if shift is None or len(linearization.residual) >= size:
        gramian = linearization.gramian(block)
        return parameter_space(linearization, columns, gramian, damping)
    part = linearization if block is None else linearization.restrict(block)
    solve = sample_space(part, EXACT.factor(part, shift, 0), shift)
    return lambda u, e: solve(u, None if e is None else put(taken(e, columns), columns, like=e))


def parameter_space(
    linearization: Linearization, columns: Sequence[slice], gramian: Tensor, damping: Tensor
) -> NaturalGradient:
    """(u, e) -> (G + damping)^-1 (J^T u + e) on some columns of J, zero on the others."""
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
    if old is not None and old.shape != new.shape:
        old = None
    if old is None and new.ndim == 1 and average.start is not None:
        old = torch.full_like(new, average.start)  # the diagonal of the identity
    return average(old, new)


def common_value(values: Tensor) -> float | None:
    """The value that all entries have, or None."""
    lowest, highest = values.aminmax()
    return float(lowest) if lowest == highest else None


def name(block: Block) -> str:
    """A name that survives saving: where the block begins in the flat vector."""
    return f"from {block.slices[0].start}"
