"""How accurate is `GaussNewton(model.parameters())`, untouched, in a minute on one core?

    python examples/reproduce/benchmark_gauss_newton.py --problem poisson2d --seeds 5 --seconds 60

One thread, soft conditions, uniform points drawn once, PyTorch's default initialisation; every seed
draws network and points anew. Seconds are processor time of this process, so that a shared machine
does not count; wall seconds are recorded beside them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Generator
from tqdm import tqdm

from kfac_pinn import GaussNewton
from kfac_pinn.curvature.compression import Exact, Sketch
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, relative_l2
from kfac_pinn.pinn.problems import burgers, heat_4d, poisson_2d, poisson_5d
from kfac_pinn.pinn.training.clock import now


@dataclass(frozen=True)
class Setup:
    """A problem, and the sizes that are free: of the network and of the samples."""

    problem: Callable[[], Problem]
    network: tuple[int, ...]
    points: tuple[int, int]


SETUPS = {
    "poisson2d": Setup(poisson_2d, (2, 20, 20, 1), (900, 120)),
    "poisson5d": Setup(poisson_5d, (5, 70, 8, 1), (1200, 400)),
    "heat4d": Setup(heat_4d, (5, 70, 8, 1), (1400, 450)),
    "burgers": Setup(lambda: burgers(0.01), (2, 18, 18, 18, 18, 1), (9000, 1200)),
    "burgers_steep": Setup(burgers, (2, 18, 18, 18, 18, 1), (12000, 1000)),
}


@dataclass(frozen=True)
class Record:
    """One moment of a run: times in seconds, the loss, and the error on held-out points."""

    step: int
    seconds: float
    wall: float
    loss: float
    error: float
    damping: float
    target: float


def run(setup: Setup, seed: int, seconds: float, options: dict[str, Any]) -> list[Record]:
    """One training run; a record about every second."""
    problem, dtype = setup.problem(), options["dtype"]
    torch.manual_seed(seed)
    model = MLP(setup.network).to(dtype)
    sizes = dict(zip(problem.terms, setup.points, strict=True))
    residuals = problem.sample(Generator().manual_seed(seed), sizes, dtype).residuals(model)
    held_out = problem.held_out(Generator().manual_seed(10_000), 5000, dtype)
    optimizer = GaussNewton(model.parameters(), compression=options["compression"])
    start, wall, step = now(), time.perf_counter(), 0
    records: list[Record] = []
    bar = tqdm(total=round(seconds), unit="s", desc=f"seed {seed}")
    while (elapsed := now() - start) < seconds:
        optimizer.step(residuals)
        step += 1
        if not records or elapsed > records[-1].seconds + 1:
            records.append(
                Record(
                    step,
                    now() - start,
                    time.perf_counter() - wall,
                    float(optimizer.stats["new_loss"]),
                    relative_l2(model, problem.solution, held_out),
                    float(optimizer.stats["damping"]),
                    float(optimizer.stats["target"]),
                )
            )
            last = records[-1]
            bar.set_postfix_str(f"loss {last.loss:.1e}, error {last.error:.1e}, step {last.step}")
            bar.update(min(round(last.seconds), bar.total) - bar.n)
    bar.close()
    return records


def circumstances() -> dict[str, Any]:
    """What a reader needs to run the same again."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "command": " ".join(
            ["python", "examples/reproduce/benchmark_gauss_newton.py", *settings()]
        ),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }


def settings() -> list[str]:
    """The arguments, but where the results go."""
    pairs = zip(sys.argv[1::2], sys.argv[2::2], strict=True)
    return [each for pair in pairs if pair[0] != "--output" for each in pair]


def main(
    problem: str = typer.Option("poisson2d", help=f"one of {', '.join(SETUPS)}"),
    seeds: int = 5,
    seconds: float = 60,
    dtype: str = "float64",
    rows: int = typer.Option(0, help="sketch the rows of J to so many; 0: all of J"),
    network: str = typer.Option("", help="other than the default, as 2-32-32-1"),
    output: Path = Path("examples/reproduce/results"),
) -> None:
    """Run all seeds, print a table, write JSON and CSV."""
    torch.set_num_threads(1)
    setup = SETUPS[problem]
    if network:
        setup = Setup(setup.problem, tuple(map(int, network.split("-"))), setup.points)
    compression = Sketch(rows) if rows else Exact()
    options = {"dtype": getattr(torch, dtype), "compression": compression}
    name = f"gauss_newton_{problem}" + ("" if dtype == "float64" else f"_{dtype}")
    runs: list[list[Record]] = []
    print(f"{problem}, network {setup.network}, points {setup.points}, {dtype}, {compression}")
    for seed in range(seeds):
        runs.append(run(setup, seed, seconds, options))
        last = runs[-1][-1]
        print(
            f"seed {seed}: relative L2 {last.error:.2e}, loss {last.loss:.1e}, {last.step} steps, "
            f"{last.seconds:.0f} s ({last.wall:.0f} s wall)",
            flush=True,
        )
        write(output / f"{name}.json", setup, runs)
    errors = [records[-1].error for records in runs]
    print(f"median {statistics.median(errors):.2e}, worst {max(errors):.2e}")


def write(path: Path, setup: Setup, runs: list[list[Record]]) -> None:
    """All records and circumstances as JSON; one line a seed and record as CSV."""
    errors = [records[-1].error for records in runs]
    content = {
        **circumstances(),
        "network": setup.network,
        "points": setup.points,
        "median_relative_l2": statistics.median(errors),
        "worst_relative_l2": max(errors),
        "relative_l2": errors,
        "seconds": [records[-1].seconds for records in runs],
        "wall": [records[-1].wall for records in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    rows = [{"seed": seed, **asdict(r)} for seed, records in enumerate(runs) for r in records]
    lines = [",".join(rows[0]), *(",".join(f"{v:.6g}" for v in row.values()) for row in rows)]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
