"""A new task in one call: predict, certify by the residual on new points, polish if need be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.levenberg import LevenbergMarquardt
from kfac_pinn.residuals import total_loss

__all__ = ["Solved", "certificate", "solve"]


@dataclass(frozen=True)
class Solved:
    """A network for one task, and how good it is, without knowing the solution.

    Attributes:
        model: adapters on the base; `merge(model)` is a plain network.
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
    task: Tensor,
    tolerance: float = 0.0,
    steps: int = 10,
    *,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Solved:
    """The network of a task (p,): as predicted if its held-out loss is at most the tolerance,
    otherwise polished by at most so many Levenberg-Marquardt steps on its adapters.

    Args:
        sizes: points of a step, by condition; twice as many are held out.

    Raises:
        ValueError: for a task of the wrong size. Warns where it lies outside the trained range.
    """
    start = time.perf_counter()
    model = hyper.pinn(task)
    problem, generator = family.problem(task), Generator().manual_seed(seed)
    like = next(model.parameters())
    more = {k: 2 * n for k, n in (sizes or {}).items()}
    judges = problem.sample(generator, more, like.dtype, like.device).residuals(model)
    loss = predicted = certificate(judges)
    points = problem.sample(generator, sizes, like.dtype, like.device).residuals(model)
    optimizer, taken = LevenbergMarquardt(model.parameters(), held_out=judges), 0
    while loss > tolerance and taken < steps:
        optimizer.step(points)
        loss, taken = certificate(judges), taken + 1
    return Solved(model, predicted, loss, taken, time.perf_counter() - start)


@torch.no_grad()
def certificate(residuals: object) -> float:
    """The loss of a closure on its points: a certificate where they were not trained on."""
    return float(total_loss(residuals()))  # type: ignore[operator]
