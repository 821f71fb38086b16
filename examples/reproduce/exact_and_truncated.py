"""The two kinds of steps of KFACPINN side by side, and the spectrum of J on their ways.

    python examples/reproduce/exact_and_truncated.py border poisson_2d --hidden 64-64-48-48
    python examples/reproduce/exact_and_truncated.py paths

Rows of the tables of docs/design_notes.md, in Markdown. Float64, one thread, CPU seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from kfac_pinn import (
    KFACPINN,
    MLP,
    PROBLEMS,
    Affordable,
    Box,
    fit,
    laplacian,
    linearize,
    relative_l2,
)
from kfac_pinn.curvature.compression import operations
from kfac_pinn.pinn.training.clock import now

app = typer.Typer(help=__doc__, no_args_is_help=True)
Problem = Enum("Problem", {name: name for name in PROBLEMS}, type=str)
KINDS = {"truncated": Affordable(0), "exact": Affordable(math.inf)}
MARKS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


@app.command()
def border(
    problem: Problem,
    hidden: Annotated[str, typer.Option(help="e.g. 40-40; the smallest, if empty")] = "",
    seconds: Annotated[str, typer.Option(help="when errors are taken")] = "3,10,30,60",
    seed: int = 0,
) -> None:
    """The errors of both kinds of steps on one problem, and the operations of an exact one."""
    torch.set_num_threads(1)
    marks, instance = [float(each) for each in seconds.split(",")], PROBLEMS[problem.value]()
    smallest = instance.networks[0]
    inner = tuple(map(int, hidden.split("-"))) if hidden else smallest[1:-1]
    for name, exact in KINDS.items():
        torch.manual_seed(seed)
        model, errors = MLP((smallest[0], *inner, smallest[-1])).double(), []
        optimizer = KFACPINN(model.parameters(), exact=exact)
        # One run after the other continues it: neither the points nor the state are new
        for before, mark in pairwise([0.0, *marks]):
            history = fit(model, instance, optimizer, seconds=mark - before, every=10**9, seed=seed)
            errors.append(f"{history.last['relative_l2']:.1e}")
        choice = optimizer.memory.choice
        if choice is not None:
            size = f"{choice.columns}, {choice.rows}"
            work = f"{operations(choice.rows, choice.columns):.1e}"
            typer.echo(line([problem.value, size, work, name, *errors]))


@app.command()
def paths(
    seconds: Annotated[float, typer.Option(help="of each kind")] = 30.0,
    first: Annotated[float, typer.Option(help="truncated seconds, then exact ones")] = 4.0,
    seed: int = 0,
) -> None:
    """J decomposed on the way of exact steps, of truncated ones, and of these before those."""
    torch.set_num_threads(1)
    plans = {"exact": [("exact", seconds)], "truncated": [("truncated", seconds)]}
    plans["first truncated"] = [("truncated", first), ("exact", seconds - first)]
    for name, parts in plans.items():
        problem = Square(seed)
        for kind, budget in parts:
            optimizer = KFACPINN(problem.model.parameters(), exact=KINDS[kind])
            for passed in marks(optimizer, problem.residuals, budget):
                typer.echo(line([f"{name}: {kind}", f"{passed:.0f}", *problem.state(optimizer)]))


class Square:
    """-Laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, 600 + 120 points, 2-16-16-1."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = MLP((2, 16, 16, 1)).double()
        square = Box.cube(2)
        self.x, self.edge = square.interior(600).double(), square.boundary(120).double()
        self.held_out = square.interior(3000).double()

    @staticmethod
    def solution(x: Tensor) -> Tensor:
        """u."""
        return torch.sin(torch.pi * x).prod(1, keepdim=True)

    def residuals(self) -> tuple[Tensor, Tensor]:
        """Inside and on the edge."""
        inside = laplacian(self.model, self.x) + 2 * torch.pi**2 * self.solution(self.x)
        return inside, self.model(self.edge)

    def state(self, optimizer: KFACPINN) -> list[str]:
        """Loss, error, ||theta||, lambda / s_1^2, s_(P/4) / s_1, shares of r in two quarters."""
        found = linearize(self.residuals, list(self.model.parameters()))
        U, S, _ = torch.linalg.svd(found.rows(), full_matrices=False)
        parts = (U.T @ found.residual).square() / found.residual.square().sum()
        quarter = len(S) // 4
        theta = nn.utils.parameters_to_vector(self.model.parameters()).detach().norm()
        error = relative_l2(self.model, self.solution, self.held_out)
        damping = float(optimizer.stats["damping"]) / float(S[0]) ** 2
        numbers = [found.loss, error, float(theta), damping, float(S[quarter - 1] / S[0])]
        shares = [float(parts[:quarter].sum()), float(parts[quarter : 2 * quarter].sum())]
        return [f"{each:.1e}" for each in numbers] + [f"{each:.2f}" for each in shares]


def marks(optimizer: KFACPINN, closure: Callable[[], Any], budget: float) -> Iterator[float]:
    """Trains, and yields the seconds when they pass a mark."""
    spent, waiting = 0.0, [mark for mark in MARKS if mark <= budget]
    while waiting:
        begin = now()
        optimizer.step(closure)
        spent += now() - begin
        if spent >= waiting[0]:
            waiting.pop(0)
            yield spent


def line(cells: list[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    app()
