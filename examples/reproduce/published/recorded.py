"""What the published runs reached, with which settings and in how many steps.

Errors are absolute RMS on held-out points (called relative L2 there). Source: Dangel, Mueller &
Zeinhofer (2024), arXiv:2405.15603, recorded best runs on one RTX 6000, tuned with about 100 runs
an optimizer, the better of its two tunings where there are two; SPRING and kernel ENGD from
Guzman-Cordero et al. (2025), arXiv:2505.12149. Runs whose recorded command solved something else
than its label are left out.

`recorded.json` holds what the authors recorded of these runs: settings to three digits, and the RMS
after some numbers of steps (the best runs in their public repository of experiments).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

__all__ = [
    "RECORDED", "RMS", "SCALE", "SECONDS", "SETTINGS", "TEN_SEEDS", "Recorded", "steps",
]  # fmt: skip

ORDER = (
    "kfac", "kfac_star", "engd", "engd_layers", "hessian_free", "lbfgs", "adam", "sgd",
    "kernel_engd", "spring",
)  # fmt: skip
SECONDS = {
    "poisson_2d": 1000,
    "poisson_5d": 3000,
    "poisson_10d": 6000,
    "poisson_100d": 10000,
    "heat_1d": 1000,
    "heat_4d": 3000,
    "fokker_planck": 6000,
}
#: RMS of the solution of the published runs, which divide some of the solutions by a constant.
SCALE = {
    "poisson_2d": 0.5,
    "poisson_5d": 1.5815,
    "poisson_10d": 1.003,
    "poisson_100d": 1.0,
    "heat_1d": 0.3177,
    "heat_4d": 1.906,
    "fokker_planck": 38.63,
}
_ = None
Key: TypeAlias = tuple[str, int, str]
ROWS: dict[tuple[str, int], tuple[float | None, ...]] = {
    ("poisson_2d", 257): (3.4e-7, 2.0e-7, 6.2e-8, 6.3e-8, 3.2e-7, 1.8e-4, 9.4e-5, 3.6e-5, _, _),
    ("poisson_2d", 9873): (7.0e-6, 7.9e-7, 0.30, 9.5e-5, _, 3.4e-4, 2.1e-4, 5.6e-4, _, _),
    ("poisson_2d", 116097): (1.5e-5, 7.2e-5, _, _, _, 4.0e-4, 8.5e-4, 1.2e-3, _, _),
    ("poisson_5d", 449): (4.9e-5, 2.7e-6, 5.6e-8, 5.1e-7, 6.1e-6, 8.9e-4, 1.1e-3, 2.6e-3, _, _),
    ("poisson_5d", 10065): (
        8.5e-4, 6.3e-4, _, 4.0e-4, 1.3e-4, 3.0e-3, 3.8e-3, 9.7e-3, 6.8e-7, 2.6e-7,
    ),
    ("poisson_5d", 116865): (3.5e-4, 9.5e-5, _, _, 1.7e-4, 5.3e-4, 2.5e-3, 3.2e-3, _, _),
    ("poisson_10d", 118145): (
        9.0e-5, 4.7e-5, _, _, 2.2e-5, 4.4e-4, 6.9e-4, 7.6e-4, 3.1e-5, 1.5e-5,
    ),
    ("poisson_100d", 1325057): (
        1.6e-2, 4.3e-3, _, _, 1.3e-2, 1.3e-2, 1.7e-2, 2.3e-2, 1.07e-2, 3.6e-3,
    ),
    ("heat_1d", 257): (1.9e-6, 8.8e-7, 3.0e-8, 3.6e-8, 6.2e-7, 2.7e-4, 1.2e-4, 2.8e-4, _, _),
    ("heat_1d", 9873): (4.3e-8, 3.3e-7, 0.16, 1.2e-5, 2.3e-7, 2.4e-4, 1.5e-4, 3.3e-5, _, _),
    ("heat_1d", 116097): (2.0e-8, 1.3e-6, _, _, 2.2e-7, 1.2e-4, 2.6e-4, 1.4e-5, _, _),
    ("heat_4d", 449): (1.7e-4, 5.9e-5, 7.6e-7, 2.2e-5, 1.4e-5, 4.9e-4, 1.0e-3, 8.4e-3, _, _),
    ("heat_4d", 10065): (5.8e-5, 9.8e-6, 1.9e-3, 1.4e-4, 1.1e-5, 1.2e-3, 8.9e-4, 4.9e-3, _, _),
    ("heat_4d", 116865): (
        1.3e-5, 1.3e-6, _, _, 2.0e-5, 4.6e-4, 4.1e-4, 3.6e-4, 1.0e-5, 1.1e-5,
    ),
    ("fokker_planck", 118145): (
        0.42, 2.6e-2, _, _, 2.4e-2, 5.0e-2, 0.18, 0.52, 5.6e-3, 1.5e-3,
    ),
}  # fmt: skip

#: (problem, parameters, optimizer) -> absolute RMS.
RMS: dict[Key, float] = {
    (problem, parameters, optimizer): value
    for (problem, parameters), values in ROWS.items()
    for optimizer, value in zip(ORDER, values, strict=True)
    if value is not None
}


@dataclass(frozen=True)
class Recorded:
    """One published run.

    Attributes:
        run: its name in the authors' records.
        settings: of the optimizer.
        points: how many inside and on the boundary, and the steps that they were kept (0: always);
            tuned too in some runs of the largest networks. None where that is not known.
        curve: pairs of a number of steps and the RMS after it.
    """

    run: str
    settings: dict[str, float]
    points: list[int] | None
    curve: list[tuple[int, float]]

    @property
    def steps(self) -> int:
        """How many it had."""
        return self.curve[-1][0]

    def after(self, steps: float) -> float:
        """The RMS after so many steps, at its end if it had fewer.

        Between two recorded numbers of steps it is interpolated on logarithmic axes.
        """
        known, rms = np.log(self.curve).T
        return float(np.exp(np.interp(np.log(steps), known, rms)))


def recorded() -> dict[Key, Recorded]:
    """{(problem, parameters, optimizer): its run}."""
    runs = json.loads(Path(__file__).with_name("recorded.json").read_text())
    return {
        (run.pop("problem"), run.pop("parameters"), run.pop("optimizer")): Recorded(**run)
        for run in runs
    }


RECORDED = recorded()

#: (problem, parameters, optimizer) -> the tuned settings; those that are printed, as printed.
SETTINGS: dict[Key, dict[str, float]] = {key: run.settings for key, run in RECORDED.items()} | {
    ("poisson_2d", 257, "kfac"): {"damping": 1.5e-12, "ema": 0.450, "momentum": 0.512},
    ("poisson_2d", 257, "kfac_star"): {"damping": 1.2e-10, "ema": 0.926},
    ("poisson_5d", 10065, "kfac_star"): {"damping": 2.8e-10, "ema": 0.900},
    ("poisson_10d", 118145, "kfac_star"): {"damping": 8.0e-11, "ema": 0.895},
    ("poisson_100d", 1325057, "kfac_star"): {"damping": 1.2e-7, "ema": 0.830},
    ("heat_4d", 10065, "kfac"): {"damping": 4.1e-14, "ema": 0.982, "momentum": 0.766},
    ("heat_4d", 10065, "kfac_star"): {"damping": 2.0e-10, "ema": 0.982},
    ("fokker_planck", 118145, "kfac_star"): {"damping": 2.0e-8, "ema": 0.999},
}

#: Of heat_4d with 10,065 parameters over ten initialisations: mean and deviation of the RMS.
TEN_SEEDS: dict[str, tuple[float, float]] = {
    "sgd": (6.77e-3, 2.36e-3),
    "adam": (3.10e-3, 2.45e-3),
    "hessian_free": (1.97e-5, 0.47e-5),
    "engd": (4.99e-2, 9.25e-2),
    "engd_layers": (1.68e-4, 0.26e-4),
    "kfac": (6.50e-5, 0.84e-5),
    "kfac_star": (1.46e-5, 0.48e-5),
}


def steps(problem: str, parameters: int, optimizer: str) -> float:
    """How many steps the published run had; nan where that is not recorded."""
    run = RECORDED.get((problem, parameters, optimizer))
    return float(run.steps) if run else float("nan")
