"""The paper's schedule: Adam, decayed and stopped early, then L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hyperlora_ext.task_problem import Sizes
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training import Callback, Every, History, Run, Schedule, fit

__all__ = ["PUBLISHED_HYPER", "PUBLISHED_PINN", "Patience", "PublishedSchedule"]


@dataclass(frozen=True)
class PublishedSchedule:
    """The paper's schedule: Adam at 1e-3, decayed tenfold, stopped early, then L-BFGS.

    Attributes:
        epochs: of Adam, one step each.
        hold: epochs before the first decay.
        every: epochs between decays (not stated for PINNs).
        patience: epochs without progress on held-out points before Adam is stopped.
        polish: L-BFGS iterations (not stated).
        sizes: points, by condition.
    """

    epochs: int
    hold: int
    every: int
    patience: int = 1000
    polish: int = 0
    sizes: Sizes | None = None

    def rate(self, epoch: int) -> float:
        """The learning rate as a fraction of 1e-3, at least 1e-4 of it."""
        return max(1e-4, 0.1 ** max(0, 1 + (epoch - self.hold) // self.every))

    def __call__(
        self,
        model: nn.Module,
        problem: Problem,
        steps: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Train the model for at most so many epochs of Adam, then polish it.

        The callbacks see the epochs; a checkpoint of the last one repeats the polishing.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.Adam(trained, lr=1e-3)
        callbacks = [Schedule(LambdaLR(adam, self.rate)), Patience(self.patience), *callbacks]
        options: dict[str, Any] = {"seed": seed, "sampling": Every(10**9, self.sizes)}
        steps = self.epochs if steps is None else min(steps, self.epochs)
        history = fit(
            model, problem, adam, steps=steps, seconds=seconds, callbacks=callbacks, **options
        )
        if not self.polish:
            return history
        lbfgs = torch.optim.LBFGS(
            trained, max_iter=self.polish, tolerance_grad=0, line_search_fn="strong_wolfe"
        )
        last = fit(model, problem, lbfgs, steps=1, **options)
        return History(history.rows + last.rows, f"{history.reason}; L-BFGS: {last.reason}")


PUBLISHED_PINN = PublishedSchedule(30_000, 10_000, 5_000, polish=500)
PUBLISHED_HYPER = PublishedSchedule(15_000, 5_000, 3_000, patience=15_000)


class Patience(Callback):
    """Stops when the held-out loss of the history has not improved for so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps, self.best, self.since = steps, math.inf, 0

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
