"""How the damping of a step follows from the last one: laws (lambda, ratio) -> next lambda.

The ratio is that of the actual to the predicted decrease of the loss (`search.model`); -inf stands
for a step that failed, and NaN counts as one: lambda must rise, or the same step fails for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kfac_pinn.jacobian.linearization import Linearization

__all__ = ["MARQUARDT", "MARTENS", "NIELSEN", "DampingLaw", "KeepDamping", "Marquardt", "scale_of"]


class DampingLaw(Protocol):
    """The next damping."""

    def __call__(self, damping: float, ratio: float) -> float:
        """lambda of the next step, after one with this lambda kept `ratio` of its promise."""


@dataclass(frozen=True)
class Marquardt:
    """Damping falls while the model is trusted, rises where it fails.

        lambda <- lambda / fall if ratio > high,    lambda rise if ratio < low,    else lambda

    Args:
        low, high: the ratios between which lambda stays.
        fall, rise: factors of one change.
        least: the smallest lambda.

    Source: Levenberg (1944), Marquardt (1963); Nocedal & Wright, section 10.3.
    """

    low: float = 0.25
    high: float = 0.75
    fall: float = 3.0
    rise: float = 3.0
    least: float = 1e-16

    def __call__(self, damping: float, ratio: float) -> float:
        """The next lambda; a ratio that is not a number counts as failure."""
        if ratio > self.high:
            return max(damping / self.fall, self.least)
        return damping if ratio >= self.low else damping * self.rise


@dataclass(frozen=True)
class KeepDamping:
    """lambda stays as it is."""

    def __call__(self, damping: float, ratio: float) -> float:
        """lambda."""
        return damping


MARQUARDT = Marquardt()
MARTENS = Marquardt(fall=1.5, rise=1.5)  # Martens (2010), section 4.1
NIELSEN = Marquardt(fall=3.0, rise=2.0)  # the factors of Nielsen (1999)


def scale_of(linearization: Linearization) -> float:
    """||J g||^2 / ||g||^2, g = grad L: the curvature along the gradient, the unit of a damping."""
    g = linearization.gradient
    return float((linearization @ g).square().sum() / g.square().sum())
