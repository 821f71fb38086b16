"""By which schedule networks and hypernetworks are trained: kfac_pinn's `fit` does the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

from torch import Generator, nn

from hyperlora_ext.task_problem import Sizes
from kfac_pinn import KFACPINN, SPRING, GaussNewton, LevenbergMarquardt, TargetSchedule
from kfac_pinn.jacobian.closure import linearize
from kfac_pinn.pinn.problem import PROBLEM, Batch, Problem, placed_like
from kfac_pinn.pinn.training import Callback, Every, History, Run, fit
from kfac_pinn.search.line import Armijo
from kfac_pinn.settings import (
    BELOW_ONE,
    INSIDE,
    MODULE,
    POSITIVE,
    SHARE,
    SIZES,
    check,
    takes,
    whole,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Exhausted",
    "GaussNewtonSchedule",
    "KFACPINNSchedule",
    "LevenbergSchedule",
    "RunArguments",
    "StochasticSchedule",
    "Train",
    "suited",
]

DENSE = 1500  # the fewer of points and parameters, for which a step takes about a second


class RunArguments(TypedDict, total=False):
    """What bounds a run and what watches it: those of `kfac_pinn.fit`.

    Attributes:
        steps, seconds: the most of each.
        seed: of the points.
        callbacks: called after each step.
    """

    steps: int | None
    seconds: float | None
    seed: int
    callbacks: Sequence[Callback]


class Train(Protocol):
    """A schedule: trains the model on the problem."""

    def __call__(
        self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]
    ) -> History: ...


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that a schedule trains.

    Raises:
        ValueError: if there are none.
    """
    found = [p for p in model.parameters() if p.requires_grad]
    if not found:
        raise ValueError(
            f"the model, a {type(model).__name__}, has no parameter to train: all are frozen; "
            "model.requires_grad_(), or adapters on it, adapt(model)"
        )
    return found


@dataclass(frozen=True)
class LevenbergSchedule:
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
        TypeError, ValueError: for a setting of another kind, or a part of no given sizes.
    """

    sizes: Sizes | None = None
    held_out: Sizes | None = None
    every: int = 25
    start: float = 1.0

    def __post_init__(self) -> None:
        check(self, sizes=SIZES, held_out=SIZES, every=whole(1), start=SHARE)
        check(self, start=POSITIVE)
        if self.start != 1 and self.sizes is None:
            raise ValueError(f"start={self.start:g} is a part of the points: give their `sizes`")

    @takes(model=MODULE, problem=PROBLEM)
    def __call__(self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]) -> History:
        """Train the model."""
        first = trained(model)[0]
        # Another stream than that of the training points: held out means held out
        generator = Generator().manual_seed(run.get("seed", 0) + 1)
        sizes = self.held_out or self.sizes
        judges = problem.sample(generator, sizes, **placed_like(first))
        held_out = judges.residuals(model)
        # With more trials a step that hardly moves passes the veto, and points are kept too long
        optimizer = LevenbergMarquardt(model.parameters(), held_out=held_out, trials=6)
        sampling = Exhausted(self.every, self.sizes, self.start)
        return fit(model, problem, optimizer, sampling=sampling, **run)


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
    growth: int = 4  # few: the points are doubled until `sizes`, then kept for `every` steps

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
class KFACPINNSchedule:
    """Our schedule where a dense step is dear: thousands of points and as many parameters.

    `KFACPINN`, whose steps cost a sixth of those of a dense solve there, on points that are kept
    for some steps. Where dense steps are cheap, `LevenbergSchedule` converges further.

    Attributes:
        sizes: points of a step, by condition; the problem's own by default.
        every: steps after which the points are renewed.

    Raises:
        TypeError, ValueError: for a setting of another kind.
    """

    sizes: Sizes | None = None
    every: int = 10

    def __post_init__(self) -> None:
        check(self, sizes=SIZES, every=whole(1))

    @takes(model=MODULE, problem=PROBLEM)
    def __call__(self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]) -> History:
        """Train the model."""
        optimizer = KFACPINN(trained(model))
        return fit(model, problem, optimizer, sampling=Every(self.every, self.sizes), **run)


@dataclass(frozen=True)
class GaussNewtonSchedule:
    """Our schedule for some thousand numbers, adapters' or all weights, from a base that is solved.

    `GaussNewton`, whose steps cost a third of those of a dense solve there. They aim at one ratio
    from the beginning: the low one with which it sets out from a new network pays after hundreds
    of steps, and a base is nearer than that.

    Attributes:
        sizes: points of a step, by condition; the problem's own by default.
        every: steps after which the points are renewed.
        ratio: of the decrease of the loss to that of the model.

    Raises:
        TypeError, ValueError: for a setting of another kind, or outside its range.
    """

    sizes: Sizes | None = None
    every: int = 10
    ratio: float = 0.5  # 0.85 is faster at first, 0.3 slower, and ends lower after 150 steps

    def __post_init__(self) -> None:
        check(self, sizes=SIZES, every=whole(1), ratio=INSIDE)

    @takes(model=MODULE, problem=PROBLEM)
    def __call__(self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]) -> History:
        """Train the model."""
        one = TargetSchedule(low=self.ratio, least=self.ratio)
        optimizer = GaussNewton(trained(model), schedule=one)
        return fit(model, problem, optimizer, sampling=Every(self.every, self.sizes), **run)


@takes(model=MODULE, problem=PROBLEM)
def suited(model: nn.Module, problem: Problem) -> LevenbergSchedule | KFACPINNSchedule:
    """The schedule for one network on the problem's own points: by what a dense solve would cost.

    Levenberg-Marquardt converges further where its steps are cheap; on 4256 points, 16,961 weights
    have an error after a minute that is a hundredth with `KFACPINN`.
    """
    parameters = sum(p.numel() for p in trained(model))
    points = sum(term.size for term in problem.terms.values())
    return LevenbergSchedule() if min(parameters, points) <= DENSE else KFACPINNSchedule()


@dataclass(frozen=True)
class StochasticSchedule:
    """Our schedule where no batch says enough: SPRING, new tasks and points for every step.

    Of a family of functions, a few hundred tasks are soon fitted, and the others are not: a step
    that is best on its own batch is not a good one. So the length of steps is given, and halved
    only where they would raise the loss; SPRING keeps what earlier batches taught; and the
    learning rate falls linearly to zero over the budget: the last steps average over many batches.

    Attributes:
        lr: of the first step.
        damping: of `SPRING`, as a fraction of the mean diagonal of J J^T at the start.
        momentum: of `SPRING`.
        sizes: points of a step, by condition; the problem's own by default.
    """

    # By single runs of two minutes: 0.6 was worse, and a momentum of 0.98 (design notes)
    lr: float = 0.3
    # Between 6e-4 and 6e-3, which were equally good; 6e-5 was far worse
    damping: float = 3e-3
    momentum: float = 0.95  # 0.98 was worse
    sizes: Sizes | None = None

    def __post_init__(self) -> None:
        check(self, lr=POSITIVE, damping=POSITIVE, momentum=BELOW_ONE, sizes=SIZES)

    @takes(model=MODULE, problem=PROBLEM)
    def __call__(self, model: nn.Module, problem: Problem, **run: Unpack[RunArguments]) -> History:
        """Train the model."""
        optimizer = self.optimizer(model, problem, run.get("seed", 0))
        decay = Decay(self.lr, run.get("steps"), run.get("seconds"))
        run["callbacks"] = [decay, *run.get("callbacks", ())]
        return fit(model, problem, optimizer, sampling=Every(1, self.sizes), **run)

    def optimizer(self, model: nn.Module, problem: Problem, seed: int) -> SPRING:
        """SPRING, its damping in units of the problem."""
        parameters = trained(model)
        generator, like = Generator().manual_seed(seed), parameters[0]
        batch = problem.sample(generator, self.sizes, **placed_like(like))
        kernel = linearize(batch.residuals(model), parameters).kernel()
        # In units of J J^T at the start: the number does not depend on the terms' weights
        damping = self.damping * float(kernel.diagonal().mean())
        # A step is halved only where it raises the loss; 2^-7 of one is none
        return SPRING(parameters, self.lr, damping, self.momentum, search=Armijo(trials=8))


@dataclass
class Decay(Callback):
    """lr times the part of the budget that is left, whether of steps or of seconds."""

    lr: float
    steps: int | None
    seconds: float | None

    def on_step(self, run: Run) -> None:
        # Whichever budget is further spent; a run without one keeps its lr
        spent = max(run.step / (self.steps or math.inf), run.seconds / (self.seconds or math.inf))
        for group in run.optimizer.param_groups:
            group["lr"] = self.lr * max(0.0, 1 - spent)
