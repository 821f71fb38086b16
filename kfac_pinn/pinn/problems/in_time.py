"""Reference solutions known at equidistant times, as functions that jets pass through.

Ordinary differential equations by Runge-Kutta, u_t = L u + N(u) with periodic u by Fourier series
and exponential time differencing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.taylor_mode.jets import Jet

__all__ = ["InTime", "PeriodicEquation", "Trajectory", "runge_kutta"]

NODES = 8  # of the interpolation in time: its error falls as h^8


class InTime:
    """Values between equidistant times of [0, end] by polynomials through the nearest ones.

    Args:
        values: (steps + 1, C).
        end: the last time.
    """

    def __init__(self, values: Tensor, end: float) -> None:
        self.values, self.end = values, end

    def __call__(self, t: Any) -> Any:
        """(N, C) at times (N, 1), or at a jet of them."""
        plain = t.rows[0] if isinstance(t, Jet) else t
        values = self.values.to(plain)
        steps = len(values) - 1
        first = (plain[:, 0].detach() * (steps / self.end)).floor().long() - NODES // 2 + 1
        first = first.clamp(0, steps - NODES + 1)
        way = t * (steps / self.end) - first[:, None]
        return sum(_weight(way, j) * values[first + j] for j in range(NODES))


def _weight(way: Any, j: int) -> Any:
    """The polynomial that is 1 at node j and 0 at the others, (N, 1)."""
    factors = [(way - m) / (j - m) for m in range(NODES) if m != j]
    return math.prod(factors[1:], start=factors[0])


def runge_kutta(f: Callable[[Tensor], Tensor], start: Tensor, end: float, steps: int) -> InTime:
    """y' = f(y), y(0) = start (C,), by the classical method of fourth order."""
    found, h = [start], end / steps
    for _ in range(steps):
        y = found[-1]
        a = f(y)
        b = f(y + h / 2 * a)
        c = f(y + h / 2 * b)
        found.append(y + h / 6 * (a + 2 * b + 2 * c + f(y + h * c)))
    return InTime(torch.stack(found), end)


class Trajectory:
    """u(t, x) = Re sum_k c_k(t) exp(2 pi i k (x - lower) / period).

    Args:
        coefficients: (steps + 1, K), those of rfft divided by the number of points.
        end: the last time.
        lower, period: of x.
    """

    def __init__(self, coefficients: Tensor, end: float, lower: float, period: float) -> None:
        self.count = coefficients.shape[1]
        twice = torch.where(torch.arange(self.count) > 0, 2.0, 1.0)  # for -k too
        c = coefficients * twice
        self.waves = InTime(torch.cat([c.real, -c.imag], 1), end)
        self.lower, self.period = lower, period

    def __call__(self, x: Any) -> Any:
        """(N, 1) at points (t, x) of shape (N, 2), or at a jet of them."""
        plain = x.rows[0] if isinstance(x, Jet) else x
        k = torch.arange(self.count, dtype=plain.dtype, device=plain.device)
        phase = (x[:, 1:2] - self.lower) * (k * (2 * math.pi / self.period))
        waves = torch.cat([torch.cos(phase), torch.sin(phase)], 1)
        return (self.waves(x[:, :1]) * waves).sum(1, keepdim=True)


@dataclass(frozen=True)
class PeriodicEquation:
    """u_t = L u + M g(u) on [lower, lower + period), L and M multiplying Fourier modes.

    Attributes:
        linear, outer: the symbols of L and M: functions of the wave numbers (K,).
        g: of the values.
        degree: of g as a polynomial: higher modes than can be held are left out of it.
    """

    linear: Callable[[Tensor], Tensor]
    outer: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    degree: int
    lower: float
    period: float

    def solve(
        self, initial: Callable[[Tensor], Tensor], end: float, modes: int, steps: int
    ) -> Trajectory:
        """Exponential time differencing of fourth order, as many points as modes.

        Source: Cox & Matthews (2002); coefficients as Kassam & Trefethen (2005), eq. 2.5.
        """
        k = 2 * math.pi / self.period * torch.arange(modes // 2 + 1, dtype=torch.float64)
        kept = torch.arange(modes // 2 + 1) < modes / (self.degree + 1)
        outer = self.outer(k) * kept

        def nonlinear(v: Tensor) -> Tensor:
            return outer * torch.fft.rfft(self.g(torch.fft.irfft(v * kept, n=modes)))

        h = end / steps
        whole, half, q, f1, f2, f3 = _coefficients(self.linear(k) * h, h)
        v = self._modes(initial, modes)
        found = [v]
        for _ in range(steps):
            n = nonlinear(v)
            a = half * v + q * n
            na = nonlinear(a)
            nb = nonlinear(half * v + q * na)
            nc = nonlinear(half * a + q * (2 * nb - n))
            v = whole * v + f1 * n + 2 * f2 * (na + nb) + f3 * nc
            found.append(v)
        return Trajectory(torch.stack(found) / modes, end, self.lower, self.period)

    def _modes(self, initial: Callable[[Tensor], Tensor], modes: int) -> Tensor:
        """Its rfft, from many more points: those of a kink fall slowly and would be aliased."""
        points = 32 * modes
        x = self.lower + self.period * torch.arange(points, dtype=torch.float64) / points
        return torch.fft.rfft(initial(x))[: modes // 2 + 1] / 32


def _coefficients(z: Tensor, h: float) -> tuple[Tensor, ...]:
    """exp(z), exp(z/2) and the four weights, as means over a circle around z: no cancellation."""
    circle = torch.exp(2j * math.pi * (torch.arange(64, dtype=torch.float64) + 0.5) / 64)
    w = z[:, None] + circle
    e = torch.exp(w)
    weights = (
        (torch.exp(w / 2) - 1) / w,
        (-4 - w + e * (4 - 3 * w + w**2)) / w**3,
        (2 + w + e * (w - 2)) / w**3,
        (-4 - 3 * w - w**2 + e * (4 - w)) / w**3,
    )
    means = [h * each.mean(1) for each in weights]
    return torch.exp(z), torch.exp(z / 2), *(m if z.is_complex() else m.real for m in means)
