"""A new task in one call: predict, certify by the residual on new points, polish if need be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Generator, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.levenberg import LevenbergMarquardt
from hyperlora_ext.task_spaces import Task
from kfac_pinn.jacobian.losses import total_loss
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training.clock import now

__all__ = ["Solved", "held_out_loss", "solve"]

Closure: TypeAlias = Callable[[], Any]
Draw: TypeAlias = Callable[[int], Closure]


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
    """

    model: nn.Module
    predicted: float
    loss: float
    steps: int
    seconds: float


def solve(
    hyper: HyperLoRA,
    family: Family,
    task: Task,
    tolerance: float = 0.0,
    steps: int = 10,
    *,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Solved:
    """The network of a task (p,): as predicted if its held-out loss is at most the tolerance,
    otherwise polished by at most so many Levenberg-Marquardt steps on its adapters.

    Args:
        sizes: points of a step, by condition, the family's own unless given; twice as many are held
            out. When these refuse a step, new points are drawn for the next.

    Raises:
        ValueError: for a task of the wrong size. Warns where it lies outside the trained range.
    """
    device = next(hyper.parameters()).device
    start = now(device)
    model = hyper.pinn(task)
    draw = drawing(family.problem(task), model, sizes or {}, Generator().manual_seed(seed))
    judges = draw(2)
    predicted = held_out_loss(judges)
    loss, taken = polish(model, judges, draw, tolerance, steps)
    return Solved(model, predicted, loss, taken, now(device) - start)


def polish(
    model: nn.Module, judges: Closure, draw: Draw, tolerance: float, steps: int
) -> tuple[float, int]:
    """The smallest held-out loss, at which the model is left, and the steps that were taken."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = LevenbergMarquardt(trained, held_out=judges)
    best, numbers, taken = held_out_loss(judges), parameters_to_vector(trained).detach(), 0
    points = draw(1)
    while best > tolerance and taken < steps:
        optimizer.step(points)
        loss, taken = held_out_loss(judges), taken + 1
        if loss < best:
            best, numbers = loss, parameters_to_vector(trained).detach()
        points = draw(1) if optimizer.vetoed else points
    vector_to_parameters(numbers, trained)
    return best, taken


def drawing(
    problem: Problem, model: nn.Module, sizes: Mapping[str, int], generator: Generator
) -> Draw:
    """Residuals of the model on so many times the points, new ones with every call."""
    like = next(model.parameters())
    whole = {name: term.size for name, term in problem.terms.items()} | dict(sizes)

    def draw(times: int) -> Closure:
        many = {name: times * n for name, n in whole.items()}
        return problem.sample(generator, many, like.dtype, like.device).residuals(model)

    return draw


@torch.no_grad()
def held_out_loss(residuals: Closure) -> float:
    """The loss of a closure on its points: a certificate where they were not trained on."""
    return float(total_loss(residuals()))
