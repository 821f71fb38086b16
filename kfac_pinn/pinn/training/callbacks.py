"""What may be done during a run: checkpoints, schedules, a target, a progress bar."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from kfac_pinn.pinn.training.run import Callback, Run

__all__ = ["Checkpoint", "Progress", "Schedule", "StopAtError"]


class Checkpoint(Callback):
    """Stores the run in a file every so many steps and at its end.

    Args:
        path: the file, replaced at once; `torch.load(path, weights_only=True)` reads it.
        every: steps between two writings.
        resume: continue from the file where there is one: bit for bit the uninterrupted run.
    """

    def __init__(self, path: str | Path, every: int = 1000, resume: bool = True) -> None:
        self.path, self.every, self.resume = Path(path), every, resume

    def on_start(self, run: Run) -> None:
        if self.resume and self.path.exists():
            run.load_state_dict(torch.load(self.path, map_location="cpu", weights_only=True))

    def on_step(self, run: Run) -> None:
        if run.step % self.every == 0:
            self.save(run)

    def on_end(self, run: Run) -> None:
        self.save(run)

    def save(self, run: Run) -> None:
        """Write beside the file, then replace it: an interruption leaves the old one whole."""
        partial = self.path.with_name(self.path.name + ".partial")
        torch.save(run.state_dict(), partial)
        os.replace(partial, self.path)


@dataclass
class StopAtError(Callback):
    """Stops at the first row of the history whose relative L2 error is at most the target."""

    target: float

    def on_step(self, run: Run) -> None:
        error = run.rows[-1].get("relative_l2", math.inf)
        if error <= self.target:
            run.stop(f"relative L2 error {error:.2e} is at most {self.target:.2e}")


@dataclass
class Schedule(Callback):
    """Steps a learning rate scheduler after every step."""

    scheduler: LRScheduler

    def on_step(self, run: Run) -> None:
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class Progress(Callback):
    """A progress bar with the last row's error; needs tqdm.

    Args:
        total: steps of the whole run, None if unknown.
    """

    def __init__(self, total: int | None = None) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=total, unit="step")

    def on_step(self, run: Run) -> None:
        self.bar.update(run.step - self.bar.n)
        error = run.rows[-1].get("relative_l2", math.nan)
        self.bar.set_postfix_str(f"loss {run.loss:.2e}, error {error:.2e}", refresh=False)

    def on_end(self, run: Run) -> None:
        self.bar.close()
