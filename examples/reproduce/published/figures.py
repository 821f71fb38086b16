"""Figures of results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from published.recipes import PROBLEMS
from published.recorded import RECORDED, SCALE

__all__ = ["NAMES", "STYLES", "errors", "write"]

#: What people call them.
NAMES = {
    "gauss_newton": "GaussNewton",
    "kfac_pinn": "KFACPINN",
    "kfac_star": "K-FAC*",
    "kfac": "K-FAC",
    "engd": "ENGD",
    "engd_layers": "ENGD, by layer",
    "engd_diagonal": "ENGD, diagonal",
    "spring": "SPRING",
    "kernel_engd": "kernel ENGD",
    "hessian_free": "Hessian-free",
    "lbfgs": "L-BFGS",
    "adam": "Adam",
    "sgd": "SGD",
}
#: The same everywhere: a colour a family, a line style a member; first-order methods in greys.
STYLES = {
    "gauss_newton": ("C3", "-"),
    "kfac_pinn": ("C1", "-"),
    "kfac_star": ("C0", "-"),
    "kfac": ("C0", "--"),
    "engd": ("C2", "-"),
    "engd_layers": ("C2", "--"),
    "engd_diagonal": ("C2", ":"),
    "spring": ("C4", "-"),
    "kernel_engd": ("C4", "--"),
    "hessian_free": ("C5", "-"),
    "lbfgs": ("0.2", "-"),
    "adam": ("0.45", "--"),
    "sgd": ("0.6", ":"),
}


LONGER = 2.0  # times the run that was cut short first


def errors(rows: pd.DataFrame, path: Path) -> None:
    """Held-out errors, a column a network: against seconds, and against steps with the published
    runs as crosses.
    """
    panels = list(rows.groupby(["problem", "parameters"]))
    size = (4 * len(panels) + 1.9, 6.6)
    figure, axes = plt.subplots(2, len(panels), figsize=size, layout="constrained", squeeze=False)
    for (top, bottom), ((problem, parameters), runs) in zip(axes.T, panels, strict=True):
        against(top, runs, "seconds")
        against(bottom, runs, "step")
        published(bottom, problem, parameters, set(runs["optimizer"]))
        top.set(title=f"{PROBLEMS[problem]().name}, {parameters:,} parameters")
        top.set(xlabel="CPU seconds")
        bottom.set(xlabel="steps (crosses: published run)")
        for axis in (top, bottom):
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set(ylabel="relative $L_2$ error, held-out points")
    figure.legend(handles=legend(rows), loc="outside right upper")
    write(figure, path)


def legend(rows: pd.DataFrame) -> list[plt.Line2D]:
    """The optimizers that there are, in the order of `STYLES`."""
    names = [name for name in STYLES if name in set(rows["optimizer"])]
    return [plt.Line2D([], [], label=NAMES[name], **style(name)) for name in names]


def style(optimizer: str) -> dict[str, str]:
    """Colour and line."""
    color, line = STYLES[optimizer]
    return {"color": color, "linestyle": line}


def write(figure: plt.Figure, path: Path) -> None:
    """Store a figure as a small PNG, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def against(axis: plt.Axes, rows: pd.DataFrame, unit: str) -> None:
    """Median and quartiles over the seeds, interpolated to common times; thin lines where only
    some of the seeds were trained for much longer.
    """
    for optimizer, runs in seeds_of(rows):
        shared = shared_end(runs, unit)
        times, (low, middle, high) = quartiles(runs[runs[unit] <= shared], unit)
        axis.plot(times, middle, **style(optimizer))
        axis.fill_between(times, low, high, color=STYLES[optimizer][0], alpha=0.2, linewidth=0)
        for _, run in runs[runs[unit] >= shared].groupby("seed"):
            if run[unit].max() < LONGER * shared:
                continue  # steps differ a little where seconds are given
            error = run["relative_l2"].clip(1e-17, 10)
            axis.plot(run[unit], error, **style(optimizer), linewidth=0.8)


def shared_end(runs: pd.DataFrame, unit: str) -> float:
    """Where the first run was cut short by its budget; a run that came to rest before goes on."""
    last = runs.sort_values("step").groupby("seed").tail(1)
    given = last["unit"].iloc[0]
    cut = last[last[given] >= 0.999 * last["budget"]]
    return float(cut[unit].min()) if len(cut) else float("inf")


def quartiles(runs: pd.DataFrame, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Common times, and the quartiles of the errors there, shape (3, times).

    A run that ended holds its last value: it is at rest, and leaving it out would let the median
    jump to those that are still on their way.
    """
    least = {"seconds": 0.1, "step": 1}[unit]
    longest = runs[unit].max()
    times = np.geomspace(min(least, longest / 2), longest, 100)
    curves = [
        np.interp(times, run[unit], np.log10(run["relative_l2"].clip(1e-17, 10)))
        for _, run in runs.groupby("seed")
    ]
    return times, 10 ** np.quantile(curves, [0.25, 0.5, 0.75], axis=0)


def published(axis: plt.Axes, problem: str, parameters: int, optimizers: set[str]) -> None:
    """The recorded runs of the publication, as relative errors."""
    for (*network, optimizer), run in RECORDED.items():
        if network == [problem, parameters] and optimizer in optimizers:
            steps, rms = np.transpose(run.curve)
            color, line = STYLES[optimizer]
            mark = "x" if line == "-" else "+"
            axis.plot(steps, rms / SCALE[problem], mark, color=color, markersize=4)


def seeds_of(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The runs that differ in nothing but their seed."""
    for (optimizer, *_), runs in rows.groupby(["optimizer", "settings", "points"]):
        yield optimizer, runs.sort_values("step")
