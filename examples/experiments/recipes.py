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
from kfac_pinn import problems
from kfac_pinn.factors import Average, Factors
from kfac_pinn.optimizers.engd import Diagonal, Full, PerLayer
from kfac_pinn.search import GridSearch

__all__ = ["OPTIMIZERS", "PROBLEMS", "SPACES", "Recipe"]

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
        fresh: whether its published runs drew new points every step on all problems that K-FAC
            draws new points for now and then.
    """

    build: Callable[..., Optimizer]
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    fresh: bool = False

    @property
    def settings(self) -> list[str]:
        """The names of all settings that can be tuned."""
        return [*self.grid, *self.also]


def sgd(parameters: Parameters, lr: float, momentum: float) -> Optimizer:
    """SGD with heavy-ball momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def lbfgs(parameters: Parameters, history_size: float, lr: float = 1.0) -> Optimizer:
    """One step of L-BFGS is up to 20 iterations, with the strong Wolfe conditions."""
    size = int(history_size)
    return torch.optim.LBFGS(parameters, lr=lr, history_size=size, line_search_fn="strong_wolfe")


def kfac(parameters: Parameters, ema: float = 0.95, **settings: float) -> Optimizer:
    """K-FAC with factors averaged over the steps, started at the identity."""
    return kp.KFAC(parameters, factors=Factors(average=Average(ema, 1.0)), **settings)


def kfac_star(parameters: Parameters, ema: float = 0.95, **settings: float) -> Optimizer:
    """K-FAC* with factors averaged over the steps, started at the identity."""
    return kp.KFACStar(parameters, factors=Factors(average=Average(ema, 1.0)), **settings)


def engd(parameters: Parameters, part: Callable[..., Any], damping: float, ema: float = 0.0) -> Any:
    """Energy natural gradient descent with the Gramian, or a part of it, averaged if ema > 0."""
    gramian = part(Average(ema, 1.0)) if ema > 0 else part()
    return kp.ENGD(parameters, damping=damping, gramian=gramian)


def spring(parameters: Parameters, **settings: float) -> Optimizer:
    """SPRING with the line search that the other published methods have."""
    return kp.SPRING(parameters, lr=1.0, search=GridSearch(), **settings)


DAMPINGS = (1e-6, 1e-9, 1e-12)

OPTIMIZERS: dict[str, Recipe] = {
    "sgd": Recipe(sgd, {"lr": (1e-3, 1e-2), "momentum": (0.9, 0.99)}, fresh=True),
    "adam": Recipe(torch.optim.Adam, {"lr": (1e-3, 3e-3, 1e-2)}, fresh=True),
    "lbfgs": Recipe(lbfgs, {"history_size": (20, 100)}, ("lr",), fresh=True),
    "kfac": Recipe(kfac, {"damping": DAMPINGS, "momentum": (0.0, 0.5)}, ("ema",)),
    "kfac_star": Recipe(kfac_star, {"damping": DAMPINGS}, ("ema",)),
    "engd": Recipe(partial(engd, part=Full), {"damping": DAMPINGS}, ("ema",), fresh=True),
    "engd_layers": Recipe(
        partial(engd, part=PerLayer), {"damping": DAMPINGS}, ("ema",), fresh=True
    ),
    "engd_diagonal": Recipe(
        partial(engd, part=Diagonal), {"damping": DAMPINGS}, ("ema",), fresh=True
    ),
    "spring": Recipe(spring, {"damping": DAMPINGS, "momentum": (0.3, 0.9)}, fresh=True),
    "hessian_free": Recipe(kp.HessianFree, fresh=True),
    "kfac_pinn": Recipe(kp.KFACPINN),
    "gauss_newton": Recipe(kp.GaussNewton),
}

#: Where a sweep looks for a setting: lowest, highest, whether on a logarithmic scale.
SPACES: dict[str, tuple[float, float, bool]] = {
    "lr": (1e-4, 1.0, True),
    "damping": (1e-14, 1e-2, True),
    "momentum": (0.0, 0.99, False),
    "ema": (0.0, 0.999, False),
    "history_size": (5, 200, True),
}
