"""How each family is set up for the tables: network, base task, points, and how W0 is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cache import Cache
from published_schedule import PUBLISHED_HYPER, PUBLISHED_PINN
from torch import Generator, Tensor, nn

from hyperlora_ext.family import Family
from hyperlora_ext.problems import (
    burgers1d,
    burgers1d_potential,
    burgers1d_published,
    burgers2d,
    kovasznay,
    reflection,
    step_function,
)
from hyperlora_ext.problems.coupled_burgers import DOMAIN
from hyperlora_ext.random_fields import GaussianField
from hyperlora_ext.schedules import (
    GaussNewtonSchedule,
    KFACPINNSchedule,
    LevenbergSchedule,
    StochasticSchedule,
    Train,
)
from hyperlora_ext.symmetry import Symmetry
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures

__all__ = ["CONFIGS", "Config", "as_published"]

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Config:
    """One family as it is measured.

    Attributes:
        family: tasks, residuals, reference.
        network: a new base network, float64.
        path: tasks on which the base is trained, one after the other (a continuation); the last
            is the base's own.
        step, judges: points of a step of adapters, and those it is judged on, by condition.
        whole: schedule of a new network; None: that of adapters.
        several: schedule of about as many numbers as a step has points, or more, that start from a
            base; None: likewise.
        every: steps of adapters for which points are kept.
        hyper_step: points a task, for hypernetworks.
        hyper_tasks: tasks a step, for hypernetworks.
        hyper_train: their schedule.
        hyper_data: points a task where they are trained on fields.
        solved: tasks whose solutions they are trained on by data; the training set at least.
        plain: a new network of points and task, the alternative to a hypernetwork, and its points.
        schedule: of one network, adapted or whole; None: Levenberg-Marquardt on the points above.
        aimed: whether adapters start along a Gauss-Newton step, instead of at random.
        hyper_dtype: of hypernetworks while they are trained; all else is float64.
        fresh: whether hypernetworks by physics meet new tasks in every step, instead of the
            training set.
        symmetry: of the family, over which predictions may be averaged.
        baselines: functions of the points to hold every error against, by name.
        printed: the paper's name of the family, where ours is another.
    """

    family: Family
    network: Callable[[], nn.Module]
    path: tuple[Tensor, ...]
    step: Sizes
    judges: Sizes
    hyper_step: Sizes
    whole: Train | None = None
    several: Train | None = None
    every: int = 25
    hyper_tasks: int = 20
    hyper_train: Train = field(default=LevenbergSchedule(every=10))
    hyper_data: int = 40
    solved: int = 0
    plain: tuple[Callable[[], nn.Module], Sizes] | None = None
    schedule: Train | None = None
    aimed: bool = True
    hyper_dtype: torch.dtype = torch.float64
    fresh: bool = True
    symmetry: Symmetry | None = None
    baselines: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    printed: str = ""

    @property
    def train(self) -> Train:
        """The schedule for adapters."""
        ours = LevenbergSchedule(self.step, self.judges, self.every, start=0.25)
        return self.schedule or ours

    @property
    def train_new(self) -> Train:
        """The schedule for a new network."""
        ours = self.whole or LevenbergSchedule(self.step, self.judges, start=0.25)
        return self.schedule or ours

    def train_from_base(self, parameters: int) -> Train:
        """The schedule for so many numbers, adapters' or all, that start from a base."""
        # Fewer than 3/4 of the points: dense solves are cheap, and bent steps ahead
        few = parameters <= 0.75 * sum(self.step.values())
        return self.train if few or self.schedule else self.several or self.train

    def by_physics(self, tasks: Tensor) -> Callable[[Generator | None], Tensor]:
        """The tasks of every step by physics: new ones, or the training set."""
        if not self.fresh:
            return lambda generator: tasks
        return lambda generator: self.family.space.sample(self.hyper_tasks, generator)

    def among(self, tasks: Tensor) -> Callable[[Generator | None], Tensor]:
        """As many of these tasks for every step, at random; all if there are no more."""
        count = self.hyper_tasks
        if len(tasks) <= count:
            return lambda generator: tasks
        return lambda generator: tasks[torch.randperm(len(tasks), generator=generator)[:count]]

    def base(
        self,
        seconds: float,
        network: nn.Module | None = None,
        cache: Cache | None = None,
        seed: int = 0,
    ) -> nn.Module:
        """W0, trained for so long in all, the longest on the last task of the path."""
        network, cache = network or self.network(), cache or Cache()
        shares = [1.0] * (len(self.path) - 1) + [2.0]
        for i, (share, task) in enumerate(zip(shares, self.path, strict=True)):
            budget: dict[str, Any] = {"seconds": seconds * share / sum(shares), "seed": seed}
            budget["callbacks"] = cache.callbacks(f"base {i}")
            self.train_new(network, self.family.problem(task), **budget)
        return network


def number(value: float) -> Tensor:
    """A task of one number."""
    return torch.tensor([value], dtype=torch.float64)


def _kovasznay() -> Config:
    return Config(
        kovasznay(),
        lambda: MLP((2, *[64] * 5, 3)).double(),
        (number(40.0),),
        {"interior": 300, "boundary": 100},
        {"interior": 1000, "boundary": 200},
        {"interior": 24, "boundary": 8},
        plain=(lambda: MLP((3, 24, 24, 3)).double(), {"interior": 800, "boundary": 300}),
    )


def _burgers1d() -> Config:
    family, space = burgers1d(), GaussianField(centred=True)
    draw = space.sample(1, Generator().manual_seed(2029))  # neither gentle nor steep
    own = space.moved(draw, space.offset(draw))[0]  # in its own frame
    step = {"interior": 4000, "initial": 256}
    return Config(
        family,
        lambda: nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, *[64] * 5, 1))).double(),
        (own,),
        step,
        {"interior": 8000, "initial": 256},
        {"interior": 8, "initial": 4},
        whole=KFACPINNSchedule(step),
        several=GaussNewtonSchedule(step),
        every=5,
        hyper_tasks=150,
        hyper_train=StochasticSchedule(),
        hyper_data=8,
        solved=2000,
        symmetry=reflection(),
        baselines={"heat flow": lambda x: torch.zeros_like(x[:, :1])},
    )


def _burgers1d_whole() -> Config:
    """Networks represent all of u, at even points: worse for adapters, better for hypernetworks."""
    posed = burgers1d_published()
    conditions = {name: c for name, c in posed.conditions.items() if name != "periodic"}
    family = replace(posed, space=GaussianField(centred=True), conditions=conditions)
    return replace(_burgers1d(), family=family, baselines={}, printed="burgers1d")


def _burgers1d_potential() -> Config:
    """Networks represent a potential of u, hypernetworks are trained in single precision."""
    return replace(
        _burgers1d_whole(),
        family=burgers1d_potential(),
        symmetry=reflection(potential=True),
        hyper_dtype=torch.float32,
    )


def _burgers2d() -> Config:
    return Config(
        burgers2d(),
        lambda: MLP((3, 64, 64, 64, 2)).double(),
        tuple(number(nu) for nu in (1e-2, 4e-3, 2e-3, 1e-3, 5e-4)),
        {"interior": 600, "initial": 120, "boundary": 120},
        {"interior": 2000, "initial": 400, "boundary": 400},
        {"interior": 30, "initial": 8, "boundary": 8},
        baselines={"step function": step_function},
    )


def as_published(name: str, config: Config, network: Callable[[], nn.Module]) -> Config:
    """The paper's network, points, optimizer and schedule on our residuals, in our seconds.

    The training set is all that hypernetworks meet, and adapters start at random.
    """
    sizes = {name: condition.size for name, condition in config.family.conditions.items()}
    return replace(
        config,
        network=network,
        path=config.path[-1:],
        hyper_step=sizes,
        hyper_train=PUBLISHED_HYPER,
        schedule=PUBLISHED_PINN,
        aimed=False,
        fresh=False,
        plain=None,
        printed=name,
    )


def _kovasznay_published() -> Config:
    return as_published("kovasznay", _kovasznay(), lambda: MLP((2, *[64] * 6, 3)).double())


def _burgers1d_published() -> Config:
    """Hypernetworks with a fiftieth of the points: a hundred tasks of 10,256 take 24 GB a step."""
    family = burgers1d_published()
    draw = family.space.sample(1, Generator().manual_seed(2029))[0]
    config = replace(_burgers1d(), family=family, path=(draw,), baselines={}, solved=0)
    whole = as_published("burgers1d", config, lambda: MLP((2, *[64] * 6, 1)).double())
    return replace(whole, hyper_step={"interior": 200, "initial": 32, "periodic": 32})


def _burgers2d_published() -> Config:
    """Even points, of which few lie on the front."""
    family = burgers2d()
    even = {"interior": DOMAIN.interior, "initial": DOMAIN.initial, "boundary": DOMAIN.boundary}
    conditions = {k: replace(c, points=even[k]) for k, c in family.conditions.items()}
    config = replace(_burgers2d(), family=replace(family, conditions=conditions))
    return as_published("burgers2d", config, lambda: MLP((3, *[64] * 6, 2)).double())


CONFIGS: dict[str, Callable[[], Config]] = {
    "kovasznay": _kovasznay,
    "burgers1d": _burgers1d,
    "burgers1d_whole": _burgers1d_whole,
    "burgers1d_potential": _burgers1d_potential,
    "burgers2d": _burgers2d,
    "kovasznay_published": _kovasznay_published,
    "burgers1d_published": _burgers1d_published,
    "burgers2d_published": _burgers2d_published,
}
