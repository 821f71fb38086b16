"""The published experiments: train, tune, and fill the tables of the docs.

    python examples/run.py train heat_4d kfac_star --network 64-64-48-48 --seconds 300 --seeds 10
    python examples/run.py sweep heat_4d adam --network 64-64-48-48 --seconds 30 --trials 50
    python examples/run.py queue --hours 8
    python examples/run.py study spectra
    python examples/run.py report

An interrupted command continues where it was when given again, and a run that is given more
seconds goes on. Settings are those of --settings, else the best of a sweep here, else the
published ones, else the optimizer's defaults.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from experiments import pages, queue, studies, sweeps
from experiments.figures import errors
from experiments.recipes import OPTIMIZERS, PROBLEMS, resampling
from experiments.results import Experiment, load, markdown
from experiments.training import run_all
from experiments.training import train as train_one

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "published"
SWEEPS = HERE / "results" / "sweeps"
BEST = HERE / "results" / "settings.json"
PAGES = HERE.parent / "docs" / "experiments"

Problem = Enum("Problem", {name: name for name in PROBLEMS}, type=str)
Optimizer = Enum("Optimizer", {name: name for name in OPTIMIZERS}, type=str)
StudyName = Enum("StudyName", {name: name for name in studies.STUDIES}, type=str)
Widths = Annotated[str, typer.Option(help="hidden widths, e.g. 64-64-48-48; the smallest if empty")]
Json = Annotated[str, typer.Option(help='e.g. {"damping": 1e-8}')]
Sizes = Annotated[str, typer.Option(help='points of each condition, e.g. {"interior": 2000}')]


@app.command()
def train(
    problem: Problem,
    optimizer: Optimizer,
    network: Widths = "",
    seconds: float | None = None,
    steps: int | None = None,
    seeds: int = 1,
    settings: Json = "",
    points: Sizes = "",
    keep: Annotated[int | None, typer.Option(help="steps that a batch is kept")] = None,
    device: str = "cpu",
    dtype: str = "float64",
    folder: Path = RESULTS,
    jobs: Annotated[int, typer.Option(help="processes; bars are shown for one only")] = 1,
) -> None:
    """Train over the seeds 0, 1, ... until the seconds or steps are spent; draw the errors."""
    if not (seconds or steps):
        raise typer.BadParameter("give --seconds or --steps: the run has no end")
    budget = Experiment(problem.value, optimizer.value, widths(network), seconds, steps)
    budget = budget.replace(device=device, dtype=dtype, points=json.loads(points or "{}"))
    budget = budget.replace(resample=keep or resampling(problem.value, optimizer.value))
    chosen = json.loads(settings) if settings else sweeps.known_settings(budget, BEST)
    runs = [budget.replace(seed=seed, settings=chosen) for seed in range(seeds)]
    if jobs > 1:
        run_all(runs, folder, jobs)
    for run in runs:
        if not run.done(folder):
            last = train_one(run, folder, show=True)
            typer.echo(
                f"seed {run.seed}: relative L2 {last['relative_l2']:.2e}, RMS {last['rms']:.2e}"
            )
    rows = load(folder)
    errors(rows[rows["problem"] == problem.value], folder / f"{problem.value}.png")


@app.command()
def sweep(
    problem: Problem,
    optimizer: Optimizer,
    network: Widths = "",
    seconds: float = 20.0,
    trials: int = 50,
    bayesian: Annotated[bool, typer.Option(help="TPE; random search otherwise")] = True,
    folder: Path = SWEEPS,
) -> None:
    """Tune an optimizer on one seed; the best settings are written for `train` to use."""
    base = Experiment(problem.value, optimizer.value, widths(network), seconds, seed=sweeps.SEED)
    base = base.replace(resample=resampling(problem.value, optimizer.value))
    study = sweeps.sweep(base, trials, folder, bayesian)
    sweeps.remember(base, study, BEST)
    typer.echo(f"{study.best_value:.2e} with {study.best_params}")


@app.command("queue")
def make(
    hours: float = 1.0,
    show: Annotated[bool, typer.Option("--plan", help="only say what is done and due")] = False,
    only: Annotated[str, typer.Option(help='what has this in its title, e.g. "heat_4d 64"')] = "",
    folder: Path = RESULTS,
) -> None:
    """Tune and train whatever the docs still miss, the most valuable first."""
    folders = queue.Folders(folder, SWEEPS, BEST)
    items = [item for item in queue.QUEUE if only in item.title]
    if show:
        typer.echo(markdown(queue.plan(items, folders)))
    else:
        queue.work(items, folders, hours)


@app.command()
def study(name: StudyName, redraw: bool = False) -> None:
    """Measure a question of the reviewers and fill its page; --redraw: from the table it has."""
    (studies.publish if redraw else studies.make)(name.value)


@app.command()
def report(folder: Path = RESULTS) -> None:
    """Fill table and figure of every problem that has results into its page of the docs."""
    pages.report(folder, PAGES)


def widths(text: str) -> tuple[int, ...]:
    """(64, 48) for 64-48."""
    return tuple(int(width) for width in text.split("-") if width)


if __name__ == "__main__":
    app()
