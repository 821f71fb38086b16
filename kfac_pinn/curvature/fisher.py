"""Which vector of the residual space is sent backwards: the types of the Fisher matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.linalg import generator_for
from kfac_pinn.settings import INTEGER

__all__ = ["Cotangents", "Empirical", "Fisher", "ForwardOnly", "MonteCarlo", "Type2"]

Cotangents: TypeAlias = Sequence["Tensor | float | None"]


class Fisher(Protocol):
    """Which vector of the residual space is sent backwards through the network, eq. (15)."""

    def cotangents(self, linearization: Linearization, step: int) -> Cotangents:
        """One entry a term, (N,) or a number: g_n is multiplied by it; None: B is the identity."""


@dataclass(frozen=True)
class Type2:
    """g_n as it is: the exact Gauss-Newton curvature of a square."""

    def cotangents(self, linearization: Linearization, step: int) -> Cotangents:
        return [1.0] * len(linearization.terms)


@dataclass(frozen=True)
class MonteCarlo:
    """eps_n g_n with eps_n ~ N(0, 1): equal to type-2 in expectation.

    Args:
        seed: together with the number of the step it fixes the sample, so that runs resume exactly.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        settings.check(self, seed=INTEGER)

    def cotangents(self, linearization: Linearization, step: int) -> Cotangents:
        generator = generator_for(self.seed, step)
        like, totals = linearization.terms[0].residual, linearization.totals
        # Drawn on the CPU in float64: the same numbers on every device and in every dtype
        sample = torch.randn(sum(totals), generator=generator, dtype=torch.float64)
        parts = zip(sample.to(like).split(totals), linearization.places, strict=True)
        return [part[place] for part, place in parts]


@dataclass(frozen=True)
class Empirical:
    """r_n g_n: the gradient of 1/2 r_n^2 itself."""

    def cotangents(self, linearization: Linearization, step: int) -> Cotangents:
        return [term.residual for term in linearization.terms]


@dataclass(frozen=True)
class ForwardOnly:
    """B = I: no curvature of what follows the layer."""

    def cotangents(self, linearization: Linearization, step: int) -> Cotangents:
        return [None] * len(linearization.terms)
