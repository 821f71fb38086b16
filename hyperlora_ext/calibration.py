"""How large an error a held-out loss means: measured once on a family's validation tasks.

known = calibrate(h, family)
solve(h, family, task, calibration=known).error      # without the task's solution
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.certified import HYPER, Calibration, Solved, sized, solve
from hyperlora_ext.family import FAMILY, Family, unknown
from hyperlora_ext.hyper import HyperLoRA
from kfac_pinn import LevenbergMarquardt
from kfac_pinn.pinn.problem import placed_like
from kfac_pinn.pinn.training import fit
from kfac_pinn.settings import INTEGER, SIZES, takes, whole

__all__ = ["calibrate"]

COMPARED = 1000  # points of the domain at which two networks are compared


@dataclass(frozen=True)
class Pair:
    """A held-out loss and the relative error that was found with it."""

    loss: float
    error: float


@takes(hyper=HYPER, family=FAMILY, steps=whole(0), sizes=SIZES, seed=INTEGER)
def calibrate(
    hyper: HyperLoRA,
    family: Family,
    tasks: Tensor | None = None,
    steps: int = 3,
    *,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Calibration:
    """error = ratio sqrt(loss): the median ratio over predictions and polished networks.

    Near a solution the residual is linear in the error, so their norms are proportional. Errors are
    relative to the solution where the family has one; otherwise to the same network polished
    further on twice the points, which tells errors that are larger than its own.

    Args:
        hyper: a trained hypernetwork of the family.
        tasks: (T, p) to validate on; eight of the family's validation tasks by default.
        steps: of polishing, after which each network is looked at again.
        sizes, seed: as of `solve`.

    Raises:
        ValueError: where no loss and error is finite and above zero.
    """
    tasks = family.splits(seed).valid[:8] if tasks is None else family.space.check(tasks)
    pairs = [pair for task in tasks for pair in _pairs(hyper, family, task, steps, sizes, seed)]
    found = [p.error / math.sqrt(p.loss) for p in pairs if p.loss > 0 and 0 < p.error < math.inf]
    if not found:
        raise ValueError(
            f"{family.name}: none of {len(pairs)} pairs of held-out loss and error is finite and "
            "above zero: train the hypernetwork first"
        )
    ratios = torch.tensor(found, dtype=torch.float64)
    ratio = float(ratios.median())
    return Calibration(ratio, float(ratios.max()) / ratio, len(found))


def _pairs(
    hyper: HyperLoRA,
    family: Family,
    task: Tensor,
    steps: int,
    sizes: Mapping[str, int] | None,
    seed: int,
) -> Iterator[Pair]:
    """Of the prediction, and of the network after so many steps."""
    solved = solve(hyper, family, task, steps=steps, sizes=sizes, seed=seed)
    predicted = hyper.pinn(task)
    if family.solution is unknown:
        truth = finer(solved, family, task, steps, sizes, seed)
        grid = family.domain.interior(COMPARED, Generator().manual_seed(seed), torch.float64)
    else:
        truth, grid = None, family.grid
    for network, loss in ((predicted, solved.predicted), (solved.model, solved.loss)):
        yield Pair(loss, distance(network, truth, family, task, grid))


def finer(
    solved: Solved,
    family: Family,
    task: Tensor,
    steps: int,
    sizes: Mapping[str, int] | None,
    seed: int,
) -> nn.Module:
    """The network polished three times as long on twice the points, in a copy."""
    model, problem = copy.deepcopy(solved.model), sized(family.problem(task), sizes or {})
    double = {name: 2 * term.size for name, term in problem.terms.items()}
    problem = sized(problem, double)
    fit(model, problem, LevenbergMarquardt(model.parameters()), steps=3 * steps, seed=seed + 2)
    return model


@torch.no_grad()
def distance(
    network: nn.Module, truth: nn.Module | None, family: Family, task: Tensor, grid: Tensor
) -> float:
    """||u - u*|| / ||u*|| on the grid, u* being that of the truth, or the family's solution."""

    def values(of: Any) -> Tensor:
        x = grid.to(**placed_like(next(of.parameters())))
        found: Tensor = family.field(of, task)(x).to(grid)
        return found

    exact = family.solution(grid, task.to(grid)) if truth is None else values(truth)
    return float((values(network) - exact).norm() / exact.norm())
