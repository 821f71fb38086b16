"""How the damping of a step follows from the last one: laws (lambda, ratio) -> next lambda.

The ratio is that of the actual to the predicted decrease of the loss (`search.model`); -inf stands
for a step that failed, and NaN counts as one: lambda must rise, or the same step fails for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from kfac_pinn import settings
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.settings import FINITE, INSIDE, NOT_NEGATIVE, at_least

__all__ = [
    "MARQUARDT",
    "MARTENS",
    "NIELSEN",
    "DampingLaw",
    "KeepDamping",
    "Marquardt",
    "Towards",
    "scale_of",
]

TINY = torch.finfo(torch.float64).tiny


class DampingLaw(Protocol):
    """The next damping."""

    def __call__(self, damping: float, ratio: float) -> float:
        """lambda of the next step, after one with this lambda kept `ratio` of its promise."""


@dataclass(frozen=True)
class Marquardt:
    """Damping falls while the model is trusted, rises where it fails, eq. (27).

        lambda <- lambda / fall if ratio > high,    lambda rise if ratio < low,    else lambda

    Args:
        low, high: the ratios between which lambda stays.
        fall, rise: factors of one change.
        least: the smallest lambda.

    Source: Levenberg (1944), Marquardt (1963); Nocedal & Wright, section 10.3.
    """

    low: float = 0.25  # between a quarter and three: Nocedal & Wright, algorithm 4.1
    high: float = 0.75
    fall: float = 3.0
    rise: float = 3.0
    least: float = TINY  # a bound with a meaning depends on the units: optimizers have one

    def __post_init__(self) -> None:
        settings.check(self, low=FINITE, fall=at_least(1), rise=at_least(1), least=NOT_NEGATIVE)
        settings.check(self, high=at_least(self.low))

    def __call__(self, damping: float, ratio: float) -> float:
        """The next lambda; a ratio that is not a number counts as failure."""
        # No test for nan or -inf: both comparisons are false, and lambda rises
        if ratio > self.high:
            return max(damping / self.fall, self.least)
        return damping if ratio >= self.low else damping * self.rise


@dataclass(frozen=True)
class Towards:
    """Damping moves until the ratio is at a target, at which few steps fail.

        lambda <- lambda gain^c,    c = (target - ratio) / (1 - target) within [-1, 1];
        lambda rise after a step that raised the loss

    `Marquardt` lowers lambda as long as steps succeed, so that the next one fails: a third of all.

    Args:
        target: of the ratio, in (0, 1).
        gain: the most that lambda changes after a step that succeeded.
        rise: factor after one that failed.
        least: the smallest lambda.
    """

    # Measured (docs/design_notes.md): 13 of 200 steps go back, settings near it differ little
    target: float = 0.7
    gain: float = 2.0
    # Two steps of `gain`, since a failure costs an evaluation
    rise: float = 4.0
    least: float = TINY  # as of `Marquardt`

    def __post_init__(self) -> None:
        settings.check(self, target=INSIDE, least=NOT_NEGATIVE, gain=at_least(1), rise=at_least(1))

    def __call__(self, damping: float, ratio: float) -> float:
        """The next lambda; a ratio that is not a number counts as failure."""
        # nan as well as a rise of the loss
        if not ratio > 0:
            return damping * self.rise
        miss = (self.target - ratio) / (1 - self.target)
        return max(damping * self.gain ** min(max(miss, -1.0), 1.0), self.least)


@dataclass(frozen=True)
class KeepDamping:
    """lambda stays as it is."""

    def __call__(self, damping: float, ratio: float) -> float:
        """lambda."""
        return damping


MARQUARDT = Marquardt()  # alike both ways: where every second step fails, lambda stays
MARTENS = Marquardt(fall=1.5, rise=1.5)  # Martens (2010), section 4.1
NIELSEN = Marquardt(fall=3.0, rise=2.0)  # the factors of Nielsen (1999)


def scale_of(linearization: Linearization) -> float:
    """g.C g / ||g||^2, g = grad L: the curvature along the gradient, the unit of a damping."""
    g = linearization.gradient
    return float(g @ linearization.curvature(g) / g.square().sum())
