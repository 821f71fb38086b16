"""The published experiments: train, tune, and fill the tables of the docs.

    python examples/reproduce/run.py train heat_4d kfac_star --network 64-64-48-48 --seconds 300
    python examples/reproduce/run.py sweep heat_4d adam --network 64-64-48-48 --trials 50
    python examples/reproduce/run.py queue --hours 8
    python examples/reproduce/run.py study spectra
    python examples/reproduce/run.py headline
    python examples/reproduce/run.py report

An interrupted command continues where it was when given again, and a run that is given more
seconds goes on; what is done is not made again, unless in another --folder. Settings are those of
--settings, else the best of a sweep here, else the published ones, else the optimizer's defaults.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from published import pages, queue, studies, sweeps
from published.figures import errors
from published.headline import draw, lines
from published.recipes import OPTIMIZERS, PROBLEMS, resampling
from published.results import Experiment, load, markdown
from published.training import network_of, optimizer_of, run_all
from published.training import train as train_one

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "published"
SWEEPS = HERE / "results" / "sweeps"
BEST = HERE / "results" / "settings.json"
ROOT = HERE.parents[1]

Problem = Enum("Problem", {name: name for name in PROBLEMS}, type=str)
Optimizer = Enum("Optimizer", {name: name for name in OPTIMIZERS}, type=str)
StudyName = Enum("StudyName", {name: name for name in studies.STUDIES}, type=str)
Dtype = Enum("Dtype", {name: name for name in ("float64", "float32")}, type=str)
Widths = Annotated[str, typer.Option(help="hidden widths, e.g. 64-64-48-48; the smallest if empty")]
Json = Annotated[str, typer.Option(help='e.g. {"damping": 1e-8}')]
Sizes = Annotated[str, typer.Option(help='points of each condition, e.g. {"interior": 2000}')]
Seconds = Annotated[float | None, typer.Option(min=0.0)]
Count = Annotated[int, typer.Option(min=1)]


@app.command()
def train(
    problem: Problem,
    optimizer: Optimizer,
    network: Widths = "",
    seconds: Seconds = None,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    seeds: Count = 1,
    settings: Json = "",
    points: Sizes = "",
    keep: Annotated[int | None, typer.Option(help="steps that a batch is kept", min=1)] = None,
    device: str = "cpu",
    dtype: Dtype = Dtype.float64,
    published_start: Annotated[bool, typer.Option(help="begin with the published runs")] = False,
    folder: Path = RESULTS,
    jobs: Annotated[int, typer.Option(help="processes; bars are shown for one only", min=1)] = 1,
) -> None:
    """Train over the seeds 0, 1, ...; print the rows of the table and draw the errors."""
    if not (seconds or steps):
        raise typer.BadParameter("give --seconds or --steps: the run has no end")
    hidden = widths(network, problem.value)
    budget = Experiment(problem.value, optimizer.value, hidden, seconds, steps)
    budget = budget.replace(device=device, dtype=dtype.value, points=mapping(points))
    budget = budget.replace(published_start=published_start)
    budget = budget.replace(resample=keep or resampling(problem.value, optimizer.value))
    chosen = mapping(settings) or sweeps.known_settings(budget, BEST)
    check(budget.replace(settings=chosen))
    runs = [budget.replace(seed=seed, settings=chosen) for seed in range(seeds)]
    if jobs > 1:
        run_all(runs, folder, jobs)
    for run in runs:
        if run.done(folder):
            typer.echo(f"seed {run.seed}: done, {run.path(folder)}")
        else:
            train_one(run, folder, show=True)
    rows = load(folder)
    rows = rows[rows["problem"] == problem.value]
    errors(rows, folder / f"{problem.value}.png")
    typer.echo(pages.row(rows[rows["optimizer"] == optimizer.value]))


@app.command()
def sweep(
    problem: Problem,
    optimizer: Optimizer,
    network: Widths = "",
    seconds: Annotated[float, typer.Option(min=0.0)] = 20.0,
    trials: Count = 50,
    bayesian: Annotated[bool, typer.Option(help="TPE; random search otherwise")] = True,
    folder: Path = SWEEPS,
) -> None:
    """Tune an optimizer on one seed; settings better than those known are kept for `train`."""
    if not sweeps.tunable(optimizer.value):
        raise typer.BadParameter(f"{optimizer.value} has nothing to tune")
    hidden = widths(network, problem.value)
    base = Experiment(problem.value, optimizer.value, hidden, seconds, seed=sweeps.SEED)
    base = base.replace(resample=resampling(problem.value, optimizer.value))
    study = sweeps.sweep(base, trials, folder, bayesian)
    kept = sweeps.remember(base, study, BEST)
    said = "kept" if kept else f"not kept: {BEST} has a smaller error"
    typer.echo(f"relative L2 {study.best_value:.2e} with {study.best_params}, {said}")


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
    if not items:
        raise typer.BadParameter(f"nothing in the queue has {only!r} in its title; see --plan")
    if show:
        typer.echo(markdown(queue.plan(items, folders)))
    else:
        queue.work(items, folders, hours)


@app.command()
def study(name: StudyName, redraw: bool = False) -> None:
    """Make one of the studies and fill its page; --redraw: from the table it has."""
    (studies.publish if redraw else studies.make)(name.value)


@app.command()
def headline(folder: Path = RESULTS, out: Path = Path("figures/headline.png")) -> None:
    """Draw the README's figure from a folder of results, and print its numbers."""
    try:
        rows = load(folder)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error
    draw(rows, out)
    for line in lines(rows):
        typer.echo(markdown(line.reset_index()[SHOWN]))
    typer.echo(f"picture: {out}")


SHOWN = ["problem", "parameters", "counts", "budget", "optimizer", "seeds", "relative L2"]


@app.command()
def report(folder: Path = RESULTS) -> None:
    """Fill the tables and figures of a folder of results into README and docs."""
    try:
        pages.report(folder, ROOT)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error


def widths(text: str, problem: str) -> tuple[int, ...]:
    """(64, 48) for 64-48; () for the problem's smallest network, as runs of it are called."""
    if not re.fullmatch(r"([1-9]\d*(-[1-9]\d*)*)?", text):
        raise typer.BadParameter(f"widths are whole numbers, as in 64-64-48-48; found {text!r}")
    found = tuple(int(width) for width in text.split("-") if width)
    return () if found == PROBLEMS[problem]().networks[0][1:-1] else found


def mapping(text: str) -> dict[str, Any]:
    """The numbers of a JSON object, {} for no text."""
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{text} is no JSON ({error}); write '{EXAMPLE}'") from error
    if not isinstance(found, dict) or any(not isinstance(v, int | float) for v in found.values()):
        raise typer.BadParameter(f"{text} does not map names to numbers; write '{EXAMPLE}'")
    return found


EXAMPLE = '{"damping": 1e-8}'


def check(run: Experiment) -> None:
    """Say at once, in one line, what could not be trained: settings, points or device."""
    terms = list(PROBLEMS[run.problem]().terms)
    if unknown := set(run.points) - set(terms):
        raise typer.BadParameter(f"{run.problem} has points for {terms}, not {sorted(unknown)}")
    try:
        optimizer_of(run, network_of(run))
    except (TypeError, ValueError) as error:
        known = OPTIMIZERS[run.optimizer].settings
        hint = f"; a sweep tunes {known}" if known else ""
        raise typer.BadParameter(f"{run.optimizer} with {run.settings}: {error}{hint}") from error
    try:
        torch.empty(0, device=run.device)
    except (AssertionError, RuntimeError) as error:
        raise typer.BadParameter(f"--device {run.device}: {error}") from error


if __name__ == "__main__":
    app()
