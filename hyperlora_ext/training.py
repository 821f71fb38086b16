"""What a hypernetwork is trained on, and by which schedule: kfac_pinn's `fit` does the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hyperlora_ext.family import Family, Points
from hyperlora_ext.generated import TaskResiduals
from hyperlora_ext.levenberg import LevenbergMarquardt
from kfac_pinn.fit import Callback, Every, History, Run, Schedule, fit
from kfac_pinn.problem import Batch, Problem

__all__ = [
    "PUBLISHED_HYPER",
    "PUBLISHED_PINN",
    "Data",
    "Exhausted",
    "Levenberg",
    "Objective",
    "Patience",
    "Published",
    "TaskProblem",
    "Weights",
    "task_problem",
]

Function = Callable[[Any], Any]
Sizes = Mapping[str, int]


class Objective(Protocol):
    """What u of many tasks is asked to satisfy: a `Family` (its physics), or `Data`."""

    def sample(
        self, tasks: Tensor, generator: Generator | None = None, sizes: Sizes | None = None
    ) -> Points:
        """Points (T, n_k, d) by name."""

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """Residuals (T n_k,) by name."""


@dataclass(frozen=True)
class Data:
    """Supervised: u equals known fields at random points of the family's grid.

    Attributes:
        family: whose grid.
        fields: task (p,) -> values (M, c) on the grid; `family.reference` for the truth,
            `lambda task: pinn_of(task)(family.grid)` for fields that trained PINNs predict.
        size: points a task.
    """

    family: Family
    fields: Callable[[Tensor], Tensor]
    size: int = 200

    @torch.no_grad()
    def sample(
        self, tasks: Tensor, generator: Generator | None = None, sizes: Sizes | None = None
    ) -> Points:
        """Points x (T, n, d) and the fields there, (T, n, c)."""
        n, grid = (sizes or {}).get("data", self.size), self.family.grid
        chosen = torch.randint(len(grid), (len(tasks), n), generator=generator)
        values = [self.fields(task)[places] for task, places in zip(tasks, chosen, strict=True)]
        return {"x": grid[chosen].to(tasks), "values": torch.stack(values).to(tasks)}

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """u - u*, field by field."""
        difference = u(points["x"].flatten(0, 1)) - points["values"].flatten(0, 1)
        return {f"field {i}": r for i, r in enumerate(difference.unbind(1))}


@dataclass(frozen=True)
class Weights:
    """Regression on the numbers of trained networks, whatever fields they make.

    Its residuals do not pass through the networks: for torch's optimizers (`Published`) only.

    Attributes:
        numbers: theta_t of the tasks that are drawn, in their order, (T, size).
    """

    numbers: Tensor

    def sample(
        self, tasks: Tensor, generator: Generator | None = None, sizes: Sizes | None = None
    ) -> Points:
        """No points: the numbers themselves."""
        return {"theta": self.numbers.to(tasks)}

    def residuals(self, u: Function, tasks: Tensor, points: Points) -> dict[str, Tensor]:
        """All entries of H(task) - theta."""
        return {"theta": (u.theta - points["theta"]).reshape(-1)}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TaskBatch(Batch):
    """Tasks and their points, drawn once.

    Attributes:
        points: the tasks (T, p) themselves under the name "tasks", so that checkpoints hold them,
            and their points.
        objective: what is asked of u there.
    """

    objective: Objective

    @property
    def tasks(self) -> Tensor:
        """(T, p)."""
        return self.points["tasks"]

    def residuals(self, u: Any) -> TaskResiduals:  # type: ignore[override]
        """The closure of a hypernetwork: call it, or let an optimizer linearise it."""
        points = {name: x for name, x in self.points.items() if name != "tasks"}
        return TaskResiduals(
            u, self.tasks, lambda fields: self.objective.residuals(fields, self.tasks, points)
        )


@dataclass(frozen=True, kw_only=True)
class TaskProblem(Problem):
    """A family, or part of it, as a problem that `kfac_pinn.fit` trains a hypernetwork on.

    Attributes:
        tasks: drawn anew with each batch, called as tasks(generator) -> (T, p): fresh tasks by
            `lambda g: family.space.sample(20, g)`, a fixed set by `lambda g: nodes`.
        objective: the family itself (physics), or `Data`.
        sizes: points a task and condition.
    """

    tasks: Callable[[Generator | None], Tensor]
    objective: Objective
    sizes: Sizes | None = None

    def sample(
        self,
        generator: Generator | None = None,
        sizes: Sizes | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> TaskBatch:
        """Tasks, and new points for them."""
        tasks = self.tasks(generator).to(dtype=dtype, device=device)
        points = self.objective.sample(tasks, generator, sizes or self.sizes)
        return TaskBatch(self.terms, {"tasks": tasks, **points}, self.objective)

    def held_out(
        self,
        generator: Generator | None = None,
        n: int | None = None,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> Tensor:
        """Points of the domain; there is no one solution to compare with."""
        return self.domain.interior(n or 1, generator, dtype, device)


def task_problem(
    family: Family,
    tasks: Callable[[Generator | None], Tensor],
    objective: Objective | None = None,
    sizes: Sizes | None = None,
) -> TaskProblem:
    """The problem of all tasks of a family: its physics, unless another objective is given."""
    domain = family.domain
    return TaskProblem(
        family.name, domain, {}, tasks=tasks, objective=objective or family, sizes=sizes
    )


@dataclass(frozen=True)
class Levenberg:
    """Our schedule: Levenberg-Marquardt on points that are kept until held-out ones object.

    On points kept, a smooth problem converges as collocation does, quadratically; new ones for
    every step would disturb it. Where they are too few, the veto asks for new ones.

    Attributes:
        sizes: points of a step, by condition; the problem's own by default.
        held_out: points (and tasks) the steps are judged on, by condition.
        every: steps after which the points are renewed anyway.
        start: the part of the points with which training begins: the first steps, far from the
            solution, need fewer. It is a part of `sizes`, which must be given then.

    Raises:
        ValueError: for a part of no given sizes.
    """

    sizes: Sizes | None = None
    held_out: Sizes | None = None
    every: int = 25
    start: float = 1.0

    def __post_init__(self) -> None:
        if self.start != 1 and self.sizes is None:
            raise ValueError(f"start={self.start:g} is a part of the points: give their `sizes`")

    def __call__(
        self,
        model: nn.Module,
        problem: Problem,
        steps: int | None = None,
        seconds: float | None = None,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Train the model; the same arguments as `kfac_pinn.fit`."""
        first = next(p for p in model.parameters() if p.requires_grad)
        generator = Generator().manual_seed(seed + 1)
        judges = problem.sample(generator, self.held_out or self.sizes, first.dtype, first.device)
        optimizer = LevenbergMarquardt(model.parameters(), held_out=judges.residuals(model))
        options: dict[str, Any] = {"steps": steps, "seconds": seconds, "seed": seed}
        sampling = Exhausted(self.every, self.sizes, self.start)
        return fit(model, problem, optimizer, sampling=sampling, callbacks=callbacks, **options)


@dataclass(frozen=True)
class Exhausted:
    """New points after a veto of the held-out ones, and every so many steps.

    Attributes:
        every: steps after which points are renewed anyway.
        sizes: points by condition, in the end.
        start: the part of them at first; doubled with each renewal, after `growth` steps at most.
    """

    every: int
    sizes: Sizes | None = None
    start: float = 1.0
    growth: int = 4

    def __call__(self, run: Run) -> Batch | None:
        if self.sizes is None:
            return run.draw() if run.step == 0 or self.due(run, self.every) else None
        if run.step == 0:
            return run.draw({name: math.ceil(self.start * n) for name, n in self.sizes.items()})
        now = {name: x.shape[-2] for name, x in run.batch.points.items() if name in self.sizes}
        growing = any(now[name] < n for name, n in self.sizes.items())
        if not self.due(run, self.growth if growing else self.every):
            return None
        return run.draw({name: min(n, 2 * now[name]) for name, n in self.sizes.items()})

    def due(self, run: Run, every: int) -> bool:
        """Whether the points have done their work."""
        return run.step % every == 0 or getattr(run.optimizer, "vetoed", False)


@dataclass(frozen=True)
class Published:
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


PUBLISHED_PINN = Published(30_000, 10_000, 5_000, polish=500)
PUBLISHED_HYPER = Published(15_000, 5_000, 3_000, patience=15_000)


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
