"""A new task in one call: predict, certify by the residual on new points, polish if need be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Generator, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hyperlora_ext.family import FAMILY, Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.task_spaces import Task
from kfac_pinn import LevenbergMarquardt
from kfac_pinn.jacobian.terms import total_loss
from kfac_pinn.pinn.problem import Batch, Problem, placed_like
from kfac_pinn.pinn.training import Callback, Run, fit
from kfac_pinn.pinn.training.clock import now
from kfac_pinn.settings import (
    INTEGER,
    NOT_NEGATIVE,
    POSITIVE,
    SIZES,
    at_least,
    check,
    instance,
    optional,
    takes,
    whole,
)

__all__ = ["HYPER", "Calibration", "Solved", "held_out_loss", "solve"]

Closure: TypeAlias = Callable[[], Any]
HYPER = instance(HyperLoRA, "a HyperLoRA, e.g. HyperLoRA(base, family.space)")


@dataclass(frozen=True)
class Calibration:
    """What a held-out loss says about an error: made by `calibrate`, for one family.

    Attributes:
        ratio: the median of relative error / sqrt(loss) over validation tasks.
        spread: the largest of these ratios over the median.
        pairs: how many there were.
    """

    ratio: float
    spread: float
    pairs: int

    def __post_init__(self) -> None:
        check(self, ratio=POSITIVE, spread=at_least(1.0), pairs=whole(1))

    def error(self, loss: float) -> float:
        """The relative L2 error to be expected, ratio sqrt(loss); at worst it was spread times."""
        return self.ratio * math.sqrt(loss)


CALIBRATION = instance(Calibration, "a Calibration, e.g. calibrate(hyper, family)")


@dataclass(frozen=True)
class Solved:
    """A network for one task, and how good it is, without knowing the solution.

    Attributes:
        model: adapters on the base; `merge(model)` is a plain network. Of the steps taken, the one
            with the smallest loss on the points held out.
        predicted, loss: sum_k 1/2 mean r_k^2 on points that were not trained on, of the
            prediction and of `model`.
        steps: of polishing.
        seconds: in all.
        error: the relative L2 error of `model` that its loss means on this family; None where
            `solve` was given no calibration.
    """

    model: nn.Module
    predicted: float
    loss: float
    steps: int
    seconds: float
    error: float | None = None


@takes(
    hyper=HYPER,
    family=FAMILY,
    tolerance=NOT_NEGATIVE,
    steps=whole(0),
    sizes=SIZES,
    seed=INTEGER,
    calibration=optional(CALIBRATION),
)
def solve(
    hyper: HyperLoRA,
    family: Family,
    task: Task,
    tolerance: float = 0.0,
    steps: int = 10,
    *,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    calibration: Calibration | None = None,
) -> Solved:
    """The network of one task, predicted, certified on held-out points, and polished if need be.

    As predicted by hyper if its held-out loss is at most the tolerance; otherwise polished by at
    most so many Levenberg-Marquardt steps on its adapters.

    Args:
        hyper: a trained hypernetwork of the family.
        task: (p,).
        tolerance: of the held-out loss.
        steps: the most.
        seed: of the points.
        sizes: points of a step, by condition, the family's own unless given; twice as many are held
            out. After a step that does not lower their loss, new points are drawn for the next.
        calibration: of the family (`calibrate`), by which the error is estimated.

    Raises:
        ValueError: for a task of the wrong size. Warns where it lies outside the trained range.
    """
    like = hyper.start
    start = now(like.device)
    model = hyper.pinn(task)
    problem = sized(family.problem(task), sizes or {})
    many = {name: 2 * term.size for name, term in problem.terms.items()}
    # Another stream than that of the training points
    generator = Generator().manual_seed(seed + 1)
    judges = problem.sample(generator, many, **placed_like(like)).residuals(model)
    best = Best(judges, tolerance)
    predicted = best.judge(model)
    # With more trials a step that hardly moves passes the veto, and the points are kept too long
    optimizer = LevenbergMarquardt(model.parameters(), held_out=judges, trials=6)
    taken = 0
    if predicted > tolerance and steps > 0:
        history = fit(
            model,
            problem,
            optimizer,
            steps=steps,
            seed=seed,
            sampling=best.points,
            callbacks=[best],
        )
        taken = history.last["step"]
    error = calibration.error(best.loss) if calibration else None
    return Solved(model, predicted, best.loss, taken, now(like.device) - start, error)


def sized(problem: Problem, sizes: Mapping[str, int]) -> Problem:
    """The problem with so many points by default; its solution, if known, is not looked at.

    Raises:
        KeyError: if `sizes` names a term that the problem does not have.
    """
    if unknown := set(sizes) - set(problem.terms):
        raise KeyError(f"{problem.name} has {list(problem.terms)}, not {sorted(unknown)}")
    terms = {n: replace(term, size=sizes.get(n, term.size)) for n, term in problem.terms.items()}
    return replace(problem, terms=terms, solution=None)


class Best(Callback):
    """Leaves the model where its held-out loss was smallest; stops where that is good enough.

    Args:
        judges: a closure on points that are not trained on.
        tolerance: of the loss.
    """

    ends = False

    def __init__(self, judges: Closure, tolerance: float) -> None:
        self.judges, self.tolerance = judges, tolerance
        self.loss, self.numbers, self.fruitless = math.inf, torch.empty(0), False

    def judge(self, model: nn.Module) -> float:
        """The held-out loss now; remembers where it is smallest."""
        loss = held_out_loss(self.judges)
        # Written so that nan is no gain
        self.fruitless = not loss < self.loss
        if not self.fruitless:
            self.loss = loss
            # Numbers, not a copy of the model: its base may be large, and is not trained
            self.numbers = parameters_to_vector(trained(model)).detach().clone()
        return loss

    def points(self, run: Run) -> Batch | None:
        """For `fit`: new points after a step that was vetoed, or did not lower the loss."""
        return run.draw() if run.step == 0 or self.fruitless else None

    def on_step(self, run: Run) -> None:
        if self.judge(run.model) <= self.tolerance:
            run.stop(f"the held-out loss is at most {self.tolerance:g}")

    def on_end(self, run: Run) -> None:
        vector_to_parameters(self.numbers, trained(run.model))


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Its adapters' factors."""
    return [p for p in model.parameters() if p.requires_grad]


@torch.no_grad()
def held_out_loss(residuals: Closure) -> float:
    """The loss of a closure on its points: a certificate where they were not trained on."""
    return float(total_loss(residuals()))
