"""Names for the command line: problems, and optimizers with the grid a baseline is tuned over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import pi
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import kfac_pinn as kp
from kfac_pinn.curvature.compression import Exact, Sketch
from kfac_pinn.curvature.kronecker_factors import Average, Factors
from kfac_pinn.linalg import ProgressOfSolve, RelativeResidual
from kfac_pinn.optimizers.engd import Diagonal, Full, PerLayer, SampleSpace
from kfac_pinn.optimizers.hessian_free import TruncatedCG
from kfac_pinn.pinn import problems
from kfac_pinn.search.line import GridSearch

__all__ = ["NEVER", "OPTIMIZERS", "PROBLEMS", "SPACES", "Recipe", "resampling"]

Parameters = Iterable[Tensor]

PROBLEMS: dict[str, Callable[[], problems.Problem]] = {
    "poisson_2d": problems.poisson_2d,
    "poisson_5d": problems.poisson_5d,
    "poisson_10d": problems.poisson_10d,
    "poisson_100d": problems.poisson_100d,
    "heat_1d": problems.heat_1d,
    "heat_4d": problems.heat_4d,
    "fokker_planck": problems.fokker_planck,
    "burgers": partial(problems.burgers, 0.01 / pi),
    "burgers_smooth": partial(problems.burgers, 0.01),
}


@dataclass(frozen=True)
class Recipe:
    """How to build an optimizer, and which settings are worth trying.

    Attributes:
        build: (parameters, **settings) -> optimizer.
        grid: the values tried of each setting; none for an optimizer that needs no tuning.
        also: further settings that a sweep tunes.
        every: steps between two draws of points, on the problems for which K-FAC draws new points
            now and then; None: as K-FAC.
    """

    build: Callable[..., Optimizer]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    every: int | None = None

    @property
    def settings(self) -> list[str]:
        """The names of all settings that can be tuned."""
        return [*self.grid, *self.also]


def sgd(parameters: Parameters, lr: float = 1e-3, momentum: float = 0.9) -> Optimizer:
    """SGD with heavy-ball momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def lbfgs(parameters: Parameters, history_size: float = 100, lr: float = 1.0) -> Optimizer:
    """One step of L-BFGS is up to 20 iterations, with the strong Wolfe conditions."""
    size = int(history_size)
    return torch.optim.LBFGS(parameters, lr=lr, history_size=size, line_search_fn="strong_wolfe")


def averages(ema: float, every: float = 1) -> Factors:
    """Kronecker factors averaged over the steps, started at the identity; new every few steps."""
    return Factors(average=Average(ema, 1.0), every=int(every), invert_every=int(every))


def kfac(parameters: Parameters, ema: float = 0.95, **settings: float) -> Optimizer:
    """K-FAC as published, but for the search."""
    return kp.KFAC(parameters, factors=averages(ema), search=GridSearch(), **settings)


def kfac_star(
    parameters: Parameters, ema: float = 0.95, every: float = 1, **settings: float
) -> Optimizer:
    """K-FAC* as published; `every` 1 renews the factors in each step."""
    return kp.KFACStar(parameters, factors=averages(ema, every), **settings)


def engd(
    parameters: Parameters,
    part: Callable[..., Any],
    damping: float = 1e-10,
    ema: float = 0.0,
    start: float = 1.0,
) -> Optimizer:
    """Energy natural gradient descent with the Gramian, or a part of it, averaged if ema > 0 from
    `start` times the identity.
    """
    gramian = part(Average(ema, start)) if ema > 0 else part()
    return kp.ENGD(parameters, damping=damping, gramian=gramian, search=GridSearch())


def kernel_engd(parameters: Parameters, damping: float = 1e-10) -> Optimizer:
    """Energy natural gradient descent in sample space."""
    return kp.ENGD(parameters, damping=damping, gramian=SampleSpace(), search=GridSearch())


def spring(parameters: Parameters, **settings: float) -> Optimizer:
    """SPRING with the line search that the other published methods have."""
    return kp.SPRING(parameters, lr=1.0, search=GridSearch(), **settings)


def hessian_free(
    parameters: Parameters, damping: float = 1.0, iterations: float = 250, progress: float = 0.0
) -> Optimizer:
    """Gauss-Newton by conjugate gradients, the damping adapted; stopped as Martens does, or, if
    `progress` > 0, as the published runs.
    """
    stop = (ProgressOfSolve(progress), RelativeResidual(1e-5)) if progress else TruncatedCG.stop
    solver = TruncatedCG(stop, iterations=int(iterations))
    return kp.HessianFree(parameters, damping=damping, solver=solver)


def kfac_pinn(parameters: Parameters, **settings: float) -> Optimizer:
    """Truncated steps everywhere; `products` and `memory` are whole numbers."""
    whole = {name: int(value) for name, value in settings.items()}
    return kp.KFACPINN(parameters, **whole, exact=kp.Affordable(0))


def gauss_newton(parameters: Parameters, rows: float = 0) -> Optimizer:
    """Exact steps everywhere; of large ones, `rows` random combinations of rows of J."""
    compression = Sketch(int(rows)) if rows else Exact()
    return kp.GaussNewton(parameters, compression=compression)


NEVER = 10**12  # a number of steps
DAMPINGS = (1e-6, 1e-9, 1e-12)

OPTIMIZERS: dict[str, Recipe] = {
    "sgd": Recipe(sgd, {"lr": (1e-3, 1e-2), "momentum": (0.9, 0.99)}, every=1),
    "adam": Recipe(torch.optim.Adam, {"lr": (1e-3, 3e-3, 1e-2)}, every=1),
    "lbfgs": Recipe(lbfgs, {"history_size": (20, 100)}, ("lr",), every=1),
    "kfac": Recipe(kfac, {"damping": DAMPINGS, "momentum": (0.0, 0.5)}, ("ema",)),
    "kfac_star": Recipe(kfac_star, {"damping": DAMPINGS}, ("ema",)),
    "engd": Recipe(partial(engd, part=Full), {"damping": DAMPINGS}, ("ema",), every=1),
    "engd_layers": Recipe(partial(engd, part=PerLayer), {"damping": DAMPINGS}, ("ema",), every=1),
    "engd_diagonal": Recipe(partial(engd, part=Diagonal), {"damping": DAMPINGS}, ("ema",), every=1),
    "kernel_engd": Recipe(kernel_engd, {"damping": DAMPINGS}, every=1),
    "spring": Recipe(spring, {"damping": DAMPINGS, "momentum": (0.3, 0.9)}, every=1),
    "hessian_free": Recipe(hessian_free, every=1),
    "kfac_pinn": Recipe(kfac_pinn),
    "gauss_newton": Recipe(gauss_newton, every=NEVER),
}

#: Where a sweep looks for a setting: lowest, highest, whether on a logarithmic scale.
SPACES: dict[str, tuple[float, float, bool]] = {
    "lr": (1e-4, 1.0, True),
    "damping": (1e-14, 1e-2, True),
    "momentum": (0.0, 0.99, False),
    "ema": (0.0, 0.999, False),
    "history_size": (5, 200, True),
}


def resampling(problem: str, optimizer: str) -> int | None:
    """How long an optimizer keeps a batch, where that is not what the problem says."""
    resampled = PROBLEMS[problem]().resample_every is not None
    return OPTIMIZERS[optimizer].every if resampled else None
