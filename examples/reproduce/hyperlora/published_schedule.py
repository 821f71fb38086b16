"""The paper's schedule: Adam, decayed and stopped early, then L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hyperlora_ext.schedules import RunArguments
from hyperlora_ext.task_problem import Sizes
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training import Every, History, Patience, Schedule, fit

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["PUBLISHED_HYPER", "PUBLISHED_PINN", "PublishedSchedule"]


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

    def __call__(self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]) -> History:
        """Train the model for at most so many epochs of Adam, then polish it.

        The callbacks see the epochs; a checkpoint of the last one repeats the polishing.
        """
        trained = [p for p in model.parameters() if p.requires_grad]
        adam = torch.optim.Adam(trained, lr=1e-3)
        seed, sampling, steps = run.get("seed", 0), Every(10**9, self.sizes), run.get("steps")
        scheduled = [Schedule(LambdaLR(adam, self.rate)), Patience(self.patience)]
        run["callbacks"] = [*scheduled, *run.get("callbacks", ())]
        run["steps"] = self.epochs if steps is None else min(steps, self.epochs)
        history = fit(model, problem, adam, sampling=sampling, **run)
        if not self.polish:
            return history
        lbfgs = torch.optim.LBFGS(
            trained, max_iter=self.polish, tolerance_grad=0, line_search_fn="strong_wolfe"
        )
        last = fit(model, problem, lbfgs, steps=1, seed=seed, sampling=sampling)
        return History(history.rows + last.rows, f"{history.reason}; L-BFGS: {last.reason}")


PUBLISHED_PINN = PublishedSchedule(30_000, 10_000, 5_000, polish=500)
PUBLISHED_HYPER = PublishedSchedule(15_000, 5_000, 3_000, patience=15_000)
