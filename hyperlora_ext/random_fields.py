"""Tasks that are functions: a Gaussian random field on a periodic grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from hyperlora_ext.task_spaces import Task, stacked, warn_outside
from kfac_pinn.settings import FLAG, NOT_NEGATIVE, POSITIVE, check, takes, whole

__all__ = ["GaussianField"]


@dataclass(frozen=True)
class GaussianField:
    """Periodic random functions on [0, 1), given by their values at p equidistant points.

    u0 ~ N(0, sigma^2 (-Laplace + tau^2)^-gamma) without its mean:

        u0(x) = sum_{k=1}^{p/2-1} sqrt(2) s_k (xi_k cos 2 pi k x + eta_k sin 2 pi k x),
        s_k = sigma (4 pi^2 k^2 + tau^2)^(-gamma / 2),   xi_k, eta_k ~ N(0, 1).

    Source: Li et al. (2021), the generator GRF1.m of the Fourier neural operator's data.

    Attributes:
        inputs: p, even.
        sigma, tau, gamma: amplitude, inverse length, smoothness.
        centred: networks see each function moved so that its first mode is a positive cosine: all
            tasks then look alike, where the equation does not depend on x and the network is
            periodic.

    Raises:
        TypeError, ValueError: for a setting of another kind, or an odd number of inputs.
    """

    inputs: int = 128
    sigma: float = 25.0  # with tau and gamma, of the source's data
    tau: float = 5.0
    gamma: float = 2.0
    centred: bool = False

    def __post_init__(self) -> None:
        check(self, inputs=whole(4), sigma=POSITIVE, tau=NOT_NEGATIVE, gamma=POSITIVE)
        check(self, centred=FLAG)
        if self.inputs % 2:
            raise ValueError(f"GaussianField: inputs must be even, found {self.inputs}")

    @takes(n=whole(1))
    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """n functions, (n, p)."""
        spectrum = self.spectrum
        normal = torch.randn(2, n, len(spectrum), generator=generator, dtype=torch.float64)
        # irfft of c_k gives 2 Re(c_k e^{i ...}) / p: hence p / 2 here.
        modes = torch.complex(normal[0], -normal[1]) * (2**0.5 * self.inputs / 2) * spectrum
        # Neither a mean nor the highest mode, whose sine a grid of p points does not see
        zero = modes.new_zeros(n, 1)
        return torch.fft.irfft(torch.cat([zero, modes, zero], dim=1), n=self.inputs)

    def middle(self) -> Tensor:
        """A draw of the usual size: of a hundred, that whose norm is their median."""
        draws = self.sample(100, Generator().manual_seed(0))
        typical = draws[draws.norm(dim=1).argsort()[50]][None]
        # In its own frame, in which networks see all tasks
        return self.moved(typical, self.offset(typical))[0]

    @takes(n=whole(1))
    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Functions of twice the amplitude: fronts twice as steep."""
        return 2 * self.sample(n, generator)

    def embed(self, tasks: Tensor) -> Tensor:
        """The values (in the task's own frame), in units of their standard deviation."""
        return self.moved(tasks, self.offset(tasks)) / self.deviation

    def unembed(self, inputs: Any) -> Any:
        """The values, in the task's own frame."""
        return self.deviation * inputs

    def offset(self, tasks: Tensor) -> Tensor:
        """s such that the first mode of u0(x + s) is a positive cosine, (T, 1); else (T, 0)."""
        if not self.centred:
            return tasks[:, :0]
        first = torch.fft.rfft(tasks)[:, 1:2]
        return -torch.angle(first) / (2 * math.pi)

    def moved(self, tasks: Tensor, shift: Tensor) -> Tensor:
        """u0(x + s) of u0 (T, p) and s (T, 1), band-limited; u0 itself for s of (T, 0)."""
        if not shift.shape[1]:
            return tasks
        k = torch.arange(self.inputs // 2 + 1, dtype=tasks.dtype, device=tasks.device)
        waves = torch.exp(2j * math.pi * k * shift)
        return torch.fft.irfft(torch.fft.rfft(tasks) * waves, n=self.inputs)

    def contains(self, tasks: Tensor) -> Tensor:
        """Functions without a mean, as large and as rough as those drawn, (T,) bools.

        The root mean square is at most three times that of the distribution, and the mean over k of
        |c_k|^2 / s_k^2, which is 1 +- 0.13 for draws, at most 2.
        """
        modes = torch.fft.rfft(tasks)[:, : self.inputs // 2].abs() / self.inputs
        rough = (modes[:, 1:] / self.spectrum.to(modes)).square().mean(-1)
        size, mean = tasks.square().mean(-1).sqrt() / self.deviation, modes[:, 0] / self.deviation
        # Three deviations; a mean that rounding and interpolation leave; eight deviations of 0.13
        return (size <= 3) & (mean <= 0.01) & (rough <= 2)

    def check(self, tasks: Task) -> Tensor:
        """A function or a stack of them."""
        return stacked(tasks, self.inputs)

    def warn(self, tasks: Tensor) -> None:
        """Say so where functions are larger or rougher than those drawn, or have a mean."""
        warn_outside(
            self.contains(tasks), "functions without a mean, as large and as rough as draws"
        )

    @property
    def spectrum(self) -> Tensor:
        """s_k for k = 1 ... p/2 - 1."""
        k = torch.arange(1, self.inputs // 2, dtype=torch.float64)
        return self.sigma * (4 * math.pi**2 * k**2 + self.tau**2) ** (-self.gamma / 2)

    @property
    def deviation(self) -> float:
        """The pointwise standard deviation, sqrt(2 sum s_k^2)."""
        return float((2 * self.spectrum.square().sum()).sqrt())
