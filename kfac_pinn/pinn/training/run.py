"""One training run: its state, its timed step, what is measured, and when points are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from kfac_pinn import settings
from kfac_pinn.jacobian.closure import evaluate
from kfac_pinn.jacobian.terms import total_loss
from kfac_pinn.optimizers.base import LeastSquaresOptimizer
from kfac_pinn.pinn.problem import Batch, Problem, placed_like, squares
from kfac_pinn.pinn.training import clock
from kfac_pinn.processes import ALONE, Group
from kfac_pinn.settings import SIZES, is_count

__all__ = ["Budget", "Callback", "Every", "Fixed", "Row", "Run", "Sampling"]

Row: TypeAlias = dict[str, Any]
Sizes: TypeAlias = "Mapping[str, int] | None"


@dataclass(frozen=True)
class Budget:
    """The most steps and the most seconds (as `clock` counts them) of a run; None is no end."""

    steps: int | None = None
    seconds: float | None = None

    def spent(self, run: Run) -> str:
        """Which of them is spent, if one is."""
        if self.steps is not None and run.step >= self.steps:
            return f"{self.steps} steps are done"
        if self.seconds is not None and run.seconds >= self.seconds:
            return f"{self.seconds} seconds are spent"
        return ""


class Run:
    """A training run: what callbacks see and checkpoints hold.

    Attributes:
        model, problem, optimizer: as given to `fit`.
        sampling: called before every step: the new batch, or None to keep the old one.
        processes: those of the optimizer. All draw the same points, and each trains on its share.
        batch: the points trained on, of all processes.
        held_out: points never trained on, for the loss; drawn first, like all by the seed.
        places, reference: points (N, d) and the solution there, (N, 1) or None, for the errors.
        step: steps taken.
        seconds: spent in them (drawing points included, evaluation not), as `clock` counts; of
            several processes the most.
        budget: of steps and seconds, for the whole run.
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
        self.processes: Group = getattr(optimizer, "processes", ALONE)
        self.callbacks: tuple[Callback, ...] = ()
        self.budget = Budget()
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

    def each(self, call: Callable[[Callback], None]) -> None:
        """Call a hook of every callback; what one raises, all processes raise."""
        for callback in self.callbacks:
            with self.processes.together():
                if self.processes.rank == 0 or not callback.alone:
                    call(callback)

    def stop(self, reason: str) -> None:
        """End the run after this step."""
        self.stopped = reason

    def advance(self) -> None:
        """One step on the batch, new points first where the sampling says so; timed."""
        start = clock.now(self._parameter.device)
        if self.step > 0:
            self.batch = self.sampling(self) or self.batch
        self.loss = _plain(self.optimizer.step(self._closure()))
        self.seconds += self.processes.most(clock.now(self._parameter.device) - start)
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
        with self._unchanged():
            row["loss"] = self._loss_on(self.batch)
            row["held_out_loss"] = self._loss_on(self.held_out)
            if self.reference is not None:
                error, size = self._squares(self.reference)
                row["relative_l2"] = math.sqrt(error / size) if size else math.inf
                row["rms"] = math.sqrt(error / self.reference.numel())
        stats = getattr(self.optimizer, "stats", {})
        return row | {name: _plain(stats[name]) for name in stats if name not in row}

    def finite(self) -> bool:
        """Whether all parameters, and the loss they give on the batch, are finite."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            return False
        with self._unchanged():
            try:
                return math.isfinite(self._loss_on(self.batch))
            except FloatingPointError:
                return False

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-exact continuation needs: tensors, numbers, strings and containers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "callbacks": [(type(c).__name__, c.state_dict()) for c in self.callbacks],
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
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: if a callback left something behind and there is none of its kind now.
        """
        self._load_callbacks(state["callbacks"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = self._parameter.device
        points = {name: x.to(device) for name, x in state["points"].items()}
        self.batch = replace(self.batch, points=points)
        self.rows, self.step = list(state["rows"]), state["step"]
        self.seconds, self.loss = state["seconds"], state["loss"]
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_generator"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_generators"])

    def _load_callbacks(self, stored: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Each stored state to the next callback of its kind; those without a state may go."""
        waiting = list(self.callbacks)
        for name, state in stored:
            callback = next((c for c in waiting if type(c).__name__ == name), None)
            if callback is not None:
                waiting.remove(callback)
                callback.load_state_dict(state)
            elif state:
                raise ValueError(
                    f"the run was stored with a callback of the kind {name} and its state; now "
                    f"there are {[type(c).__name__ for c in self.callbacks]}: add it"
                )

    def _loss_on(self, batch: Batch) -> float:
        """L on a batch, of which each process evaluates its share."""
        with self.processes.together():
            residuals = batch.share(self.processes).residuals(self.model)
            part = evaluate(residuals, processes=self.processes)
        return _plain(self.processes.sum(part.detach())[0])

    def _squares(self, reference: Tensor) -> list[float]:
        """||u - u*||^2 and ||u*||^2 at all places."""
        with self.processes.together():
            places, known = self.processes.share(self.places), self.processes.share(reference)
            part = squares(self.model, lambda _: known, places)
        return self.processes.sum(part)[0].tolist()

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Measuring leaves the run as it is: no random number is used up, no buffer renewed."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        device = self._parameter.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)

    @property
    def _parameter(self) -> Tensor:
        """The parameter whose precision and device the points take."""
        return next(self.model.parameters())

    def _place(self, draw: Callable[..., Any], sizes: Any = None) -> Any:
        return draw(self.generator, sizes, **placed_like(self._parameter))

    def _closure(self) -> Callable[[], Any]:
        """What the optimizer's step takes: residuals for ours, the loss for torch's."""
        residuals = self.batch.share(self.processes).residuals(self.model)
        if isinstance(self.optimizer, LeastSquaresOptimizer):
            return residuals

        def loss() -> Tensor:
            self.optimizer.zero_grad()
            value = total_loss(residuals())
            value.backward()
            return value

        return loss


class Callback:
    """Something done during a run; override the hooks that matter.

    Attributes:
        last: called after all others, wherever it stands in the list: it stores what they did.
        alone: of several processes, only the first calls it: it writes or draws. All others are
            called by every process, since what changes the run must change it everywhere.
        ends: may stop the run, which then needs no budget.
    """

    last: ClassVar[bool] = False
    ends: ClassVar[bool] = True
    alone: ClassVar[bool] = False

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

    def __post_init__(self) -> None:
        settings.check(self, sizes=SIZES)

    def __call__(self, run: Run) -> Batch | None:
        return run.draw(self.sizes) if run.step == 0 else None


@dataclass(frozen=True)
class Every:
    """New points every so many steps.

    Args:
        steps: from one draw to the next.
        sizes: numbers of points by term, in place of the problem's.

    Raises:
        TypeError, ValueError: unless steps is a whole number of at least one, and sizes are too.
    """

    steps: int
    sizes: Sizes = None

    def __post_init__(self) -> None:
        if not is_count(self.steps):
            raise ValueError(f"Every: {self.steps!r} steps: give 1, 2, ..., or Fixed()")
        settings.check(self, sizes=SIZES)

    def __call__(self, run: Run) -> Batch | None:
        return run.draw(self.sizes) if run.step % self.steps == 0 else None


#: Called before every step: the new batch, or None to keep the old one.
Sampling: TypeAlias = Callable[[Run], "Batch | None"]


def _plain(value: Any) -> Any:
    """Scalars of tensors as numbers."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
