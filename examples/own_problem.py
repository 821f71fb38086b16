"""A problem of your own: -Laplace u + u^3 = f on a disk, zero on its boundary.

    python examples/own_problem.py

A problem is data: a domain, terms (where the points come from, what vanishes there) and, if there
is one, the exact solution. Every optimizer trains on it, and `fit` measures its error.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import typer
from drawing import Out, curves, field, save, square
from torch import Tensor

from kfac_pinn import KFACPINN, MLP, Ball, Problem, Progress, Term, fit, taylor


def cubic() -> Problem:
    """u* = 1 - |x|^2, hence f = 4 + (1 - |x|^2)^3."""
    disk = Ball((0.0, 0.0))

    def solution(x: Tensor) -> Tensor:
        return 1 - (x * x).sum(1, keepdim=True)

    def interior(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        value, _, laplacian = taylor(u, x, weights=torch.ones(2))  # one pass for both
        return -laplacian + value**3 - 4 - solution(x) ** 3

    def boundary(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return u(x)

    terms = {
        "interior": Term(disk.interior, interior, 600),
        "boundary": Term(disk.boundary, boundary, 100),
    }
    return Problem("cubic reaction on a disk", disk, terms, solution)


def main(steps: int = 300, out: Out = Path("figures/own_problem.png")) -> None:
    """Train, draw and report the error."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    problem, model = cubic(), MLP((2, 24, 24, 1))
    optimizer = KFACPINN(model.parameters())
    history = fit(model, problem, optimizer, steps=steps, every=10, callbacks=[Progress()])
    x = square((-1, -1), (1, 1))
    u = model(x).where(x.norm(dim=1, keepdim=True) <= 1, torch.nan)
    lines = {name: history.column(name) for name in ("relative_l2", "loss")}
    training = curves("training", "steps", history.column("step"), **lines)
    save(out, field("u", x, u), field("error", x, u - problem.solution(x)), training)
    print(f"relative L2 error {history.last['relative_l2']:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
