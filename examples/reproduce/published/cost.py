"""Time and memory of a step against input dimension, batch, width and depth, beside the formulas.

The formulas are those of docs/algorithms; two constants an optimizer, an overhead and a rate, turn
operations into milliseconds and stored numbers into MiB. Every measurement has a process of its
own, for its memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.problems.poisson_equation import poisson
from kfac_pinn.pinn.training import Fixed, Run
from kfac_pinn.pinn.training.clock import now
from published.figures import NAMES, STYLES, write
from published.recipes import OPTIMIZERS

__all__ = ["AXES", "Size", "constants", "draw", "fitted", "formulas", "measure", "measure_all"]

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Size:
    """What a step's cost depends on: `layers` hidden layers of one width, N interior points."""

    dim: int = 10
    points: int = 1000
    width: int = 64
    layers: int = 3

    @property
    def sizes(self) -> list[int]:
        """Of the network."""
        return [self.dim, *[self.width] * self.layers, 1]

    @property
    def parameters(self) -> int:
        """P."""
        return sum((a + 1) * b for a, b in pairwise(self.sizes))

    @property
    def passes(self) -> int:
        """N S: value, gradient and Laplacian of interior points, the value of boundary points."""
        return self.points * (self.dim + 2) + self.points // 4

    def problem(self) -> Problem:
        """-Laplace u = -2d with u = ||x||^2."""

        def source(x: Tensor) -> Tensor:
            return torch.full_like(x[:, :1], -2.0 * self.dim)

        def solution(x: Tensor) -> Tensor:
            return (x * x).sum(1, keepdim=True)

        return poisson(self.dim, source, solution, (self.points, self.points // 4))


#: One quantity is varied at a time.
AXES: dict[str, tuple[int, ...]] = {
    "dim": (2, 5, 10, 20, 50, 100),
    "points": (250, 500, 1000, 2000, 4000),
    "width": (16, 32, 64, 128, 256),
    "layers": (1, 2, 3, 5),
}


def measure(optimizer: str, size: Size, steps: int = 3) -> tuple[float, float]:
    """CPU milliseconds of a step, the fastest; and MiB that building and stepping added."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    problem, model = size.problem(), MLP(size.sizes)
    generator = torch.Generator().manual_seed(0)
    run = Run(model, problem, built(optimizer, model), Fixed(), generator)
    before, times = resident("VmRSS"), []
    for _ in range(steps + 1):
        start = now()
        run.advance()
        times.append(1e3 * (now() - start))
    return min(times[1:]), resident("VmHWM") - before


def built(optimizer: str, model: nn.Module) -> torch.optim.Optimizer:
    """With an ordinary damping where one is to be chosen."""
    recipe = OPTIMIZERS[optimizer]
    settings = {"damping": 1e-8} if "damping" in recipe.settings else {}
    return recipe.build(model.parameters(), **settings)


def resident(key: str) -> float:
    """MiB of this process now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure_all(
    optimizers: Iterable[str] = ("adam", "kfac_star", "kfac_pinn"),
    axes: dict[str, tuple[int, ...]] = AXES,
) -> pd.DataFrame:
    """A row a measurement; sizes that several axes share are measured once."""
    sizes = [replace(Size(), **{axis: value}) for axis, values in axes.items() for value in values]
    jobs = [(name, size) for name in optimizers for size in dict.fromkeys(sizes)]
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = pool.starmap(measure, jobs, chunksize=1)
    rows = [row(*job, *result) for job, result in zip(jobs, found, strict=True)]
    return pd.DataFrame(rows)


def row(optimizer: str, size: Size, milliseconds: float, mebibytes: float) -> dict[str, object]:
    """One measurement beside its formulas."""
    operations, numbers = formulas(optimizer, size)
    return {
        "optimizer": optimizer,
        **asdict(size),
        "parameters": size.parameters,
        "ms": round(milliseconds, 2),
        "operations": operations,
        "MiB": round(mebibytes, 1),
        "formula MiB": round(8 * numbers / MEBIBYTE, 1),
    }


def formulas(optimizer: str, size: Size) -> tuple[int, int]:
    """Multiply-adds and stored numbers of a step, the leading terms of docs/algorithms."""
    pairs = list(pairwise(size.sizes))
    NS = size.passes
    weights = sum(a * b for a, b in pairs)
    operations, numbers = 3 * NS * weights, NS * sum(a + b for a, b in pairs)
    if optimizer == "adam":
        return operations, numbers
    squares = sum(a * a + b * b for a, b in pairs)
    cubes = sum(a**3 + b**3 for a, b in pairs)
    twice = sum(2 * a * b * (a + b) for a, b in pairs)  # a product with an inverse
    operations += NS * squares + cubes + twice
    numbers += 5 * squares
    if optimizer == "kfac_pinn":
        products, memory = 10, 100
        operations += 2 * products * NS * weights + NS * weights
        operations += products * (4 * memory * weights + twice)
        return operations, numbers + 2 * memory * weights
    return operations + 2 * NS * weights, numbers


#: What is measured, and what it is proportional to but for an overhead.
MODELS = {"ms": "operations", "MiB": "formula MiB"}


def line(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """(a, b) of y ~ a + b x by least squares of the relative errors, with a >= 0."""
    design = np.stack([1 / y, x / y], axis=1)
    overhead, slope = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
    return (
        (overhead, slope) if overhead > 0 else (0.0, float((x / y).sum() / (x / y * x / y).sum()))
    )


def fitted(rows: pd.DataFrame, measured: str) -> pd.Series:
    """The measurements as the formula has them, each optimizer with its two constants."""
    out = pd.Series(index=rows.index, dtype=float)
    for _, runs in rows.groupby("optimizer"):
        overhead, slope = line(runs[MODELS[measured]], runs[measured])
        out[runs.index] = overhead + slope * runs[MODELS[measured]]
    return out


def constants(rows: pd.DataFrame) -> pd.DataFrame:
    """The constants, and how far the formulas are off."""
    lines = []
    for name, runs in rows.groupby("optimizer"):
        entry: dict[str, object] = {"optimizer": NAMES[name], "measurements": len(runs)}
        for measured, unit in (("ms", "ms per 1e9 multiply-adds"), ("MiB", "times the formula")):
            overhead, slope = line(runs[MODELS[measured]], runs[measured])
            off = runs[measured] / (overhead + slope * runs[MODELS[measured]])
            entry[f"overhead {measured}"] = f"{overhead:.0f}"
            entry[unit] = f"{slope * (1e9 if measured == 'ms' else 1):.3g}"
            entry[f"measured / fitted {measured}"] = f"{off.min():.2f} to {off.max():.2f}"
        lines.append(entry)
    return pd.DataFrame(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A column an axis: milliseconds above, MiB below; marks measured, lines the formula."""
    base, lines = asdict(Size()), {measured: fitted(rows, measured) for measured in MODELS}
    figure, axes = plt.subplots(2, len(AXES), figsize=(14, 6.5), sharey="row", layout="constrained")
    for column, axis_name in zip(axes.T, AXES, strict=True):
        others = [name for name in base if name != axis_name]
        part = rows[(rows[others] == pd.Series(base)[others]).all(axis=1)].sort_values(axis_name)
        x = "parameters" if axis_name in ("width", "layers") else axis_name
        for name, runs in part.groupby("optimizer"):
            color, known = STYLES[name][0], NAMES[name]
            for axis, measured in zip(column, MODELS, strict=True):
                axis.plot(runs[x], runs[measured], "o", color=color, label=known)
                axis.plot(runs[x], lines[measured][runs.index], color=color, alpha=0.6)
        labels = {"dim": "input dimension", "points": "points", "width": "parameters (by width)"}
        column[1].set_xlabel(labels.get(axis_name, "parameters (by depth)"))
        for axis in column:
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("CPU ms a step")
    axes[1, 0].set_ylabel("MiB")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside right upper")
    write(figure, path)
