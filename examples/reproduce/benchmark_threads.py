"""What a second thread does to a step.

    python examples/reproduce/benchmark_threads.py

Networks of 9,873, 10,065 and 118,145 parameters on 2d, 5d and 10d Poisson; `KFACStar`, `KFACPINN`
and, where its decomposition is affordable, `GaussNewton` on sketched rows; float64, one and two
threads. Every measurement is a process of its own, with OMP_NUM_THREADS set before torch is
imported, as a user would; one and two threads alternate, `rounds` times. Of each the median step of
the fastest round is kept: wall seconds, and process seconds (those of all threads together).
The figures are written to results/threads.json.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from benchmark_step import versions
from rich.console import Console
from rich.table import Table

from kfac_pinn import KFACPINN, GaussNewton, KFACStar, Sketch
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import poisson_2d, poisson_5d, poisson_10d

HERE = Path(__file__).parent
CASES = {
    "9873": (poisson_2d, (2, 64, 64, 48, 48, 1)),
    "10065": (poisson_5d, (5, 64, 64, 48, 48, 1)),
    "118145": (poisson_10d, (10, 256, 256, 128, 128, 1)),
}
OPTIMIZERS: dict[str, Callable] = {
    "KFACStar": KFACStar,
    "KFACPINN": KFACPINN,
    "GaussNewton": lambda parameters: GaussNewton(parameters, compression=Sketch(600)),
}
THREADS = (1, 2)
WARM_UP = 2  # the first steps check the Jacobian and fault in the memory


def seconds_of(case: str, optimizer: str, steps: int) -> dict[str, float]:
    """The median step of this process, after the warm-up."""
    make, widths = CASES[case]
    batch = make().sample(torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    model = MLP(widths).double()
    closure = batch.residuals(model)
    step = OPTIMIZERS[optimizer](model.parameters()).step
    wall, process = [], []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter(), time.process_time()
        step(closure)
        wall.append(time.perf_counter() - start[0])
        process.append(time.process_time() - start[1])
    medians = (statistics.median(each[WARM_UP:]) for each in (wall, process))
    return dict(zip(("wall", "process"), medians, strict=True))


def in_a_process(case: str, optimizer: str, threads: int, steps: int) -> dict[str, float]:
    """The same in a process that has so many threads."""
    command = [sys.executable, __file__, "--one", case, optimizer, "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measured(case: str, optimizer: str, steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds a step by the number of threads: of each kind the least of all rounds."""
    runs: dict[int, list[dict[str, float]]] = {threads: [] for threads in THREADS}
    for _ in range(rounds):
        for threads in THREADS:
            runs[threads].append(in_a_process(case, optimizer, threads, steps))
    return {
        str(threads): {kind: min(run[kind] for run in each) for kind in ("wall", "process")}
        for threads, each in runs.items()
    }


def main(
    steps: int = 8,
    rounds: int = 3,
    cases: Annotated[list[str], typer.Option()] = list(CASES),  # noqa: B006
    results: Path = HERE / "results",
    one: Annotated[tuple[str, str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print wall and process seconds a step, and store them."""
    if one is not None:
        print(json.dumps(seconds_of(*one, steps)))
        return
    table = Table("parameters", "optimizer", "threads", "wall s", "process s")
    figures: dict[str, object] = {}
    for case in cases:
        for optimizer in OPTIMIZERS:
            if (case, optimizer) == ("118145", "GaussNewton"):
                continue  # all of J, and its decomposition, take minutes
            found = figures[f"{case} {optimizer}"] = measured(case, optimizer, steps, rounds)
            for threads, seconds in found.items():
                row = (f"{seconds[kind]:.3f}" for kind in ("wall", "process"))
                table.add_row(case, optimizer, threads, *row)
    Console().print(table)
    figures |= {"steps": steps, "rounds": rounds, "cores": os.cpu_count(), **versions(__file__)}
    results.mkdir(exist_ok=True)
    (results / "threads.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
