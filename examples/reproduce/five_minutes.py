"""The errors of two commits after so many seconds on three problems, nothing set.

    python examples/reproduce/five_minutes.py measure --against ../older   # a checkout
    python examples/reproduce/five_minutes.py measure --only 3,441 --optimizer KFACPINN
    python examples/reproduce/five_minutes.py report                       # a table, in Markdown

Float64, one thread, CPU seconds of the process, the same points and first weights for both. What is
imported exists in both commits. Results: results/five_minutes.json.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import kfac_pinn
from kfac_pinn import MLP, Box, laplacian, relative_l2

HERE = Path(__file__).parent
FILE = HERE / "results" / "five_minutes.json"
MARKS = (30.0, 60.0, 100.0, 200.0, 300.0)
FITTED = 1e-28  # of the loss: rounding
app = typer.Typer(help=__doc__, no_args_is_help=True)


def waves(x: Tensor) -> Tensor:
    """prod_i sin(2 pi x_i)."""
    return torch.sin(2 * math.pi * x).prod(1, keepdim=True)


def hill(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y)."""
    return torch.sin(math.pi * x).prod(1, keepdim=True)


def cosines(x: Tensor) -> Tensor:
    """sum_i cos(pi x_i)."""
    return torch.cos(math.pi * x).sum(1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """-Laplace u = factor u* on the unit cube, u = u* on its boundary, with a network for it."""

    widths: tuple[int, ...]
    solution: Callable[[Tensor], Tensor]
    factor: float
    sizes: tuple[int, int]

    def closure(self, model: torch.nn.Module, seed: int) -> Callable[[], Any]:
        """Of fixed points."""
        cube, generator = Box.cube(self.widths[0]), torch.Generator().manual_seed(seed)
        x = cube.interior(self.sizes[0], generator).double()
        edge = cube.boundary(self.sizes[1], generator).double()
        source, values = self.factor * self.solution(x), self.solution(edge)
        return lambda: (laplacian(model, x) + source, model(edge) - values)


CASES = {
    "2d Poisson, two waves, 3,441 parameters": Case(
        (2, 40, 40, 40, 1), waves, 8 * math.pi**2, (4000, 700)
    ),
    "3d Poisson, two waves, 3,481 parameters": Case(
        (3, 40, 40, 40, 1), waves, 12 * math.pi**2, (4000, 700)
    ),
    "2d Poisson, 9,873 parameters": Case((2, 64, 64, 48, 48, 1), hill, 2 * math.pi**2, (900, 120)),
    "5d Poisson, 10,065 parameters": Case((5, 64, 64, 48, 48, 1), cosines, math.pi**2, (3000, 500)),
}


@app.command()
def run(case: str, optimizer: str, seed: int = 0) -> None:
    """One run by the package that is imported; its marks as JSON, one a line."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    chosen = CASES[case]
    model = MLP(chosen.widths).double()
    closure, stepper = (
        chosen.closure(model, seed),
        getattr(kfac_pinn, optimizer)(model.parameters()),
    )
    held_out = (
        Box.cube(chosen.widths[0]).interior(20_000, torch.Generator().manual_seed(9)).double()
    )
    waiting, spent, steps, loss = list(MARKS), 0.0, 0, math.inf
    while waiting:
        begin = time.process_time()
        loss = float(stepper.step(closure))
        spent, steps = spent + time.process_time() - begin, steps + 1
        if spent >= waiting[0] or loss < FITTED:
            mark = {
                "mark": waiting.pop(0),
                "seconds": round(spent, 1),
                "steps": steps,
                "loss": loss,
            }
            error = relative_l2(model, chosen.solution, held_out)
            typer.echo(json.dumps({**mark, "error": error, "from": kfac_pinn.__file__}))
        if loss < FITTED:
            break


def marks_of(case: str, optimizer: str, tree: Path) -> list[dict[str, Any]]:
    """A run by the package of that tree."""
    done = subprocess.run(
        [sys.executable, __file__, "run", case, optimizer],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree.resolve())},
        capture_output=True,
        text=True,
        check=True,
    )
    marks = [json.loads(each) for each in done.stdout.splitlines()]
    if not all(Path(each.pop("from")).is_relative_to(tree.resolve()) for each in marks):
        raise typer.BadParameter(f"{tree} is no checkout of the package")
    return marks


@app.command()
def measure(
    only: Annotated[str, typer.Option(help="cases with this in their name")] = "",
    optimizer: Annotated[str, typer.Option(help="a class of both commits")] = "GaussNewton",
    against: Annotated[
        Path | None, typer.Option(help="the other checkout, instead of this")
    ] = None,
    file: Path = FILE,
) -> None:
    """By this checkout, or by the other one; the file keeps what it has of others."""
    tree = HERE.parents[1] if against is None else against
    commit = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    of = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    for case in CASES:
        if only in case:
            found = {"case": case, "optimizer": optimizer, "commit": of}
            found["marks"] = marks_of(case, optimizer, tree)  # type: ignore[assignment]
            stored = json.loads(file.read_text()) if file.exists() else []
            kept = [each for each in stored if any(each[k] != found[k] for k in KEYS)]
            file.write_text(json.dumps([*kept, found], indent=1) + "\n")
            typer.echo(line(found))


KEYS = ("case", "optimizer", "commit")


def line(found: dict[str, Any]) -> str:
    """Of the table: the errors at the marks, and the steps at the last."""
    errors = {each["mark"]: f"{each['error']:.1e}" for each in found["marks"]}
    last = found["marks"][-1]
    cells = [*(found[key] for key in KEYS), *(errors.get(mark, "") for mark in MARKS)]
    return f"| {' | '.join(cells)} | {last['steps']} in {last['seconds']:.0f} s |"


@app.command()
def report(file: Path = FILE) -> None:
    """All runs."""
    typer.echo(
        f"| problem | optimizer | commit | {' | '.join(f'{m:.0f} s' for m in MARKS)} | steps |"
    )
    typer.echo(f"|{'---|' * (len(MARKS) + 4)}")
    for found in sorted(
        json.loads(file.read_text()), key=lambda each: [*CASES].index(each["case"])
    ):
        typer.echo(line(found))


if __name__ == "__main__":
    app()
