"""A problem of your own: -Laplace u + u^3 = f on a disk, zero on its boundary.

    python examples/own_problem.py

A problem is data: a domain, terms (where the points come from, what vanishes there) and, if there
is one, the exact solution. Every optimizer trains on it, and `fit` measures its error.
"""

import torch
import typer
from torch import Tensor

from kfac_pinn import KFACPINN, taylor
from kfac_pinn.pinn.domains import Ball
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Function, Problem, Term
from kfac_pinn.pinn.training import Progress, fit


def cubic() -> Problem:
    """u* = 1 - |x|^2, hence f = 4 + (1 - |x|^2)^3."""
    disk = Ball((0.0, 0.0))

    def solution(x: Tensor) -> Tensor:
        return 1 - (x * x).sum(1, keepdim=True)

    def interior(u: Function, x: Tensor) -> Tensor:
        value, _, laplacian = taylor(u, x, weights=torch.ones(2))  # one pass for both
        return -laplacian + value**3 - 4 - solution(x) ** 3

    def boundary(u: Function, x: Tensor) -> Tensor:
        return u(x)

    terms = {
        "interior": Term(disk.interior, interior, 600),
        "boundary": Term(disk.boundary, boundary, 100),
    }
    return Problem("cubic reaction on a disk", disk, terms, solution)


def main(steps: int = 300) -> None:
    """Train and report the error."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = MLP((2, 24, 24, 1))
    optimizer = KFACPINN(model.parameters())
    history = fit(model, cubic(), optimizer, steps=steps, every=50, callbacks=[Progress(steps)])
    print(f"relative L2 error {history.last['relative_l2']:.1e}")


if __name__ == "__main__":
    typer.run(main)
