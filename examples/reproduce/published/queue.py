"""The order in which results are made, the most valuable ones first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pandas as pd
from rich.console import Console

from published import studies
from published.recipes import OPTIMIZERS, resampling
from published.recorded import steps
from published.results import Experiment
from published.sweeps import SEED, key, known_settings, remember, sweep
from published.training import network_of, train

__all__ = ["QUEUE", "Folders", "Item", "Stage", "Study", "plan", "work"]


@dataclass(frozen=True)
class Folders:
    """Where results, single trials of sweeps, and the best settings are."""

    results: Path
    sweeps: Path
    best: Path


@dataclass(frozen=True)
class Job:
    """Something that is due: its name, about how many seconds it takes, and how it is done."""

    name: str
    seconds: float
    do: Callable[[], str]


class Item(Protocol):
    """An entry of the queue."""

    @property
    def title(self) -> str:
        """What it makes."""

    def due(self, folders: Folders) -> Iterator[Job]:
        """What is missing; read while it is worked off, so that later jobs know the earlier."""


@dataclass(frozen=True)
class Study:
    """A question of the reviewers: one of `studies`, done once its table exists."""

    name: str
    seconds: float

    @property
    def title(self) -> str:
        return f"study: {self.name}"

    def due(self, folders: Folders) -> Iterator[Job]:
        if not studies.table(self.name).exists():
            yield Job(self.title, self.seconds, lambda: studies.make(self.name))


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
    tuning: float = 10.0
    trials: int = 10
    points: dict[str, int] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)

    def experiment(self, optimizer: str, folders: Folders) -> Experiment:
        """The run of seed 0. It ends at the published number of steps where that is known."""
        run = Experiment(self.problem, optimizer, self.network, self.seconds, points=self.points)
        run = run.replace(resample=resampling(self.problem, optimizer))
        parameters = sum(p.numel() for p in network_of(run).parameters())
        known = steps(self.problem, parameters, optimizer)
        return run.replace(
            steps=None if known != known else int(known),
            settings={**known_settings(run, folders.best), **self.settings},
        )

    @property
    def title(self) -> str:
        widths = "-".join(map(str, self.network)) or "small"
        names = ", ".join(self.optimizers)
        return f"{self.problem} {widths}, {self.seeds} seeds, {self.seconds:g} s: {names}"

    def due(self, folders: Folders) -> Iterator[Job]:
        for name in self.optimizers:
            run = self.experiment(name, folders)
            if OPTIMIZERS[name].settings and not run.settings:
                run = run.replace(seconds=self.tuning, steps=None, seed=SEED)
                yield Job(f"tuning {key(run)}", self.trials * self.tuning, self.tune(run, folders))
        for run in self.runs(folders):
            if not run.done(folders.results):
                yield Job(run.name, self.seconds, trained(run, folders.results))

    def runs(self, folders: Folders) -> Iterator[Experiment]:
        """All of them; the seeds one after the other, so that every optimizer soon has some."""
        firsts = [self.experiment(name, folders) for name in self.optimizers]
        for seed in range(self.seeds):
            yield from (first.replace(seed=seed) for first in firsts)

    def tune(self, run: Experiment, folders: Folders) -> Callable[[], str]:
        """The sweep whose best settings all seeds use."""

        def do() -> str:
            study = sweep(run, self.trials, folders.sweeps)
            remember(run, study, folders.best)
            return f"relative L2 {study.best_value:.1e} with {study.best_params}"

        return do


def trained(run: Experiment, folder: Path) -> Callable[[], str]:
    """A run with its bar."""

    def do() -> str:
        last = train(run, folder, show=True)
        return f"RMS {last['rms']:.1e}, {last['step']} steps, {last['seconds']:.0f} s"

    return do


BASELINES = ("sgd", "adam", "lbfgs", "hessian_free", "kfac", "kfac_star")
NATURAL = ("engd", "engd_layers", "engd_diagonal", "kernel_engd", "spring")
OURS = ("kfac_pinn", "gauss_newton")
EVERY = (*OURS, *BASELINES, *NATURAL)
LARGE, HUGE = (64, 64, 48, 48), (256, 256, 128, 128)
FEW = {"points": {"interior": 2000, "boundary": 500}, "settings": {"rows": 700}}
DENSE = {"points": {"interior": 10000, "conditions": 2000}, "settings": {"rows": 1300}}

WITH_HUGE = ("heat_4d", "poisson_5d", "poisson_2d", "heat_1d")  # besides 10d Poisson
FAST = ("kfac_pinn", "kfac_star", "adam")
BY_STEPS = ("kfac", "kfac_star", "adam")  # these end at the published number of steps

#: The first stage is complete within the first hour. ENGD, kernel ENGD and SPRING are not run on
#: the large networks: a step of 3500 points and 10,065 parameters takes several seconds here.
QUEUE: tuple[Item, ...] = (
    Stage("poisson_2d", (), EVERY, 20),
    *(Study(name, seconds) for name, seconds in studies.SECONDS.items()),
    Stage("heat_4d", LARGE, ("kfac_pinn",), 300, seeds=3),
    Stage("heat_4d", LARGE, ("gauss_newton",), 300, seeds=3, **DENSE),
    Stage("heat_4d", LARGE, BASELINES, 60, seeds=3, tuning=20, trials=8),
    Stage("poisson_5d", LARGE, FAST, 100, seeds=3, tuning=20, trials=6),
    Stage("poisson_5d", LARGE, ("gauss_newton",), 100, seeds=3, settings={"rows": 1000}),
    Stage("poisson_10d", (), FAST, 200, seeds=3, tuning=30, trials=4),
    Stage("poisson_10d", (), ("gauss_newton",), 200, seeds=3, **FEW),
    Stage("poisson_100d", (), FAST, 300, seeds=1, tuning=60, trials=3),
    Stage("heat_1d", (), EVERY, 20),
    Stage("heat_4d", LARGE, ("kfac_pinn",), 300),
    Stage("heat_4d", LARGE, BASELINES, 60),
    Stage("burgers", (), OURS, 100, seeds=3),
    Stage("burgers_smooth", (), OURS, 100, seeds=3),
    Stage("fokker_planck", (), FAST, 200, seeds=1, tuning=30, trials=4),
    Stage("poisson_5d", (), EVERY, 60, seeds=3),
    Stage("heat_4d", (), EVERY, 60, seeds=3),
    Stage("poisson_2d", LARGE, ("kfac_pinn", *BASELINES), 60, seeds=3),
    Stage("heat_1d", LARGE, ("kfac_pinn", *BASELINES), 60, seeds=3),
    *(Stage(p, HUGE, FAST, 200, seeds=1, tuning=30, trials=4) for p in WITH_HUGE),
    Stage("poisson_2d", (), EVERY, 100),
    Stage("heat_1d", (), EVERY, 100),
    Stage("heat_4d", LARGE, BASELINES, 300),
    Stage("poisson_2d", (), BY_STEPS, 1000, seeds=3),
    Stage("heat_1d", (), BY_STEPS, 1000, seeds=3),
    Stage("heat_4d", LARGE, ("kfac_star",), 6000, seeds=1),
)


def work(items: Iterable[Item], folders: Folders, hours: float) -> None:
    """Do what is due, in order, and begin nothing after the hours are over."""
    console, end = Console(), time.monotonic() + 3600 * hours
    for item in items:
        for job in item.due(folders):
            if time.monotonic() > end:
                return
            console.print(f"{job.name}: {attempt(job)}")


def attempt(job: Job) -> str:
    """What came of it: one that fails must not stop the others."""
    try:
        return job.do()
    except Exception as error:
        return f"failed: {error!r}"


def plan(items: Iterable[Item], folders: Folders) -> pd.DataFrame:
    """A row an item: how many jobs are due, and at most how many hours they take."""
    rows = []
    for item in items:
        due = [job.seconds for job in item.due(folders)]
        rows.append({"what": item.title, "due": len(due), "hours": f"{sum(due) / 3600:.2f}"})
    return pd.DataFrame(rows)
