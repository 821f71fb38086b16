"""From a trained network to another Reynolds number, and from a new one, by several optimizers.

    python examples/reproduce/continuation.py measure                  # five minutes
    python examples/reproduce/continuation.py table

Kovasznay's flow, a tanh network 2-16-16-3 trained at Re = 40, 300 points inside and 160 on the
boundary, kept. Float64, one thread, CPU seconds of the training thread.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn
from torch.optim import Optimizer
from zoo_runs import commit_here

from kfac_pinn import (
    KFACPINN,
    MLP,
    PROBLEMS,
    Affordable,
    Fixed,
    GaussNewton,
    LevenbergMarquardt,
    TargetSchedule,
    fit,
)

app = typer.Typer(help=__doc__, no_args_is_help=True)
RESULTS = Path(__file__).parent / "results" / "continuation.json"
SIZES = {"interior": 300, "boundary": 160}
MARKS = (15, 60, 150)  # steps after which the error is taken


def steady(ratio: float) -> Callable[[Any], Optimizer]:
    """`GaussNewton` whose steps aim at one ratio in its first stage."""
    schedule = TargetSchedule(low=ratio, least=ratio)
    return lambda parameters: GaussNewton(parameters, schedule=schedule)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "GaussNewton": GaussNewton,
    "GaussNewton, target 0.5": steady(0.5),
    "GaussNewton, target 0.85": steady(0.85),
    "KFACPINN, truncated steps": lambda parameters: KFACPINN(parameters, exact=Affordable(0)),
    "LevenbergMarquardt": LevenbergMarquardt,
}


def new(seed: int) -> nn.Module:
    """An untrained network."""
    torch.manual_seed(seed)
    return MLP((2, 16, 16, 3)).double()


def trained(model: nn.Module, reynolds: float, make: Callable[[Any], Optimizer], seed: int) -> Any:
    """The history of a run, a row at every mark."""
    problem, optimizer = PROBLEMS["kovasznay"](reynolds=reynolds), make(model.parameters())
    points = Fixed(SIZES)
    return fit(
        model, problem, optimizer, steps=MARKS[-1], every=MARKS[0], seed=seed, sampling=points
    )


def runs(seeds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every optimizer from either start, by seed."""
    for seed in range(seeds):
        base = new(seed)
        trained(base, 40.0, GaussNewton, seed)
        for start, reynolds in (("Re 40", 60.0), ("new", 60.0)):
            for name, make in OPTIMIZERS.items():
                model = copy.deepcopy(base) if start == "Re 40" else new(seed)
                rows = trained(model, reynolds, make, seed).rows
                at = {row["step"]: row for row in rows if row["step"] in MARKS}
                found = {step: [row["relative_l2"], row["seconds"]] for step, row in at.items()}
                yield f"{start} to {reynolds:g}, {name}, seed {seed}", found


@app.command()
def measure(seeds: int = 3, file: Path = RESULTS) -> None:
    """Relative L2 errors and seconds after some steps."""
    torch.set_num_threads(1)
    made = {"commit": commit_here(), "torch": torch.__version__}
    made["machine"] = platform.processor() or platform.machine()
    file.write_text(json.dumps({**made, "runs": dict(runs(seeds))}, indent=1) + "\n")


@app.command()
def table(file: Path = RESULTS) -> None:
    """Medians over the seeds, in Markdown."""
    stored = json.loads(file.read_text())["runs"]
    groups: dict[str, list[Any]] = {}
    for name, found in stored.items():
        groups.setdefault(name.rpartition(",")[0], []).append(found)
    for name, found in groups.items():
        cells = []
        for step in map(str, MARKS):
            errors, seconds = zip(*(each[step] for each in found if step in each), strict=True)
            middle = statistics.median(errors), statistics.median(seconds)
            cells.append(f"{middle[0]:.1e} in {middle[1]:.1f} s")
        typer.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    app()
