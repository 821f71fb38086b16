"""How long a batch is kept, and how long the factors remember, at several batch sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from published.figures import write
from published.recipes import NEVER
from published.results import Experiment, last_rows, load
from published.training import train

__all__ = ["draw", "experiments", "measure", "medians"]

PROBLEM, NETWORK, DAMPING, SEEDS = "heat_4d", (32, 32), 1e-9, 3
BATCHES = (150, 600, 2400)
KEPT = (1, 10, 100, NEVER)
EMAS = (0.0, 0.5, 0.9, 0.95, 0.99)


def experiments(seconds: float) -> Iterator[Experiment]:
    """K-FAC* at every batch size: each duration with EMA 0.95, each EMA with batches kept 100."""
    settings = dict.fromkeys([(kept, 0.95) for kept in KEPT] + [(100, ema) for ema in EMAS])
    for seed, batch, (kept, ema) in product(range(SEEDS), BATCHES, settings):
        yield Experiment(
            PROBLEM,
            "kfac_star",
            NETWORK,
            seconds,
            seed=seed,
            points={"interior": batch, "conditions": batch // 6},
            resample=kept,
            settings={"damping": DAMPING, "ema": ema, "lr": 0.1},
        )


def measure(folder: Path, seconds: float = 10.0) -> pd.DataFrame:
    """A row a run; those that are there already are not made again."""
    for run in experiments(seconds):
        if not run.done(folder):
            train(run, folder)
            run.checkpoint(folder).unlink()
    rows = last_rows(load(folder))
    settings = pd.DataFrame([json.loads(text) for text in rows["settings"]], index=rows.index)
    kept = rows["points"].str.split(", ").str[1].rename("kept")
    batch = rows["points"].str.split(" ").str[0].astype(int).rename("batch")
    columns = ["seed", "step", "seconds", "loss", "held_out_loss", "relative_l2"]
    table = pd.concat([batch, kept, settings["ema"], rows[columns]], axis=1)
    return table.sort_values(["batch", "kept", "ema", "seed"], ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Left the duration, right the EMA factor; a line a batch size, marks the seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    names = {"every1": "1", "every10": "10", "every100": "100", "fixed": "always"}
    durations = table[table["ema"] == 0.95].assign(x=lambda rows: rows["kept"].map(names))
    averages = table[table["kept"] == "every100"].assign(x=lambda rows: rows["ema"].map(str))
    panel(left, durations, list(names.values()), "steps that a batch is kept (EMA 0.95)")
    panel(right, averages, [str(ema) for ema in EMAS], "EMA factor (batch kept 100 steps)")
    left.set_ylabel("held-out relative $L_2$ error")
    left.legend(title="interior points")
    write(figure, path)


def panel(axis: plt.Axes, rows: pd.DataFrame, order: list[str], label: str) -> None:
    """Medians over the seeds, and the seeds."""
    for number, (batch, runs) in enumerate(rows.groupby("batch")):
        medians = runs.groupby("x")["relative_l2"].median().reindex(order)
        axis.plot(range(len(order)), medians, color=f"C{number}", label=str(batch))
        axis.plot(runs["x"].map(order.index), runs["relative_l2"], "o", color=f"C{number}", ms=3)
    axis.set(yscale="log", xlabel=label, xticks=range(len(order)), xticklabels=order)
    axis.grid(alpha=0.3)


def medians(table: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds."""
    groups = table.groupby(["batch", "kept", "ema"])
    named = {"kept": "batch kept", "ema": "EMA", "step": "steps", "held_out_loss": "held-out loss"}
    found = groups[["step", "loss", "held_out_loss", "relative_l2"]].median().reset_index()
    return found.rename(columns={"batch": "points", "relative_l2": "relative L2", **named})
