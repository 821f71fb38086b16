"""One training run: its state, its timed step, what is measured, and when points are drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from kfac_pinn.jacobian.losses import total_loss
from kfac_pinn.optimizers.base import LeastSquaresOptimizer
from kfac_pinn.pinn.problem import Batch, Problem, relative_l2

__all__ = ["Callback", "Every", "Fixed", "Row", "Run", "Sampling"]

Row: TypeAlias = dict[str, Any]
Sizes: TypeAlias = "Mapping[str, int] | None"


class Run:
    """A training run: what callbacks see and checkpoints hold.

    Attributes:
        model, problem, optimizer: as given to `fit`.
        batch: the points trained on.
        held_out: points never trained on, for the loss; drawn first, like all by the seed.
        places, reference: points (N, d) and the solution there, (N, 1) or None, for the errors.
        step: steps taken.
        seconds: spent in them (drawing points included, evaluation not), the device waited for.
        loss: before the last step.
        rows: of the history so far.
        generator: the source of all points.
    """

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        optimizer: Optimizer,
        sampling: Sampling,
        generator: Generator,
    ) -> None:
        self.model, self.problem, self.optimizer = model, problem, optimizer
        self.sampling, self.generator = sampling, generator
        self.callbacks: tuple[Callback, ...] = ()
        self.step, self.seconds, self.loss = 0, 0.0, math.nan
        self.rows: list[Row] = []
        self.stopped = ""
        self.held_out, self.places = self.draw(), self._place(problem.held_out)
        solution = problem.solution
        self.reference = None if solution is None else solution(self.places)
        self.batch: Batch = sampling(self) or self.draw()

    def draw(self, sizes: Sizes = None) -> Batch:
        """New points for every term, in the model's dtype and on its device."""
        return self._place(self.problem.sample, sizes)

    def stop(self, reason: str) -> None:
        """End the run after this step."""
        self.stopped = reason

    def advance(self) -> None:
        """One step on the batch, new points first where the sampling says so; timed."""
        start = time.perf_counter()
        if self.step > 0:
            self.batch = self.sampling(self) or self.batch
        self.loss = _plain(self.optimizer.step(self._closure()))
        _wait_for(self._parameter.device)
        self.seconds += time.perf_counter() - start
        self.step += 1
        if not math.isfinite(self.loss):
            self.stop("the loss is not finite")

    def record(self) -> None:
        """Append `evaluate()` to the rows."""
        self.rows.append(self.evaluate())

    def evaluate(self) -> Row:
        """A row: the losses and errors of the model as it is now, and the optimizer's stats.

        loss is that of the batch, held_out_loss of points never trained on; relative_l2 and rms
        (absolute) are errors against the solution, where the problem has one.
        """
        row: Row = {"step": self.step, "seconds": self.seconds}
        row["loss"] = _plain(total_loss(self.batch.residuals(self.model)()))
        row["held_out_loss"] = _plain(total_loss(self.held_out.residuals(self.model)()))
        if (reference := self.reference) is not None:
            row["relative_l2"] = relative_l2(self.model, lambda _: reference, self.places)
            row["rms"] = row["relative_l2"] * reference.square().mean().sqrt().item()
        stats = getattr(self.optimizer, "stats", {})
        return row | {name: _plain(stats[name]) for name in stats if name not in row}

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact continuation needs: tensors, numbers, strings and containers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "points": self.batch.points,
            "rows": self.rows,
            "step": self.step,
            "seconds": self.seconds,
            "loss": self.loss,
            "generator": self.generator.get_state(),
            "torch_generator": torch.get_rng_state(),
            "cuda_generators": torch.cuda.get_rng_state_all(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for callback, stored in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(stored)
        device = self._parameter.device
        points = {name: x.to(device) for name, x in state["points"].items()}
        self.batch = replace(self.batch, points=points)
        self.rows, self.step = list(state["rows"]), state["step"]
        self.seconds, self.loss = state["seconds"], state["loss"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_generator"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_generators"])

    @property
    def _parameter(self) -> Tensor:
        """The parameter whose dtype and device the points take."""
        return next(self.model.parameters())

    def _place(self, draw: Callable[..., Any], sizes: Any = None) -> Any:
        return draw(self.generator, sizes, self._parameter.dtype, self._parameter.device)

    def _closure(self) -> Callable[[], Any]:
        """What the optimizer's step takes: residuals for ours, the loss for torch's."""
        residuals = self.batch.residuals(self.model)
        if isinstance(self.optimizer, LeastSquaresOptimizer):
            return residuals

        def loss() -> Tensor:
            self.optimizer.zero_grad()
            value = total_loss(residuals())
            value.backward()
            return value

        return loss


class Callback:
    """Something done during a run; override the hooks that matter."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step(self, run: Run) -> None:
        """After every step; `run.stop(reason)` ends the run."""

    def on_end(self, run: Run) -> None:
        """After the last step."""

    def state_dict(self) -> dict[str, Any]:
        """What to store in checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what was stored."""


@dataclass(frozen=True)
class Fixed:
    """One batch for the whole run; `sizes` replaces the problem's numbers of points by term."""

    sizes: Sizes = None

    def __call__(self, run: Run) -> Batch | None:
        return run.draw(self.sizes) if run.step == 0 else None


@dataclass(frozen=True)
class Every:
    """New points every so many steps; `sizes` replaces the problem's numbers of points by term."""

    steps: int
    sizes: Sizes = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"new points every {self.steps} steps: give at least 1, or Fixed()")

    def __call__(self, run: Run) -> Batch | None:
        return run.draw(self.sizes) if run.step % self.steps == 0 else None


#: Called before every step: the new batch, or None to keep the old one.
Sampling: TypeAlias = Callable[[Run], "Batch | None"]


def _wait_for(device: torch.device) -> None:
    """Let queued work finish, so that it is timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _plain(value: Any) -> Any:
    """Scalars of tensors as numbers."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
