"""What a second thread does to a step, and what a commit did.

    python examples/reproduce/benchmark_threads.py
    python examples/reproduce/benchmark_threads.py --against ../older  # a checkout of that commit
    python examples/reproduce/benchmark_threads.py --busy 1 --cases 1185 --optimizers default

Networks of 9,873, 10,065 and 118,145 parameters on 2d, 5d and 10d Poisson; `KFACStar`, `KFACPINN`
and `GaussNewton` on 600 sketched rows; float64, one and two threads, and one thread of another
checkout. Every measurement is a process of its own (timed_steps.py), with OMP_NUM_THREADS set
before torch is imported, as a user would; they alternate, `rounds` times. Of each the median step
of the fastest round is kept: wall seconds, and process seconds (those of all threads together).
The figures are written to results/threads.json. With `busy`, so many other
processes compute meanwhile, and a reader who has set nothing is measured too: threads_busy.json.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from benchmark_step import versions
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from kfac_pinn.threads import NAMES

HERE = Path(__file__).parent
CASES = ["9873", "10065", "118145"]
OPTIMIZERS = ["KFACStar", "KFACPINN", "GaussNewton"]


def seconds(
    case: str, optimizer: str, steps: int, settings: dict[str, str], tree: Path
) -> dict[str, float]:
    """Of a step, by a process with these settings and the package of that tree."""
    command = [sys.executable, str(HERE / "timed_steps.py"), case, optimizer]
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [*command, "--steps", str(steps)],
        env={**plain, **settings, "PYTHONPATH": str(tree.resolve())},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    if not Path(found.pop("from")).is_relative_to(tree.resolve()):
        raise typer.BadParameter(f"{tree} is no checkout of the package")
    return found


@contextmanager
def others(count: int) -> Iterator[None]:
    """So many other processes that never rest."""
    found = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in found:
            each.kill()
            each.wait()


def main(
    steps: int = 7,
    rounds: int = 3,
    cases: Annotated[list[str], typer.Option()] = CASES,
    optimizers: Annotated[list[str], typer.Option()] = OPTIMIZERS,
    against: Path | None = None,
    busy: int = 0,
    results: Path = HERE / "results",
) -> None:
    """Print wall and process seconds a step, and store them."""
    here = HERE.parents[1]
    one, two = {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2"}
    runs = {"1 thread": (one, here), "2 threads": (two, here)}
    if against is not None:
        runs["1 thread, other checkout"] = (one, against)
    if busy:
        runs["nothing set"] = ({}, here)
    table = Table("parameters", "optimizer", "", "wall s", "process s")
    figures: dict[str, object] = {}
    for case, optimizer in tqdm(list(product(cases, optimizers)), unit="case"):
        with others(busy):
            rows = [
                {name: seconds(case, optimizer, steps, *run) for name, run in runs.items()}
                for _ in range(rounds)
            ]
        least = {
            name: {kind: min(row[name][kind] for row in rows) for kind in ("wall", "process")}
            for name in runs
        }
        figures[f"{case} {optimizer}"] = least
        for name, found in least.items():
            table.add_row(case, optimizer, name, *(f"{s:.3f}" for s in found.values()))
    Console().print(table)
    figures |= {"steps": steps, "rounds": rounds, "cores": os.cpu_count(), "busy": busy}
    figures |= versions(__file__)
    if against is not None:
        describe = ["git", "-C", str(against), "describe", "--always"]
        figures["other checkout"] = subprocess.check_output(describe, text=True).strip()
    results.mkdir(exist_ok=True)
    (results / ("threads_busy.json" if busy else "threads.json")).write_text(
        json.dumps(figures, indent=2) + "\n"
    )


if __name__ == "__main__":
    typer.run(main)
