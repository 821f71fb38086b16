"""Optimizers side by side: tune the baselines, train over seeds, draw the table and the figure.

    python examples/reproduce/compare.py tune    # every setting of every grid, on one seed
    python examples/reproduce/compare.py train   # the best settings over the seeds; resumes
    python examples/reproduce/compare.py report  # table (Markdown, CSV) and figure (PNG)

float64, one thread a run; the same networks, initial parameters and points for all; errors on
points held out; seconds are CPU seconds of the steps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from published.figures import NAMES, errors
from published.pages import fill, hardware, plain, winners
from published.recipes import OPTIMIZERS, PROBLEMS
from published.results import Experiment, best_settings, last_rows, load, markdown, summary
from published.training import run_all

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "compare"
PAGE = ROOT / "docs" / "experiments" / "compare.md"
CHOOSING = ROOT / "docs" / "choosing.md"
SEEN = (
    "Relative error against CPU seconds for thirteen optimizers on 2d Poisson, 4+1d heat and "
    "Burgers; GaussNewton ends lowest on the first two"
)
FIGURE = ROOT / "docs" / "figures" / "compare.png"
Optimizer = Enum("Optimizer", {name: name for name in OPTIMIZERS}, type=str)
ALL = list(Optimizer)
TUNING_SEED = 100
HIDDEN = ["points", "dtype", "device", "unit", "budget", "mean", "deviation"]  # said above it

# Small enough for every optimizer, with five rows of the Jacobian a parameter where there is a
# front: fewer would be interpolated without solving the equation between them.
TASKS = {
    "poisson_2d": {"network": (16, 16)},
    "heat_4d": {"network": (16, 16), "points": {"interior": 1500, "conditions": 300}},
    "burgers": {"network": (16, 16, 16), "points": {"interior": 3000, "conditions": 400}},
}


@app.command()
def tune(seconds: float = 5.0, jobs: int = 1) -> None:
    """Try every setting of every grid on one seed; write the best ones."""
    folder = RESULTS / "tuning"
    run_all([e for p in TASKS for e in grid(p, seconds)], folder, jobs)
    tried = load(folder)
    columns = ["problem", "optimizer", "settings", "step", "relative_l2"]
    tried = last_rows(tried)[columns].sort_values(columns)
    tried.to_csv(RESULTS / "tuning.csv", index=False, float_format="%.3g")
    (RESULTS / "best.json").write_text(json.dumps(best_settings(load(folder)), indent=1) + "\n")


@app.command()
def train(
    seconds: float = 18.0,
    seeds: int = 5,
    jobs: int = 1,
    optimizer: Annotated[list[Optimizer], typer.Option(help="only these; may be repeated")] = ALL,
) -> None:
    """Train every optimizer with its best settings; what is there already is kept."""
    best = json.loads((RESULTS / "best.json").read_text())
    experiments = [
        Experiment(p, o, seconds=seconds, seed=seed, settings=best[p].get(o, {}), **TASKS[p])
        for seed, p, o in itertools.product(range(seeds), TASKS, [o.value for o in optimizer])
    ]
    run_all(experiments, RESULTS, jobs)
    report()


@app.command()
def report() -> None:
    """Table and figure of what has been trained."""
    rows = load(RESULTS)
    table = summary(rows)
    table = table.drop(columns=["limit", "options"])
    table.to_csv(RESULTS / "table.csv", index=False, float_format="%.3g")
    errors(rows, FIGURE)
    full = markdown(table.assign(settings=table["settings"].map(plain)).drop(columns=HIDDEN))
    text = [
        f"![{SEEN}](../figures/compare.png)",
        "*Medians and quartiles over the runs.*",
        markdown(short(table)).rstrip(),
        "<details markdown>\n<summary>All columns</summary>",
        full.rstrip(),
        f"Measured on {hardware(RESULTS)}",
        "</details>",
    ]
    fill(PAGE, "\n\n".join(text))
    fill(CHOOSING, winners(rows), "compare")
    typer.echo(full)


def short(table: pd.DataFrame) -> pd.DataFrame:
    """A line an optimizer, a column a problem: the median error, and after how many steps."""
    cells = [f"{e:.1e} ({n:.0f} steps)" for e, n in table[["relative L2", "steps"]].to_numpy()]
    named = table.assign(
        cell=cells,
        problem=[PROBLEMS[name]().name for name in table["problem"]],
        optimizer=table["optimizer"].map(NAMES),
    ).drop_duplicates(["optimizer", "problem"])
    wide = named.pivot(index="optimizer", columns="problem", values="cell").fillna("–")
    return wide.reindex([name for name in NAMES.values() if name in wide.index]).reset_index()


def grid(problem: str, seconds: float) -> Iterator[Experiment]:
    """The experiments of a problem's tuning."""
    for name, recipe in OPTIMIZERS.items():
        for values in itertools.product(*recipe.grid.values()):
            settings = dict(zip(recipe.grid, values, strict=True))
            if settings:
                task = {"seconds": seconds, "seed": TUNING_SEED, **TASKS[problem]}
                yield Experiment(problem, name, settings=settings, **task)


if __name__ == "__main__":
    app()
