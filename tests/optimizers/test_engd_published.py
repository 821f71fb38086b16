"""ENGD against the published trajectories: to 1e-8 as far as the published arithmetic goes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import extended_precision
import numpy as np
import published_arithmetic
import pytest
import torch
from small_problems import Closure, flat, relative
from test_kfac import PROBLEMS, reference
from torch import Tensor, nn

from kfac_pinn import ENGD, Linearization, linearize
from kfac_pinn.curvature.kronecker_factors import Average
from kfac_pinn.optimizers.engd import Diagonal, Full, PerLayer

EPS = torch.finfo(torch.float64).eps
SETTINGS: dict[str, Any] = {
    "engd_full": Full(),
    "engd_per_layer": PerLayer(),
    "engd_diagonal": Diagonal(),
    "engd_ema": Full(Average(0.5)),
}


BLOCKS = ["engd_full", "engd_per_layer"]
DETERMINED = [
    (problem, setting) for problem in PROBLEMS for setting in ("engd_diagonal", "engd_ema")
]
DETERMINED += [("heat1d", setting) for setting in BLOCKS]


@pytest.mark.parametrize(("problem", "setting"), DETERMINED)
def test_published_trajectory(problem: str, setting: str) -> None:
    """Those that the published arithmetic determines; the others step by step, below."""
    model, residuals, data = reference(problem)
    optimizer = ENGD(model.parameters(), damping=1e-6, gramian=SETTINGS[setting])
    tolerance = 1e-8 if setting in BLOCKS else 1e-9
    for losses, theta in zip(data[f"{setting}/losses"], data[f"{setting}/thetas"], strict=True):
        loss = optimizer.step(residuals)
        assert relative(flat(model), torch.from_numpy(theta)) <= tolerance
        assert float(loss) == pytest.approx(losses.sum(), rel=tolerance)


@pytest.mark.skipif(not extended_precision.AVAILABLE, reason="longdouble is no longer than double")
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("setting", BLOCKS)
def test_published_steps(problem: str, setting: str) -> None:
    """From every published state: the exact step, and as near to the published as that one is.

    The published code solves normal equations of condition up to 1e11 by a singular value
    decomposition, so that its directions are off by up to 7e-7 from those of extended precision.
    Ours are nearer at every state, by a factor of ten as a rule. What lies between is the rounding
    of the published solve, as `test_published_arithmetic` shows. Five steps amplify it: to 7e-8 of
    theta on poisson2d, 1e-2 on logfokkerplanck3d, where another length of the grid is then best.
    """
    for model, residuals, state in published_states(problem, setting):
        linearization = linearize(residuals, list(model.parameters()))
        optimizer = ENGD(model.parameters(), damping=1e-6, gramian=SETTINGS[setting])
        exact = exact_direction(problem, state, slices(linearization, setting))
        rounding = EPS * condition(linearization, setting)
        assert relative(optimizer.direction(linearization), exact) <= 0.2 * rounding
        assert relative(state.direction(exact), exact) <= 20 * rounding
        optimizer.step(residuals)
        assert relative(flat(model), state.after) <= 3e-8


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("setting", BLOCKS)
def test_published_arithmetic(problem: str, setting: str) -> None:
    """The same order of rounding gives every published state to 1e-9, from the one before."""
    for model, residuals, state in published_states(problem, setting):
        linearization = linearize(residuals, list(model.parameters()))
        blocks = slices(linearization, setting)
        direction = published_arithmetic.direction(problem, model, state.data, blocks)
        if state.first and relative(state.direction(direction), direction) > 2e-11:
            pytest.skip("another processor or linear algebra library rounds otherwise")
        displacement = direction * state.length(direction)
        assert relative(state.before + displacement, state.after) <= 1e-9


@dataclass(frozen=True)
class State:
    """Published parameters before and after a step."""

    before: Tensor
    after: Tensor
    data: dict[str, Any]
    first: bool

    def length(self, direction: Tensor) -> float:
        """Of the grid 2^-30 ... 2^0, what the step was shortened by."""
        ratio = float((self.after - self.before).norm() / direction.norm())
        return 2.0 ** round(math.log2(ratio))

    def direction(self, like: Tensor) -> Tensor:
        """The published direction, all digits that its parameters have."""
        return (self.after - self.before) / self.length(like)


def published_states(problem: str, setting: str) -> Iterator[tuple[nn.Module, Closure, State]]:
    """The network in each published state before a step."""
    model, residuals, data = reference(problem)
    thetas = torch.from_numpy(np.vstack([data["theta0"], data[f"{setting}/thetas"]]))
    for k, (before, after) in enumerate(itertools.pairwise(thetas)):
        nn.utils.vector_to_parameters(before.clone(), model.parameters())
        yield model, residuals, State(before, after, data, k == 0)


def exact_direction(problem: str, state: State, blocks: Sequence[slice]) -> Tensor:
    """In extended precision, by another way than any of the package's."""
    r, J = extended_precision.system(problem, state.data, state.before.numpy())
    steps = [extended_precision.damped_step(J[:, block], r, 1e-6) for block in blocks]
    return torch.from_numpy(np.concatenate(steps).astype(np.float64))


def slices(linearization: Linearization, setting: str) -> list[slice]:
    """The parameters that are solved for together; layers lie one after the other."""
    if setting == "engd_full":
        return [slice(0, linearization.size)]
    return [slice(block.slices[0].start, block.slices[-1].stop) for block in linearization.blocks]


def condition(linearization: Linearization, setting: str) -> float:
    """The largest condition number of the matrices that the published code inverts."""
    blocks = [None] if setting == "engd_full" else linearization.blocks
    largest = [torch.linalg.eigvalsh(linearization.gramian(b))[-1] for b in blocks]
    return float(max(largest)) / 1e-6
