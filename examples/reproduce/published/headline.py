"""The figure of the README: a line a problem, a marker an optimizer, errors on a log axis."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.lines import Line2D

from published.figures import NAMES, STYLES
from published.recipes import PROBLEMS
from published.recorded import RMS, SCALE
from published.results import summary

__all__ = ["draw", "line_of", "lines", "runs_of"]

#: Those compared, and their markers.
MARKERS = {"adam": "v", "lbfgs": "^", "kfac_star": "s", "kfac_pinn": "o", "gauss_newton": "D"}
OURS = ("kfac_pinn", "gauss_newton")
LOWEST = 1e-14  # what is smaller is drawn here


def lines(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """One comparison a problem: a network, a number of points and a budget that several optimizers
    had, with one row an optimizer; the network of which there are most runs, the longest budget.
    """
    timed = rows[(rows["unit"] == "seconds") & rows["optimizer"].isin(MARKERS)]
    if timed.empty:
        return []
    table = summary(timed)
    table["counts"] = table["points"].str.partition(",")[0]
    found = [line_of(table[table["problem"] == problem]) for problem in PROBLEMS]
    return [line for line in found if len(line) > 1]


def line_of(table: pd.DataFrame) -> pd.DataFrame:
    """The comparison of one problem; empty where no two optimizers had equal points and budget."""
    candidates = []
    for _, same in table.groupby(["parameters", "counts"]):  # a network on so many points
        equal = [best_of_each(runs) for _, runs in same.groupby("budget")]
        if several := [line for line in equal if len(line) > 1]:
            candidates.append((max(map(runs_of, several)), several[-1]))  # the longest budget
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else table.head(0)


def best_of_each(runs: pd.DataFrame) -> pd.DataFrame:
    """One row an optimizer: ours as they are, with points drawn as in the published runs; of the
    others the best of the settings that were run.
    """
    other_sampling = runs["optimizer"].isin(OURS) & runs["points"].str.endswith("every1")
    kept = runs[~other_sampling].sort_values("relative L2")
    return kept.drop_duplicates("optimizer").set_index("optimizer")


def network(line: pd.DataFrame) -> int:
    """The number of parameters of a comparison."""
    return int(line["parameters"].iloc[0])


def runs_of(line: pd.DataFrame) -> int:
    """How many runs a comparison rests on."""
    return int(line["seeds"].sum())


def draw(rows: pd.DataFrame, path: Path) -> None:
    """The comparisons of all problems as one dot plot."""
    shown = lines(rows)
    size = (8.4, 1.3 + 0.41 * len(shown))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    for height, line in enumerate(reversed(shown)):
        axis.axhline(height, color="0.9", linewidth=1, zorder=0)
        for offset, (name, mark) in enumerate(MARKERS.items(), start=-2):
            if name not in line.index:
                continue
            error, color = max(line.loc[name, "relative L2"], LOWEST), STYLES[name][0]
            beside = height - 0.09 * offset  # equal errors stay apart
            axis.plot(error, beside, mark, color=color, markersize=7, markeredgecolor="white")
            for end in published(line, name):
                axis.plot(end, height, "|", color=STYLES[name][0], markersize=15)
    axis.set_yticks(range(len(shown)), [label(line) for line in reversed(shown)], fontsize=8)
    axis.set(xscale="log", xlim=(LOWEST / 3, 3), ylim=(-0.6, len(shown) - 0.4))
    axis.set_xlabel("relative $L_2$ error on held-out points")
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    figure.legend(handles=legend(), loc="outside upper center", ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def published(line: pd.DataFrame, optimizer: str) -> list[float]:
    """The end of the published run, as a relative error; none where none is known."""
    problem = line["problem"].iloc[0]
    rms = RMS.get((problem, network(line), optimizer))
    return [rms / SCALE[problem]] if rms else []


def label(line: pd.DataFrame) -> str:
    """Problem, size, budget and how many runs each marker is the median of."""
    first = line.iloc[0]
    counts = sorted({int(n) for n in line["seeds"]})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    runs = "1 run" if counts == [1] else f"median of {many} runs"
    name = PROBLEMS[first["problem"]]().name
    return f"{name}\n{first['parameters']:,} parameters, {first['budget']:g} s, {runs}"


def legend() -> list[Line2D]:
    """A marker an optimizer, and the tick."""
    made = [
        Line2D([], [], label=NAMES[name], marker=mark, color=STYLES[name][0], linestyle="")
        for name, mark in MARKERS.items()
    ]
    tick = Line2D([], [], label="published end", marker="|", color="0.2", linestyle="")
    return [*made, tick]
