"""The paper's schedule: Adam, decayed and stopped early, then L-BFGS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from hyperlora_ext.schedules import RunArguments
from hyperlora_ext.task_problem import Sizes
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training import Callback, Every, History, Patience, Run, fit

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PUBLISHED_HYPER", "PUBLISHED_PINN", "PublishedSchedule"]

LR = 1e-3
ADAM = 0.75  # of the seconds, where they bound the run; the rest is L-BFGS's
PIECE = 5  # iterations of L-BFGS between two looks at the clock


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

    def rate(self, epoch: float) -> float:
        """The learning rate as a fraction of LR, at least 1e-4 of it."""
        return max(1e-4, 0.1 ** max(0, 1 + (epoch - self.hold) // self.every))

    def __call__(self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]) -> History:
        """Train the model for at most so many epochs of Adam, then polish it.

        Within `seconds` the whole schedule is run through: the learning rate is that of the epoch
        that the part of the time stands for, and L-BFGS has the last quarter of it. The callbacks
        see the epochs; a checkpoint of the last one repeats the polishing.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        sampling, seed, seconds = Every(10**9, self.sizes), run.get("seed", 0), run.get("seconds")
        steps, callbacks = run.get("steps"), run.get("callbacks", ())
        whole = seconds and seconds * (ADAM if self.polish else 1)
        history = fit(
            model,
            problem,
            torch.optim.Adam(trained, lr=LR),
            steps=self.epochs if steps is None else min(steps, self.epochs),
            seconds=whole,
            seed=seed,
            sampling=sampling,
            callbacks=[Decay(self, whole), Patience(self.patience), *callbacks],
        )
        if not self.polish:
            return history
        # In pieces, so that it can end with the seconds; its memory is kept from one to the next
        piece = min(self.polish, PIECE)
        lbfgs = torch.optim.LBFGS(
            trained, max_iter=piece, tolerance_grad=0, line_search_fn="strong_wolfe"
        )
        pieces, rest = math.ceil(self.polish / piece), seconds and seconds * (1 - ADAM)
        last = fit(model, problem, lbfgs, steps=pieces, seconds=rest, seed=seed, sampling=sampling)
        return History(history.rows + last.rows, f"{history.reason}; L-BFGS: {last.reason}")


@dataclass
class Decay(Callback):
    """The schedule's learning rate: of this epoch, or of the one the seconds spent stand for."""

    schedule: PublishedSchedule
    seconds: float | None

    def on_step(self, run: Run) -> None:
        spent = run.seconds / self.seconds if self.seconds else 0.0
        epoch = max(float(run.step), spent * self.schedule.epochs)
        for group in run.optimizer.param_groups:
            group["lr"] = LR * self.schedule.rate(epoch)


PUBLISHED_PINN = PublishedSchedule(30_000, 10_000, 5_000, polish=500)
PUBLISHED_HYPER = PublishedSchedule(15_000, 5_000, 3_000, patience=15_000)
