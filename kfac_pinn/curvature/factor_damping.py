"""How the damping enters a pair of Kronecker factors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["DampingRule", "EqualDamping", "TraceNormDamping"]


class DampingRule(Protocol):
    """How the damping lambda enters the factors."""

    def __call__(self, A: Tensor, B: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """The damped pair."""


@dataclass(frozen=True)
class EqualDamping:
    """(A + lambda I, B + lambda I), eq. (16); A (d_in + 1, d_in + 1), B (d_out, d_out)."""

    def __call__(self, A: Tensor, B: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        return shifted(A, damping), shifted(B, damping)


@dataclass(frozen=True)
class TraceNormDamping:
    """(A + pi sqrt(lambda) I, B + sqrt(lambda) / pi I), pi^2 = (tr A / dim A) / (tr B / dim B).

    Source: Martens & Grosse (2015), section 6.3.
    """

    def __call__(self, A: Tensor, B: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        a, b = float(A.diagonal().mean()), float(B.diagonal().mean())
        # A factor that vanishes, of a frozen or dead layer, says nothing about units
        pi, root = math.sqrt(a / b) if a > 0 and b > 0 else 1.0, math.sqrt(damping)
        return shifted(A, pi * root), shifted(B, root / pi)


def shifted(matrix: Tensor, shift: float) -> Tensor:
    """matrix + shift I."""
    result = matrix.clone()
    result.diagonal().add_(shift)
    return result
