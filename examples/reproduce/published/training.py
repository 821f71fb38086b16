"""Running experiments: one, resumable, or many in processes of their own."""

from __future__ import annotations

import signal
import time
from bisect import bisect
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm import tqdm

from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import relative_l2
from kfac_pinn.pinn.training import Callback, Checkpoint, Every, Run, fit
from published.recipes import NEVER, OPTIMIZERS, PROBLEMS
from published.results import Experiment, save

__all__ = ["AtRest", "Autosave", "Bar", "Milestones", "network_of", "run_all", "train"]

#: Seconds at which rows are recorded, ten a decade: curves on a logarithmic axis.
MILESTONES = [
    a * 10.0**k for k in range(-1, 6) for a in (1, 1.25, 1.6, 2, 2.5, 3, 4, 5, 6, 8)
]  # fmt: skip


class Milestones(Callback):
    """Records a row at each of the milestones."""

    ends = False

    def on_step(self, run: Run) -> None:
        if bisect(MILESTONES, run.seconds) > bisect(MILESTONES, run.rows[-1]["seconds"]):
            run.record()


class AtRest(Callback):
    """Ends a run on fixed points that has not moved for a number of steps: nothing will change.

    Args:
        patience: the number; `NEVER` where new points may set the run going again.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.waited = patience, 0

    def on_step(self, run: Run) -> None:
        moved = getattr(run.optimizer, "stats", {}).get("step_norm", 1.0) > 0
        self.waited = 0 if moved else self.waited + 1
        if self.waited >= self.patience:
            run.stop(f"at rest: no step was taken {self.waited} times in a row")

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited = state["waited"]


class Autosave(Checkpoint):
    """A checkpoint a minute, and one when the run is interrupted: after the step under way.

    The first Ctrl-C or SIGTERM ends the run with nothing lost, a second one at once.
    """

    interval = 60.0

    def on_start(self, run: Run) -> None:
        super().on_start(run)
        self.saved, self.interrupted = time.monotonic(), False
        kinds = (signal.SIGINT, signal.SIGTERM)
        self.handlers = {kind: signal.signal(kind, self._interrupt) for kind in kinds}

    def on_step(self, run: Run) -> None:
        if self.interrupted or time.monotonic() - self.saved > self.interval:
            self.save(run)
            self.saved = time.monotonic()
        if self.interrupted:
            self.release()
            raise KeyboardInterrupt

    def on_end(self, run: Run) -> None:
        super().on_end(run)
        self.release()

    def release(self) -> None:
        """Signals mean again what they meant before."""
        for kind, handler in self.handlers.items():
            signal.signal(kind, handler)

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True
        self.release()


class Bar(Callback):
    """A live progress bar over the seconds or steps, with what a person wants to watch."""

    interval = 2.0

    def __init__(self, experiment: Experiment, show: bool) -> None:
        self.by_steps = experiment.seconds is None
        total = experiment.steps if self.by_steps else experiment.seconds
        self.bar = tqdm(
            total=total, desc=experiment.name, unit="", bar_format=BAR, disable=not show
        )
        self.drawn = 0.0

    def on_step(self, run: Run) -> None:
        if not self.bar.disable and time.monotonic() - self.drawn > self.interval:
            self.draw(run)

    def draw(self, run: Run) -> None:
        """The state now."""
        done = run.step if self.by_steps else round(run.seconds, 1)
        left = run.seconds * (self.bar.total / done - 1) if done else 0.0
        self.bar.set_postfix_str(", ".join([*state_of(run), f"{left:.0f} s left"]), refresh=False)
        self.bar.update(min(done, self.bar.total) - self.bar.n)
        self.drawn = time.monotonic()

    def on_end(self, run: Run) -> None:
        if not self.bar.disable:
            self.draw(run)
        self.bar.close()


BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {postfix}"


def state_of(run: Run) -> list[str]:
    """Step, loss, error now, damping and step length, as far as there are any."""
    shown = [f"step {run.step}", f"loss {run.loss:.1e}"]
    if (reference := run.reference) is not None:
        shown.append(f"error {relative_l2(run.model, lambda _: reference, run.places):.1e}")
    stats = {**run.optimizer.param_groups[0], **getattr(run.optimizer, "stats", {})}
    return shown + [f"{key} {stats[key]:.0e}" for key in ("damping", "step_length") if key in stats]


def train(experiment: Experiment, folder: Path, show: bool = False) -> dict[str, Any]:
    """Run one experiment, from its checkpoint where there is one, and store its result."""
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, experiment.dtype))
    torch.manual_seed(experiment.seed)
    problem = PROBLEMS[experiment.problem]()
    model = network_of(experiment).to(experiment.device)
    every = experiment.resample or problem.resample_every or NEVER
    folder.mkdir(parents=True, exist_ok=True)
    history = fit(
        model,
        problem,
        optimizer_of(experiment, model),
        steps=experiment.steps,
        seconds=experiment.seconds,
        every=NEVER,  # the milestones do
        seed=experiment.seed,
        sampling=Every(every, experiment.points),
        callbacks=[
            Milestones(),
            AtRest(50 if every == NEVER else NEVER),
            Autosave(experiment.checkpoint(folder)),
            Bar(experiment, show),
        ],
    )
    save(folder, experiment, model, history)
    return history.last


def optimizer_of(experiment: Experiment, model: nn.Module) -> Optimizer:
    """The optimizer of an experiment, on the model's parameters."""
    return OPTIMIZERS[experiment.optimizer].build(model.parameters(), **experiment.settings)


def network_of(experiment: Experiment) -> nn.Module:
    """A tanh network with the hidden widths of the experiment, in the default dtype."""
    smallest = PROBLEMS[experiment.problem]().networks[0]
    hidden = experiment.network or smallest[1:-1]
    sizes = (smallest[0], *hidden, smallest[-1])
    return published_start(sizes) if experiment.published_start else MLP(sizes)


def published_start(sizes: tuple[int, ...]) -> nn.Module:
    """The network that the published runs began with: drawn in single precision from seed 1."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        torch.manual_seed(1)
        return MLP(sizes).to(dtype)
    finally:
        torch.set_default_dtype(dtype)


def run_all(experiments: Iterable[Experiment], folder: Path, jobs: int) -> None:
    """Those without a result yet, in `jobs` processes with one thread each."""
    due = [e for e in experiments if not e.done(folder)]
    context = get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        runs = {pool.submit(train, e, folder): e for e in due}
        for run in tqdm(as_completed(runs), total=len(due), unit="run"):
            if error := run.exception():
                tqdm.write(f"{runs[run].name} failed: {error!r}")
