"""A step of KFACPINN on 20,000 points: several processes of one thread against one process.

    python examples/reproduce/benchmark_processes.py

Networks of 10,065 and 118,145 parameters on 5d and 10d Poisson, float64. Each measurement is a run
of its own (timed_processes.py); they alternate, `rounds` times, and of each the median step of the
fastest round is kept: wall seconds. Beside them the bytes that a process sends in a step, counted
and by formula. The figures are written to results/processes.json, where those of other cases stay.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from benchmark_step import versions
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

HERE = Path(__file__).parent
CASES = ["10065", "118145"]
RUNS = {
    "1 process, 1 thread": (1, 1),
    "1 process, 2 threads": (1, 2),
    "2 processes, 1 thread each": (2, 1),
}


def measured(case: str, points: int, steps: int, count: int, threads: int) -> dict[str, float]:
    """Of a step, by so many processes of so many threads."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, str(HERE / "timed_processes.py"), case]
    command += ["--points", str(points), "--steps", str(steps)]
    group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    runs = [
        subprocess.Popen(
            command,
            env={**os.environ, **group, "RANK": str(rank), "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [run.communicate()[0] for run in runs]
    return json.loads(said[0])


def main(
    points: int = 20_000,
    steps: int = 3,
    rounds: int = 2,
    cases: Annotated[list[str], typer.Option()] = CASES,
    results: Path = HERE / "results",
) -> None:
    """Print wall seconds and bytes a step, and store them."""
    table = Table("parameters", "", "wall s", "bytes", "by formula")
    path = results / "processes.json"
    figures: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}
    facts = {"points": points, "steps": steps, "rounds": rounds, "cores": os.cpu_count()}
    facts |= {"load": os.getloadavg()[0], **versions(__file__)}
    for case in tqdm(cases, unit="case"):
        rows = [
            {name: measured(case, points, steps, *run) for name, run in RUNS.items()}
            for _ in range(rounds)
        ]
        for name in RUNS:
            found = min((row[name] for row in rows), key=lambda row: row["seconds"])
            figures[f"{case}, {name}"] = {**found, **facts}
            sent = (f"{found[key]:,}" for key in ("bytes", "formula"))
            table.add_row(case, name, f"{found['seconds']:.3f}", *sent)
    Console().print(table)
    results.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
