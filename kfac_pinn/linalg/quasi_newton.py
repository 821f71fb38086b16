"""Updates of an inverse Hessian by what one step has shown: the self-scaled Broyden family.

A step s that changed the gradient by y obeys y = B s for the Hessian B along it. Of all H with
H y = s the family takes, eq. (36) of docs/mathematics.md,

    H <- (H - H y y^T H / (y.H y) + phi v v^T) / tau + s s^T / (y.s),
    v  = sqrt(y.H y) (s / (y.s) - H y / (y.H y)),

and its members differ in phi and tau. All of them follow from three numbers of the pair:

    b = s.B s / y.s,     h = y.H y / y.s,     n, the length of s;     B = H^-1 before the update.

b h >= 1 by Cauchy and Schwarz, with equality where B s is parallel to y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["BFGS", "SSBFGS", "Pair", "SSBroyden", "Update", "updated"]


class Pair(NamedTuple):
    """b, h and n of a step and its change of the gradient."""

    b: float
    h: float
    n: int


class Update(Protocol):
    """A member of the family."""

    def weights(self, pair: Pair) -> tuple[float, float]:
        """(phi, tau), tau > 0 and phi > -1 / (b h - 1), so that H stays positive definite."""


@dataclass(frozen=True)
class BFGS:
    """phi = tau = 1: Broyden, Fletcher, Goldfarb & Shanno (1970)."""

    def weights(self, pair: Pair) -> tuple[float, float]:
        return 1.0, 1.0


@dataclass(frozen=True)
class SSBFGS:
    """phi = 1, tau = min(1, 1 / b): H is enlarged where the model saw too much curvature.

    Source: Al-Baali (1998), "Numerical experience with a class of self-scaling quasi-Newton
    algorithms".
    """

    def weights(self, pair: Pair) -> tuple[float, float]:
        return 1.0, min(1.0, 1 / pair.b)


@dataclass(frozen=True)
class SSBroyden:
    """phi and tau by the pair, from the interval in which they keep the spectrum of H together.

        a = b h - 1,   rho = min(1, h (1 - sqrt(a / (1 + a)))),
        theta = (1 - b) / b, but within [(rho - 1) / a, 1 / rho],   sigma = 1 + a theta,
        phi = (1 - theta) / sigma,
        tau = min(1, 1 / b) min(sigma^(-1 / (n - 1)), 1 / theta)        for theta > 0,
        tau = min(min(1, 1 / b) sigma^(-1 / (n - 1)), sigma)            otherwise.

    Source: Al-Baali & Khalfan (2005), "Wide interval for efficient self-scaling quasi-Newton
    algorithms"; for PINNs Urban, Stefanou & Pons (2025), arXiv:2405.04230.
    """

    def weights(self, pair: Pair) -> tuple[float, float]:
        b, h, n = pair
        # v vanishes with a, and phi with it: any small number will do
        a = max(b * h - 1, torch.finfo(torch.float64).eps)
        rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = 1 + a * theta
        shrink, root = min(1.0, 1 / b), sigma ** (-1 / max(n - 1, 1))
        tau = shrink * min(root, 1 / theta) if theta > 0 else min(shrink * root, sigma)
        return (1 - theta) / sigma, tau


def updated(H: Tensor, s: Tensor, y: Tensor, sBs: float, update: Update) -> Tensor | None:
    """H after a step s (P,) that changed the gradient by y (P,); None where the pair is of no use.

    Args:
        H: shape (P, P), symmetric positive definite; left as it is.
        s, y: the pair.
        sBs: s.B s, which is -length s.g for a step along -H g.
        update: the member of the family.
    """
    Hy = H @ y
    ys, yHy = float(y @ s), float(y @ Hy)
    # Below its rounding the sign of y.s says nothing; B has no negative curvature to learn
    rounding = torch.finfo(s.dtype).eps * float(s.norm() * y.norm())
    if not (ys > rounding and yHy > 0 and sBs > 0):
        return None
    phi, tau = update.weights(Pair(sBs / ys, yHy / ys, len(s)))
    # All terms are in the span of s and H y: one product of rank two
    ss, sh, hh = phi * yHy / (tau * ys**2) + 1 / ys, -phi / (tau * ys), (phi - 1) / (tau * yHy)
    middle = torch.tensor([[ss, sh], [sh, hh]], dtype=s.dtype, device=s.device)
    pair = torch.stack([s, Hy], dim=1)
    found = torch.addmm(H, pair @ middle, pair.mT, beta=1 / tau)
    return found if torch.isfinite(found).all() else None
