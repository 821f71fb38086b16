"""What the tables share: one family, its base, and methods measured on its test tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import regimes
import torch
from cache import Cache, Row
from configs import CONFIGS, Config
from torch import Generator, Tensor, nn

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.family import Errors, Splits
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import count
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.symmetry import in_frame
from hyperlora_ext.task_inputs import AtTask, parametric
from kfac_pinn.pinn.training import Callback, Run
from kfac_pinn.pinn.training.clock import now

__all__ = ["Benchmark", "Budget"]


@dataclass(frozen=True)
class Budget:
    """Seconds for the base, for each task and for each hypernetwork; tasks that are measured on.

    Fewer tasks leave the training set as it is: a hypernetwork is the same for any number of them.
    The seed is that of networks and points; the tasks are the same for all seeds.
    """

    base: float = 90.0
    task: float = 5.0
    hyper: float = 90.0
    tasks: int = 20
    seed: int = 0


class Steps(Callback):
    """Counts the steps of the runs it watches."""

    taken = 0

    def on_step(self, run: Run) -> None:
        self.taken += 1


@dataclass(frozen=True)
class Benchmark:
    """A family as it is measured.

    Attributes:
        name: of the config.
        budget: of each part.
        cache: where results are kept.
        device: of the networks.
        steps: those of the networks that were trained for one task.
    """

    name: str
    budget: Budget = Budget()
    cache: Cache = field(default_factory=Cache)
    device: str = "cpu"
    steps: Steps = field(default_factory=Steps, init=False)

    @cached_property
    def config(self) -> Config:
        """Networks, points, schedules."""
        return CONFIGS[self.name]()

    @property
    def printed(self) -> str:
        """The family's name in the paper's tables."""
        return self.config.printed or self.name

    @cached_property
    def base(self) -> nn.Module:
        """W0."""
        seed = self.budget.seed
        return self.config.base(self.budget.base, self._network(), self.cache, seed)

    @cached_property
    def splits(self) -> Splits:
        """The task sets: that of training whole, those that are only measured on cut to `tasks`."""
        parts, tasks = vars(self.config.family.splits()), self.budget.tasks
        return Splits(**{k: part if k == "train" else part[:tasks] for k, part in parts.items()})

    def _network(self) -> nn.Module:
        torch.manual_seed(self.budget.seed)
        return self.config.network().to(self.device)

    def _spent(self, seconds: float) -> dict[str, Any]:
        """Of a training run for one task, whose steps are counted."""
        return {"seconds": seconds, "seed": self.budget.seed, "callbacks": [self.steps]}

    def w0(self, task: Tensor) -> nn.Module:
        """The base, in the task's own frame."""
        return in_frame(self.base, self.config.family.space.offset(task[None])[0])

    def adapted(self, task: Tensor, rank: int) -> nn.Module:
        """L-PINN."""
        config, spent = self.config, self._spent(self.budget.task)
        problem, base = config.family.problem(task), self.w0(task)
        train = config.train_from_base(count(adapt(base, rank)))
        torch.manual_seed(self.budget.seed)  # whatever was measured, or found in the cache, before
        return regimes.l_pinn(base, problem, train, rank, config.aimed, **spent)

    def fine_tuned(self, task: Tensor) -> nn.Module:
        """F-PINN."""
        problem, spent = self.config.family.problem(task), self._spent(self.budget.task)
        base = self.w0(task)
        train = self.config.train_from_base(sum(p.numel() for p in base.parameters()))
        return regimes.f_pinn(base, problem, train, **spent)

    def from_scratch(self, task: Tensor) -> nn.Module:
        """PINN, in the time that the base had."""
        problem, spent = self.config.family.problem(task), self._spent(self.budget.base)
        return regimes.pinn(self._network(), problem, self.config.train_new, **spent)

    def parametric(self) -> Callable[[Tensor], nn.Module]:
        """One plain network for all tasks, in the time of a hypernetwork.

        Raises:
            ValueError: for a config that has none.
        """
        if self.config.plain is None:
            raise ValueError(f"{self.name}'s config has no plain network: give it one, `plain`")
        family, (new, sizes) = self.config.family, self.config.plain
        torch.manual_seed(self.budget.seed)
        network, callbacks = new().to(self.device), self.cache.callbacks("parametric")
        train = LevenbergSchedule(sizes, {name: 2 * n for name, n in sizes.items()})
        spent = self._spent(self.budget.hyper) | {"callbacks": callbacks}
        train(network, parametric(family), **spent)
        return lambda task: AtTask(network, family.space, task)

    def hyper(self, method: str, rank: int | None) -> tuple[HyperLoRA, Row]:
        """A hypernetwork trained in one of the paper's four ways; seconds and steps of training."""
        # The base before the seed: making it draws numbers, and may have been done already
        base = copy.deepcopy(self.base).to(self.config.hyper_dtype)
        torch.manual_seed(self.budget.seed)
        hyper = HyperLoRA(base, self.config.family.space, rank)
        start, label = now(), f"{method} {rank or '*'}"
        spent = self._spent(self.budget.hyper) | {"callbacks": self.cache.callbacks(label)}
        history = self._train(hyper, method, rank, spent)
        hyper.double()
        if history is None:
            return hyper, {"seconds": now() - start, "steps": None}
        return hyper, {"seconds": history.last["seconds"], "steps": history.last["step"]}

    def _train(self, hyper: HyperLoRA, method: str, rank: int | None, spent: Row) -> Any:
        """Its history, or None where a linear problem was solved."""
        config, tasks, size = self.config, self.splits.train, self.config.hyper_data
        family, train = config.family, config.hyper_train
        ways: dict[str, Callable[[], Any]] = {
            "physics": lambda: regimes.by_physics(
                hyper, family, config.by_physics(tasks), train, config.hyper_step, **spent
            ),
            "data": lambda: regimes.by_data(
                hyper, family, config.among(self._solved()), train, size, **spent
            ),
            "pinns": lambda: regimes.by_pinns(
                hyper, family, (tasks, self._teachers(hyper, rank)), train, size, **spent
            ),
            # A linear problem of small damping, solved once: not in single precision
            "weights": lambda: regimes.by_weights(
                hyper.double(), family, (tasks, self._teachers(hyper, rank))
            ),
        }
        result = ways[method]()
        return None if method == "weights" else result

    def _solved(self) -> Tensor:
        """Tasks for training by data: the training set, and more of its kind if the config asks."""
        tasks, space = self.splits.train, self.config.family.space
        more = max(0, self.config.solved - len(tasks))
        return torch.cat([tasks, space.sample(more, Generator().manual_seed(2030))])

    def _teachers(self, hyper: HyperLoRA, rank: int | None) -> list[nn.Module]:
        """One trained network a training task, float64; kept as their numbers theta (T, size)."""
        config, spent = self.config, self._spent(self.budget.task)
        train, exact = config.train_from_base(hyper.size), copy.deepcopy(hyper).double()

        def made(task: Tensor) -> Tensor:
            (v,) = regimes.teachers(exact, config.family, task[None], train, **spent)
            return exact.numbers(v)

        names = [f"teacher {rank or '*'} {i}" for i in range(len(self.splits.train))]
        pairs = zip(names, self.splits.train, strict=True)
        return [
            exact.made_of(self.cache.tensor(n, lambda t=t: made(t)), t)  # type: ignore[misc]
            for n, t in pairs
        ]

    def measured(self, method: str, make: Callable[[Tensor], Any]) -> Row:
        """One network a test task: errors over the tasks, and the means of seconds and steps."""
        columns = self.each(method, make)
        means = {name: float(columns.pop(name).mean()) for name in ("seconds", "steps")}
        return {"method": method, **Errors(**columns).summary(), **means}

    def each(self, method: str, make: Callable[[Tensor], Any]) -> dict[str, Tensor]:
        """Seconds, steps and errors of every test task, (T,) by name."""
        self.base  # noqa: B018  # trained outside of the clock

        def one(task: Tensor) -> Row:
            start, before = now(), self.steps.taken
            network = make(task)
            row = {"seconds": now() - start, "steps": self.steps.taken - before}
            error = self.config.family.errors(lambda _: network, task)
            return row | {k: float(v) for k, v in vars(error).items() if len(v)}

        found = [
            self.cache.row(f"{method} task {i}", lambda t=t: one(t))  # type: ignore[misc]
            for i, t in enumerate(self.splits.test)
        ]
        return {k: torch.tensor([row[k] for row in found]).double() for k in found[0]}

    def baselines(self) -> dict[str, Callable[[Tensor], Any]]:
        """What a method should be held against: no training at all."""
        found: dict[str, Callable[[Tensor], Any]] = {"untouched W0": self.w0}
        for name, u in self.config.baselines.items():
            found[name] = lambda task, u=u: u  # type: ignore[misc]
        return found

    def reference(self) -> Row:
        """The classical solver, or the formula, on the grid."""
        family, tasks = self.config.family, self.splits.test
        start = now()
        for task in tasks:
            family.solution(family.grid, task)
        return {
            "method": "classical solver",
            "seconds": (now() - start) / len(tasks),
        }
