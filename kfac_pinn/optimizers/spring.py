"""SPRING: kernel natural gradient with momentum that remembers what earlier batches taught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.curvature.sample_space import ExactKernel, Kernel, natural_gradient
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.search.line import GridSearch, Search
from kfac_pinn.settings import FLAG

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SPRING"]


class SPRING(DirectionOptimizer):
    """Subsampled projected-increment natural gradient descent.

        phi_k = mu phi_(k-1) + J^T (J J^T + lambda I)^-1 (-r - mu J phi_(k-1))
        theta <- theta + length * lr * phi_k / sqrt(1 - mu^2k)

    phi_k minimises 1/2 ||J phi + r||^2 + lambda/2 ||phi - mu phi_(k-1)||^2: the component of the
    last direction that the current points say nothing about is kept. Take it for fresh random
    points every step, and for more parameters than points. mu = 0 is kernel ENGD. Measured on 2d
    Poisson (1185 parameters, 1020 fixed points, 25 s): mu = 0.3 reaches 4e-5, 0.6 1e-4, 0.9 0.3.

    Args:
        params: parameters, named parameters or groups; lr and momentum may differ by group.
        lr: multiplies phi before the search.
        damping: lambda > 0, one value for all groups.
        momentum: mu in [0, 1).
        kernel: `ExactKernel()`; `NystromKernel()` or `PivotedKernel()` for many points.
        search: by default the best of a grid. The first source takes no trial steps:
            `NormConstraint(1e-3)` with lr 0.02, damping 1e-3, momentum 0.99, which suits noisy
            samples and many small steps.
        bias_correction: divide by sqrt(1 - mu^2k), k = 1, 2, ..., for the start from phi_0 = 0;
            what is remembered stays as it is.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Goldshlager, Abrahamsen & Lin (2024), arXiv:2401.10190; for PINNs, with the bias
    correction and Nystrom: Guzman-Cordero et al. (2025), arXiv:2505.12149, equations 7 and 8,
    algorithm 1.
    """

    positive = frozenset({"lr", "damping"})

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        damping: float = 1e-6,
        momentum: float = 0.3,
        kernel: Kernel | None = None,
        search: Search | None = None,
        bias_correction: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "damping": damping, "momentum": momentum}
        super().__init__(params, defaults, GridSearch() if search is None else search, **common)
        self.kernel = ExactKernel() if kernel is None else kernel
        self.bias_correction = bias_correction
        check_parts(self, "kernel")
        settings.check(self, bias_correction=FLAG)

    def direction(self, linearization: Linearization) -> Tensor:
        """phi_k, with its bias corrected if asked for, eq. (25)."""
        mu, k = self.expand("momentum"), self.steps + 1
        phi = self._next(linearization, mu * self.gather("phi"), k)
        self.scatter("phi", phi)
        return phi / torch.sqrt(1 - mu ** (2 * k)) if self.bias_correction else phi

    def _next(self, linearization: Linearization, kept: Tensor, step: int) -> Tensor:
        """phi_k from kept = mu phi_(k-1); a ridge and convex losses add terms of their own."""
        # A ridge of equal weights adds to the diagonal as a damping does
        damping, e = self.shared("damping") + self.shared("weight_decay"), linearization.linear_term
        kernel = self.kernel.factor(linearization, damping, step)
        # phi minimises the ridge's parabola as well, whose slope at the kept part is w kept
        if e is not None and linearization.ridge is not None:
            e = e + linearization.ridge * kept
        solve = natural_gradient(linearization, kernel, damping)
        # Solved for the difference to what is kept: that is what lambda damps
        return kept - solve(linearization.residual + linearization @ kept, e)
