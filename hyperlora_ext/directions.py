"""Where a low-rank update should act: along the full Gauss-Newton step of all weights.

The top right singular vectors of its layers are good rows of A. How many are needed they do not
say, for A and B keep turning (`grow` finds out).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.lora import LoRALinear, plain
from hyperlora_ext.rewiring import is_linear, linear_layers
from kfac_pinn import linearize
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.optimizers.levenberg_marquardt import Solver
from kfac_pinn.pinn.problem import Batch, Problem, placed_like

__all__ = ["Direction", "direction", "towards"]

# From a gradient step to nearly undamped ones, relative to the mean diagonal; the judges choose.
DAMPINGS = [10.0**-k for k in range(1, 8)]
POINTS = 100  # of each condition, for the step; five times as many judge its damping


@dataclass(frozen=True)
class Direction:
    """The full Gauss-Newton step of the linear layers.

    Attributes:
        rows: right singular vectors of each layer's step, by falling singular value: (k, d_in).
        spectrum: the singular values, relative to the first, (k,).
        share: of each layer in the first-order decrease -g . p; they sum to one.
    """

    rows: dict[str, Tensor]
    spectrum: dict[str, Tensor]
    share: dict[str, float]


def direction(model: nn.Module, batch: Batch, judges: Batch) -> Direction:
    """Where a low-rank update of the model (adapted or not) should act next.

    Args:
        model: a network of linear layers; adapters are merged first. It is not changed.
        batch: the points of the step.
        judges: points on which its damping is chosen.
    """
    network = plain_copy(model)
    weights = {n: layer.weight.requires_grad_() for n, layer in linear_layers(network).items()}
    found = linearize(batch.residuals(network), list(weights.values()))
    solver = Solver(found)
    objective = Objective(judges.residuals(network), found.parameters)
    steps = [solver.step(damping * solver.mean_diagonal) for damping in DAMPINGS]
    # By points that it was not made from: on its own the least damped one always wins
    step = min(steps, key=objective)
    blocks = dict(zip(weights, found.unflatten(step), strict=True))
    # -g . p layer by layer adds up to the decrease to first order, the signs cancelling in shares
    pairs = zip(found.unflatten(found.gradient), found.unflatten(step), strict=True)
    slopes = [float((g.conj() * p).real.sum()) for g, p in pairs]
    shares = [slope / sum(slopes) for slope in slopes]
    factored = {
        name: torch.linalg.svd(block, full_matrices=False) for name, block in blocks.items()
    }
    return Direction(
        {name: right for name, (_, _, right) in factored.items()},
        {name: values / values[0] for name, (_, values, _) in factored.items()},
        dict(zip(weights, shares, strict=True)),
    )


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in which each linear layer, adapted or parametrised, has a weight of its own."""
    memo: dict[int, Any] = {
        id(m): plain(m) for m in model.modules() if isinstance(m, LoRALinear) or is_linear(m)
    }
    return copy.deepcopy(model, memo).requires_grad_(False)


def towards(problem: Problem, base: nn.Module) -> dict[str, Tensor]:
    """Rows to start A from, by layer: a step of all weights on few points, the same every time."""
    like, generator = next(base.parameters()), Generator().manual_seed(0)

    def draw(most: int) -> Batch:
        sizes = {name: min(most, term.size) for name, term in problem.terms.items()}
        return problem.sample(generator, sizes, **placed_like(like))

    return direction(base, draw(POINTS), draw(5 * POINTS)).rows
