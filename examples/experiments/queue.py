"""The order in which results are made, the most valuable ones first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from rich.console import Console

from experiments.published import steps
from experiments.recipes import OPTIMIZERS, PROBLEMS
from experiments.results import Experiment
from experiments.sweeps import SEED, key, known_settings, remember, sweep
from experiments.training import network_of, train

__all__ = ["QUEUE", "Folders", "Stage", "plan", "resampling", "work"]


@dataclass(frozen=True)
class Folders:
    """Where results, single trials of sweeps, and the best settings are."""

    results: Path
    sweeps: Path
    best: Path


@dataclass(frozen=True)
class Stage:
    """Some optimizers on one network over some seeds.

    Attributes:
        problem, network: as of an `Experiment`.
        optimizers: names in `recipes`; those whose settings are not known are tuned first.
        seconds: of a run. A later stage may go on with the runs of an earlier one.
        seeds: 0, 1, ...
        tuning: seconds of a trial; there are `trials` of them.
        points, settings: of all runs; settings override what is known.
    """

    problem: str
    network: tuple[int, ...]
    optimizers: tuple[str, ...]
    seconds: float
    seeds: int = 10
    tuning: float = 5.0
    trials: int = 12
    points: dict[str, int] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    def experiment(self, optimizer: str, folders: Folders) -> Experiment:
        """The run of seed 0. It ends at the published number of steps where that is known."""
        run = Experiment(self.problem, optimizer, self.network, self.seconds, points=self.points)
        run = run.replace(resample=resampling(run))
        parameters = sum(p.numel() for p in network_of(run).parameters())
        known = steps(self.problem, parameters, optimizer)
        return run.replace(
            steps=None if known != known else int(known),
            settings={**known_settings(run, folders.best), **self.settings},
        )

    def runs(self, folders: Folders) -> Iterator[Experiment]:
        """All of them; the seeds one after the other, so that every optimizer soon has some."""
        firsts = [self.experiment(name, folders) for name in self.optimizers]
        for seed in range(self.seeds):
            yield from (first.replace(seed=seed) for first in firsts)

    def untuned(self, folders: Folders) -> Iterator[Experiment]:
        """What is to be tuned before."""
        for name in self.optimizers:
            run = self.experiment(name, folders)
            if OPTIMIZERS[name].settings and not run.settings:
                yield run.replace(seconds=self.tuning, steps=None, seed=SEED)


def resampling(experiment: Experiment) -> int | None:
    """How long this optimizer keeps a batch, where it is not as long as K-FAC."""
    resampled = PROBLEMS[experiment.problem]().resample_every is not None
    return OPTIMIZERS[experiment.optimizer].every if resampled else None


BASELINES = ("sgd", "adam", "lbfgs", "hessian_free", "kfac", "kfac_star")
NATURAL = ("engd", "engd_layers", "engd_diagonal", "kernel_engd", "spring")
OURS = ("kfac_pinn", "gauss_newton")
EVERY = (*OURS, *BASELINES, *NATURAL)
LARGE, HUGE, WIDEST = (64, 64, 48, 48), (256, 256, 128, 128), (768, 768, 512, 512)
DENSE = {"points": {"interior": 10000, "conditions": 2000}, "settings": {"rows": 1000}}

FAST = ("kfac_pinn", "kfac_star", "adam")

#: The first stage is complete within the first hour. ENGD, kernel ENGD and SPRING are not run on
#: the large networks: a step of 3500 points and 10,065 parameters takes several seconds here.
QUEUE = (
    Stage("poisson_2d", (), EVERY, 20),
    Stage("heat_4d", LARGE, ("kfac_pinn",), 300, seeds=3),
    Stage("heat_4d", LARGE, ("gauss_newton",), 300, seeds=3, **DENSE),
    Stage("heat_4d", LARGE, BASELINES, 60, seeds=3, tuning=20, trials=8),
    Stage("poisson_5d", LARGE, FAST, 100, seeds=3, tuning=20, trials=6),
    Stage("poisson_10d", HUGE, FAST, 200, seeds=3, tuning=30, trials=4),
    Stage("poisson_100d", WIDEST, FAST, 300, seeds=1, tuning=60, trials=3),
    Stage("heat_1d", (), EVERY, 20),
    Stage("heat_4d", LARGE, ("kfac_pinn",), 300),
    Stage("heat_4d", LARGE, BASELINES, 60),
    Stage("poisson_2d", (), EVERY, 100),
    Stage("heat_1d", (), EVERY, 100),
    Stage("heat_4d", LARGE, BASELINES, 300),
    Stage("burgers", (), OURS, 100, seeds=3),
    Stage("burgers_smooth", (), OURS, 100, seeds=3),
    Stage("fokker_planck", HUGE, FAST, 200, seeds=1, tuning=30, trials=4),
    Stage("poisson_5d", (), EVERY, 60, seeds=3),
    Stage("heat_4d", (), EVERY, 60, seeds=3),
    Stage("poisson_2d", LARGE, ("kfac_pinn", *BASELINES), 60, seeds=3),
    Stage("heat_1d", LARGE, ("kfac_pinn", *BASELINES), 60, seeds=3),
)


def work(stages: tuple[Stage, ...], folders: Folders, hours: float) -> None:
    """Make what is missing, in order, and start nothing after the hours are over."""
    console, end = Console(), time.monotonic() + 3600 * hours
    for stage in stages:
        for run in stage.untuned(folders):
            if time.monotonic() > end:
                return
            console.print(f"tuning {key(run)}")
            remember(run, sweep(run, stage.trials, folders.sweeps), folders.best)
        for run in stage.runs(folders):
            if time.monotonic() > end:
                return
            if not run.done(folders.results):
                attempt(run, folders.results, console)


def attempt(run: Experiment, folder: Path, console: Console) -> None:
    """Train; a run that fails is reported, and the queue goes on."""
    try:
        last = train(run, folder, show=True)
    except Exception as error:  # one broken run must not stop a night
        console.print(f"{run.name} failed: {error!r}")
        return
    console.print(
        f"{run.name}: RMS {last.get('rms', float('nan')):.1e}, {last['step']} steps, "
        f"{last['seconds']:.0f} s"
    )


def plan(stages: tuple[Stage, ...], folders: Folders) -> pd.DataFrame:
    """A row a stage: runs done and due, and at most how many hours those take."""
    rows = []
    for stage in stages:
        runs = list(stage.runs(folders))
        due = sum(not run.done(folders.results) for run in runs)
        tuning = len(list(stage.untuned(folders))) * stage.trials * stage.tuning
        rows.append(
            {
                "problem": stage.problem,
                "network": "-".join(map(str, stage.network)) or "small",
                "optimizers": len(stage.optimizers),
                "seconds": stage.seconds,
                "done": len(runs) - due,
                "due": due,
                "hours": round((due * stage.seconds + tuning) / 3600, 2),
            }
        )
    return pd.DataFrame(rows)
