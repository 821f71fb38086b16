"""Whether a base solves its own task: its loss on new points, against that of u = 0."""

from __future__ import annotations

import warnings

import torch
from torch import Generator, nn

from kfac_pinn.jacobian.terms import total_loss
from kfac_pinn.notices import outside
from kfac_pinn.pinn.problem import Problem, placed_like
from kfac_pinn.settings import instance

__all__ = ["PROBLEM", "SOLVED", "unsolved", "warn_unsolved"]

PROBLEM = instance(Problem, "a Problem, e.g. family.problem(task)")
# A loss is a square: errors of about three per cent, from which adapters still find their way
SOLVED = 1e-3
POOR = (
    "the base does not solve {problem}: its held-out loss is {loss:.2g}, {part:.2g} of that of "
    "u = 0, and at most {solved:g} is expected. Adapters of a base that is not solved rarely "
    "converge: train it longer, on more points, or make it wider"
)


@torch.no_grad()
def unsolved(network: nn.Module, problem: Problem, seed: int = 0) -> tuple[float, float]:
    """The loss on new points, and the part of the loss of u = 0 that it is.

    Residuals have no unit in common: what a loss of 1e-2 means, only another function tells.
    """
    like = next(network.parameters())
    # A third stream: neither training points nor those that a schedule held out
    generator = Generator().manual_seed(seed + 2)
    batch = problem.sample(generator, **placed_like(like))
    loss = float(total_loss(batch.residuals(network)()))
    none = float(total_loss(batch.residuals(lambda x: 0.0 * network(x))()))
    return loss, loss / none if none else 0.0 if loss == 0 else float("inf")


def warn_unsolved(network: nn.Module, problem: Problem, seed: int = 0) -> None:
    """Warn where the network does not solve the problem, with the numbers."""
    loss, part = unsolved(network, problem, seed)
    # Written so that nan is poor
    if not part <= SOLVED:
        text = POOR.format(problem=problem.name, loss=loss, part=part, solved=SOLVED)
        warnings.warn(text, stacklevel=outside("hyperlora_ext."))
