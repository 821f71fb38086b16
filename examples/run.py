"""The published experiments: train, tune, and fill the tables of the docs.

    python examples/run.py train heat_4d kfac_star --network 64-64-48-48 --seconds 300 --seeds 10
    python examples/run.py sweep heat_4d adam --network 64-64-48-48 --seconds 30 --trials 50
    python examples/run.py report

An interrupted command continues where it was when given again. Settings are those of --settings,
else the best of a sweep, else the published ones.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import optuna
import typer
from experiments import pages
from experiments.figures import error_against_seconds
from experiments.published import SETTINGS
from experiments.recipes import OPTIMIZERS, PROBLEMS, SPACES
from experiments.results import Experiment, load
from experiments.training import network_of, run_all
from experiments.training import train as train_one

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "published"
BEST = HERE / "results" / "settings.json"
PAGES = HERE.parent / "docs" / "experiments"

Problem = Enum("Problem", {name: name for name in PROBLEMS}, type=str)
Optimizer = Enum("Optimizer", {name: name for name in OPTIMIZERS}, type=str)
Widths = Annotated[str, typer.Option(help="hidden widths, e.g. 64-64-48-48; the smallest if empty")]
Json = Annotated[str, typer.Option(help='of the optimizer, e.g. {"damping": 1e-8}')]


@app.command()
def train(
    problem: Problem,
    optimizer: Optimizer,
    network: Widths = "",
    seconds: float | None = None,
    steps: int | None = None,
    seeds: int = 1,
    settings: Json = "",
    device: str = "cpu",
    folder: Path = RESULTS,
    jobs: Annotated[int, typer.Option(help="processes; bars are shown for one only")] = 1,
) -> None:
    """Train over the seeds 0, 1, ... until the seconds or steps are spent."""
    if not (seconds or steps):
        raise typer.BadParameter("give --seconds or --steps: the run has no end")
    budget = Experiment(problem.value, optimizer.value, widths(network), seconds, steps)
    budget = budget.replace(device=device, resample=published_resampling(budget))
    chosen = json.loads(settings) if settings else known_settings(budget)
    runs = [budget.replace(seed=seed, settings=chosen) for seed in range(seeds)]
    if jobs > 1:
        run_all(runs, folder, jobs)
    for run in runs:
        if not run.path(folder).exists():
            last = train_one(run, folder, show=True)
            typer.echo(
                f"seed {run.seed}: relative L2 {last['relative_l2']:.2e}, RMS {last['rms']:.2e}"
            )


@app.command()
def sweep(
    problem: Problem,
    optimizer: Optimizer,
    network: Widths = "",
    seconds: float = 20.0,
    trials: int = 50,
    bayesian: Annotated[bool, typer.Option(help="TPE; random search otherwise")] = True,
    folder: Path = HERE / "results" / "sweeps",
) -> None:
    """Tune an optimizer on one seed; the best settings are written for `train` to use."""
    sampler = optuna.samplers.TPESampler(seed=0) if bayesian else optuna.samplers.RandomSampler(0)
    base = Experiment(problem.value, optimizer.value, widths(network), seconds, seed=100)
    base = base.replace(resample=published_resampling(base))

    def error(trial: optuna.Trial) -> float:
        settings = {name: suggest(trial, name) for name in OPTIMIZERS[base.optimizer].settings}
        return train_one(base.replace(settings=settings), folder)["relative_l2"]

    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        sampler=sampler,
        study_name=f"{base.name}_{type(sampler).__name__}",
        storage=f"sqlite:///{folder / 'studies.db'}",
        load_if_exists=True,
    )
    study.optimize(error, n_trials=max(0, trials - len(study.trials)), show_progress_bar=True)
    remember(base, study.best_params)
    typer.echo(f"{study.best_value:.2e} with {study.best_params}")


@app.command()
def report(folder: Path = RESULTS) -> None:
    """Fill table and figure of every problem that has results into its page of the docs."""
    for problem, rows in load(folder).groupby("problem"):
        figure = f"../figures/{problem}.png"
        error_against_seconds(rows, PAGES / figure)
        pages.fill(PAGES / f"{problem}.md", pages.section(rows, folder, figure))


def widths(text: str) -> tuple[int, ...]:
    """(64, 48) for 64-48."""
    return tuple(int(width) for width in text.split("-") if width)


def suggest(trial: optuna.Trial, name: str) -> float:
    """A value of a setting from its space."""
    low, high, logarithmic = SPACES[name]
    return trial.suggest_float(name, low, high, log=logarithmic)


def published_resampling(experiment: Experiment) -> int | None:
    """1 where the published runs of this optimizer drew new points every step."""
    resampled = PROBLEMS[experiment.problem]().resample_every is not None
    return 1 if resampled and OPTIMIZERS[experiment.optimizer].fresh else None


def known_settings(experiment: Experiment) -> dict[str, float]:
    """The best of a sweep, else the published ones, else the optimizer's defaults."""
    parameters = sum(p.numel() for p in network_of(experiment).parameters())
    published = SETTINGS.get((experiment.problem, parameters, experiment.optimizer), {})
    swept = json.loads(BEST.read_text()) if BEST.exists() else {}
    return swept.get(key(experiment), published)


def remember(experiment: Experiment, settings: dict[str, float]) -> None:
    """Add the best settings of a sweep to the file that is committed."""
    known = json.loads(BEST.read_text()) if BEST.exists() else {}
    BEST.parent.mkdir(parents=True, exist_ok=True)
    BEST.write_text(json.dumps({**known, key(experiment): settings}, indent=1) + "\n")


def key(experiment: Experiment) -> str:
    """What settings are stored under."""
    return f"{experiment.problem} {'-'.join(map(str, experiment.network))} {experiment.optimizer}"


if __name__ == "__main__":
    app()
