"""Figures of results."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

__all__ = ["error_against_seconds"]


def error_against_seconds(rows: pd.DataFrame, path: Path) -> None:
    """Median and quartiles over the seeds of the held-out error, one panel a network."""
    panels = list(rows.groupby(["problem", "network"]))
    width = 4 * len(panels) + 1.5
    figure, axes = plt.subplots(
        1, len(panels), figsize=(width, 4), layout="constrained", squeeze=False
    )
    names = sorted(rows["optimizer"].unique())
    colors = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    for axis, ((problem, network), runs) in zip(axes[0], panels, strict=True):
        panel(axis, runs, colors)
        axis.set(title=f"{problem}, {network}", xlabel="seconds", yscale="log")
        axis.set_ylabel("held-out relative $L_2$ error")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def panel(axis: plt.Axes, rows: pd.DataFrame, colors: dict[str, tuple[float, ...]]) -> None:
    """One line an optimizer, its runs interpolated to common times."""
    for (optimizer, *_), runs in rows.groupby(["optimizer", "settings", "budget"]):
        times = np.linspace(0, runs["seconds"].max(), 200)
        curves = [
            np.interp(times, run["seconds"], np.log10(run["relative_l2"].clip(upper=10)))
            for _, run in runs.groupby("seed")
        ]
        low, middle, high = 10 ** np.quantile(curves, [0.25, 0.5, 0.75], axis=0)
        axis.plot(times, middle, label=optimizer, color=colors[optimizer])
        axis.fill_between(times, low, high, color=colors[optimizer], alpha=0.2, linewidth=0)
