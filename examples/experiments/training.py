"""Running experiments: one, resumable, or many in processes of their own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from experiments.recipes import OPTIMIZERS, PROBLEMS
from experiments.results import Experiment, save
from kfac_pinn.fit import Callback, Checkpoint, Every, Run, fit
from kfac_pinn.networks import MLP

__all__ = ["Bar", "Clock", "network_of", "run_all", "train"]

NEVER = 10**12  # a number of steps
ROWS = 30  # of a result: enough for a curve, small enough to commit


class Clock(Callback):
    """Counts the seconds of `optimizer.step`, and records rows evenly over the budget.

    Args:
        experiment: its budget, and its device, which says whose seconds count.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.clock = cpu_seconds if experiment.device == "cpu" else gpu_seconds
        self.interval = max((experiment.seconds or math.inf) / ROWS, 0.15)
        self.every = max(1, (experiment.steps or NEVER) // ROWS)
        self.spent = self.began = self.recorded = 0.0

    def on_start(self, run: Run) -> None:
        self.spent = self.recorded = run.seconds  # those of the run resumed
        run.optimizer.register_step_pre_hook(self._begin)
        run.optimizer.register_step_post_hook(self._end)

    def on_step(self, run: Run) -> None:
        run.seconds = self.spent
        if self.spent - self.recorded >= self.interval or run.step % self.every == 0:
            self.recorded = self.spent
            run.record()

    def _begin(self, *_: Any) -> None:
        self.began = self.clock()

    def _end(self, *_: Any) -> None:
        self.spent += self.clock() - self.began


def cpu_seconds() -> float:
    """What the wall clock of an idle machine would show: other work there does not count."""
    return time.process_time()


def gpu_seconds() -> float:
    """The wall clock, after all queued work is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


class Bar(Callback):
    """A live progress bar over the seconds or steps, with what a person wants to watch."""

    def __init__(self, experiment: Experiment) -> None:
        self.by_steps = experiment.steps is not None
        total = experiment.steps if self.by_steps else experiment.seconds
        self.bar = tqdm(total=total, desc=experiment.name, unit="", bar_format=BAR)

    def on_step(self, run: Run) -> None:
        done = run.step if self.by_steps else round(run.seconds, 1)
        self.bar.update(min(done, self.bar.total) - self.bar.n)
        stats = getattr(run.optimizer, "stats", {})
        error = run.rows[-1].get("relative_l2", math.nan)
        shown = [f"step {run.step}", f"loss {run.loss:.1e}", f"error {error:.1e}"]
        shown += [f"{key} {stats[key]:.0e}" for key in ("damping", "step_length") if key in stats]
        self.bar.set_postfix_str(", ".join(shown), refresh=False)

    def on_end(self, run: Run) -> None:
        self.bar.close()


BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {postfix}"


def train(experiment: Experiment, folder: Path, show: bool = False) -> dict[str, Any]:
    """Run one experiment, from its checkpoint where there is one, and store its result."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(experiment.seed)
    problem = PROBLEMS[experiment.problem]()
    model = network_of(experiment).to(experiment.device)
    optimizer = OPTIMIZERS[experiment.optimizer].build(model.parameters(), **experiment.settings)
    checkpoint = folder / f"{experiment.name}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    history = fit(
        model,
        problem,
        optimizer,
        steps=experiment.steps,
        seconds=experiment.seconds,
        every=NEVER,  # the clock records
        seed=experiment.seed,
        sampling=Every(experiment.resample or problem.resample_every or NEVER, experiment.points),
        callbacks=[
            Clock(experiment),
            Checkpoint(checkpoint, every=500),
            *([Bar(experiment)] if show else []),
        ],
    )
    checkpoint.unlink()
    save(folder, experiment, model, history)
    return history.last


def network_of(experiment: Experiment) -> nn.Module:
    """A tanh network with the hidden widths of the experiment, in the default dtype."""
    smallest = PROBLEMS[experiment.problem]().networks[0]
    hidden = experiment.network or smallest[1:-1]
    return MLP((smallest[0], *hidden, smallest[-1]))


def run_all(experiments: Iterable[Experiment], folder: Path, jobs: int) -> None:
    """Those without a result yet, in `jobs` processes with one thread each."""
    due = [e for e in experiments if not e.path(folder).exists()]
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        runs = {pool.submit(train, e, folder): e for e in due}
        for run in tqdm(as_completed(runs), total=len(due), unit="run"):
            if error := run.exception():
                tqdm.write(f"{runs[run].name} failed: {error!r}")
