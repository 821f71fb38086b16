"""The only training loop: any problem, any optimizer, ours or torch's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Generator, nn
from torch.optim import Optimizer

from kfac_pinn.allocation import reuse_freed_memory
from kfac_pinn.notices import outside
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training.checks import check_arguments, check_budget, check_points
from kfac_pinn.pinn.training.run import Budget, Callback, Every, Fixed, Row, Run, Sampling
from kfac_pinn.settings import INTEGER, takes

__all__ = ["History", "fit"]


@takes(seed=INTEGER)
def fit(
    model: nn.Module,
    problem: Problem,
    optimizer: Optimizer,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    every: int = 100,
    seed: int = 0,
    sampling: Sampling | None = None,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train the model until the steps or the seconds are spent, or a callback stops.

    With an optimizer of several `processes`, every process calls `fit` alike. All draw the same
    points, those of one process with this seed, and each trains on its share of them: the run is
    that of one process, to rounding, on any number of them.

    Args:
        model: u, points (N, d) -> (N, 1); its first parameter says dtype and device.
        problem: what to solve.
        optimizer: a `LeastSquaresOptimizer` is given the residuals; any other torch optimizer
            the loss sum_k 1/2 mean(r_k^2) and its gradient.
        steps: the most steps, those of a resumed run included.
        seconds: the most seconds of training, evaluation and callbacks not counted: on a CPU those
            of the thread that trains, whatever else the machine does (`clock`).
        every: steps between two rows of the history.
        seed: of the points, both those trained on and those held out.
        sampling: when to draw which points; as published (`Problem.resample_every`) by default.
        callbacks: called in this order after each step, checkpoints last.

    Raises:
        TypeError, ValueError: if an argument is not what it should be, they do not belong together,
            or neither steps nor seconds nor a callback bounds the run (`checks`).
    """
    reuse_freed_memory()
    budget = Budget(steps, seconds)
    check_arguments(model, problem, optimizer)
    check_budget(budget, every, sampling, callbacks)
    if sampling is None:
        k = problem.resample_every
        sampling = Fixed() if k is None else Every(k)
    run = Run(model, problem, optimizer, sampling, Generator().manual_seed(seed))
    run.budget, run.callbacks = budget, tuple(sorted(callbacks, key=lambda c: c.last))
    run.processes.alike(f"{budget} {every} {seed}", "fit was called with other arguments there")
    run.each(lambda callback: callback.on_start(run))
    if not run.rows:
        _record_first(run)
    while not (reason := run.processes.said(run.stopped) or budget.spent(run)):
        run.advance()
        if run.step % every == 0:
            run.record()
        run.each(lambda callback: callback.on_step(run))
    run.each(lambda callback: callback.on_end(run))
    return _history(run, reason)


@dataclass(frozen=True)
class History:
    """What a run did: tidy rows, `pandas.DataFrame(history.rows)` is a table.

    Attributes:
        rows: one dict an evaluation, from before the first step to after the last (`Run.evaluate`).
        reason: why the run ended.
    """

    rows: list[Row]
    reason: str

    @property
    def last(self) -> Row:
        """The final row."""
        return self.rows[-1]

    def column(self, name: str) -> list[Any]:
        """One quantity over the rows that have it."""
        return [row[name] for row in self.rows if name in row]


def _record_first(run: Run) -> None:
    """The row before the first step, where a model for other points shows."""
    try:
        run.record()
    except RuntimeError:
        check_points(run)
        raise


def _history(run: Run, reason: str) -> History:
    """The rows, the final one included, which a continued run would not have."""
    current = bool(run.rows) and run.rows[-1]["step"] == run.step
    rows = list(run.rows) if current else [*run.rows, run.evaluate()]
    loss, held_out = rows[-1]["loss"], rows[-1]["held_out_loss"]
    if 0 <= 1000 * loss < held_out:  # energies may be negative
        warnings.warn(
            f"the loss is {loss:.1e} but {held_out:.1e} on points held out: the points were "
            "fitted, the equation was not solved. Draw more points (about ten rows a parameter) "
            "or new ones now and then (sampling=Every(...))",
            stacklevel=outside(),
        )
    return History(rows, reason)
