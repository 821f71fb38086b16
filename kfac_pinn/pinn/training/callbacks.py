"""What may be done during a run: schedules, ends, a progress bar."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kfac_pinn import settings
from kfac_pinn.pinn.training.run import Callback, Run
from kfac_pinn.settings import ANY_SIZE, is_count, optional, whole

__all__ = ["Patience", "Progress", "Schedule", "StopAtError", "StopAtLoss"]


@dataclass
class StopAtError(Callback):
    """Stops at the first row of the history whose relative L2 error is at most the target."""

    target: float

    def __post_init__(self) -> None:
        settings.check(self, target=ANY_SIZE)

    def on_step(self, run: Run) -> None:
        error = run.rows[-1].get("relative_l2", math.inf)
        if error <= self.target:
            run.stop(f"relative L2 error {error:.2e} is at most {self.target:.2e}")


@dataclass
class StopAtLoss(Callback):
    """Stops after the first step that began with a loss of at most the target."""

    target: float

    def __post_init__(self) -> None:
        settings.check(self, target=ANY_SIZE)

    def on_step(self, run: Run) -> None:
        if run.loss <= self.target:
            run.stop(f"loss {run.loss:.2e} is at most {self.target:.2e}")


class Patience(Callback):
    """Stops when the held-out loss of the history has not improved for so many steps.

    Raises:
        TypeError, ValueError: unless that is a whole number of at least one.
    """

    def __init__(self, steps: int) -> None:
        if not is_count(steps):
            raise ValueError(f"Patience needs a number of steps, found {steps!r}")
        self.steps, self.best, self.since = steps, math.inf, 0

    def on_start(self, run: Run) -> None:
        # It may have watched another run before; a checkpoint, which is last, restores this one's
        self.best, self.since = math.inf, 0

    def on_step(self, run: Run) -> None:
        row = run.rows[-1]
        if row["held_out_loss"] < self.best:
            self.best, self.since = row["held_out_loss"], row["step"]
        elif run.step - self.since >= self.steps:
            run.stop(f"no progress on held-out points for {self.steps} steps")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.since = state["best"], state["since"]


class Schedule(Callback):
    """Steps a learning rate scheduler after every step; `ReduceLROnPlateau` is told the loss.

    Raises:
        TypeError: if it is no scheduler.
        ValueError: at the start, if the scheduler is another optimizer's.
    """

    ends = False

    def __init__(self, scheduler: LRScheduler) -> None:
        if not isinstance(scheduler, LRScheduler):
            raise TypeError(f"Schedule needs a scheduler of torch, found {scheduler!r}")
        self.scheduler = scheduler

    def on_start(self, run: Run) -> None:
        """Before the first step.

        Raises:
            ValueError: if the scheduler is another optimizer's.
        """
        if self.scheduler.optimizer is not run.optimizer:
            raise ValueError(
                f"the {type(self.scheduler).__name__} was made for another optimizer than the "
                f"{type(run.optimizer).__name__} of this run: make it from that one"
            )

    def on_step(self, run: Run) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(run.loss)
        else:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


class Progress(Callback):
    """A progress bar over the budget: loss, the last row's error, steps, and the seconds left.

    Args:
        total: steps of the whole run; those (else the seconds) of `fit`'s budget by default.
    """

    ends, alone = False, True

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        settings.check(self, total=optional(whole(1)))

    def on_start(self, run: Run) -> None:
        from tqdm.auto import tqdm  # only where a bar is wanted: it takes a while to import

        steps, seconds = run.budget.steps if self.total is None else self.total, run.budget.seconds
        self.by_seconds = steps is None and seconds is not None
        total, unit = (seconds, "s") if self.by_seconds else (steps, "step")
        self.bar = tqdm(total=total, unit=unit, bar_format=SECONDS if self.by_seconds else None)

    def on_step(self, run: Run) -> None:
        done = run.step
        if self.by_seconds:
            done = min(round(run.seconds, 1), self.bar.total)
        text = f"loss {run.loss:.2e}, {_error(run)}"
        if self.by_seconds:
            left = self.bar.total - done
            text = f"{text}, step {run.step}, {left:.0f} s left"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(done - self.bar.n)

    def on_end(self, run: Run) -> None:
        self.bar.close()


SECONDS = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of training{postfix}"


def _error(run: Run) -> str:
    """Of the last row: against the solution, or the loss on points held out."""
    row = run.rows[-1]
    if "relative_l2" in row:
        return f"error {row['relative_l2']:.2e}"
    return f"held-out loss {row['held_out_loss']:.2e}"
