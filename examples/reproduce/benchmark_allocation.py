"""What it saves that freed memory stays with the process (`kfac_pinn.allocation`).

    python examples/reproduce/benchmark_allocation.py

Rows of the benchmark suite, by the package and by glibc's own settings, taking turns, a process a
measurement: median CPU milliseconds of the faster of the rounds, page faults of one repetition, and
MiB above those of the built network.  One thread, float64; results/allocation.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmark_step import versions
from benchmark_suite import measured
from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).parent
ROWS = [
    "first-order step, 3,500 points",
    "step: KFACStar",
    "step: KFACPINN",
    "step: GaussNewton, 1,185 parameters",
    "step: GaussNewton, 3,441 parameters",
]
# A variable that changes nothing but says that the user has decided
WAYS: dict[str, dict[str, str]] = {"kept": {}, "glibc's own": {"MALLOC_PERTURB_": "0"}}


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    file: Path = HERE / "results" / "allocation.json",
) -> None:
    """Measure, print and store."""
    found: dict[str, dict[str, Any]] = {row: {} for row in ROWS}
    for row in track(ROWS, description="rows", console=Console(stderr=True)):
        for _ in range(rounds):
            for way, settings in WAYS.items():
                run = measured(row, "ours", 1, HERE.parents[1], **settings)
                best = found[row].setdefault(way, run)
                found[row][way] = min(best, run, key=lambda each: each["seconds"])
    table = Table("", "way", "ms", "page faults", "MiB")
    for row, ways in found.items():
        for way, each in ways.items():
            cells = 1e3 * each["seconds"], each["faults"], each["MiB"]
            table.add_row(row, way, *(f"{cell:,.0f}" for cell in cells))
    Console().print(table)
    file.write_text(json.dumps({"rows": found, **versions(__file__)}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
