"""What one K-FAC* step costs, measured against one Adam step on the same residuals.

    python examples/benchmark_step.py

The 4+1d heat equation on 3000 + 500 points with the tanh network 5-64-64-48-48-1, float64, one
thread. Both optimizers see the same forward-Laplacian residuals; their steps alternate, and the
CPU times are compared by medians. Adam's step is one backward pass of the loss; K-FAC*'s adds the
Jacobian, the Kronecker factors and their inverses, and two exact products with the Jacobian.
The figures are written to results/step_cost.json.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from kfac_pinn import KFACStar, total_loss
from kfac_pinn.networks import MLP
from kfac_pinn.problems import heat_4d

HERE = Path(__file__).parent
Step = Callable[[], object]


def steps_of(dtype: torch.dtype) -> dict[str, Step]:
    """One optimizer step each, on copies of one network and on the same points."""
    batch = heat_4d().sample(torch.Generator().manual_seed(0), dtype=dtype)
    torch.manual_seed(0)
    models = [MLP((5, 64, 64, 48, 48, 1)).to(dtype) for _ in range(2)]
    return {
        "K-FAC*": kfac_star(models[0], batch.residuals(models[0])),
        "Adam": adam(models[1], batch.residuals(models[1])),
    }


def kfac_star(model: nn.Module, residuals: Callable) -> Step:
    """The published algorithm with factors, inverses and both directions renewed every step."""
    optimizer = KFACStar(model.parameters(), damping=1e-8)
    return lambda: optimizer.step(residuals)


def adam(model: nn.Module, residuals: Callable) -> Step:
    """torch's own loop."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        total_loss(residuals()).backward()
        optimizer.step()

    return step


def milliseconds(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """CPU times of steps that alternate, after two of each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-2, repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repeat >= 0:
                times[name].append(1e3 * (time.process_time() - start))
    return times


def main(repeats: int = 40, results: Path = HERE / "results") -> None:
    """Print both medians and their ratio, and store them."""
    torch.set_num_threads(1)
    times = milliseconds(steps_of(torch.float64), repeats)
    median = {name: statistics.median(each) for name, each in times.items()}
    pairs = zip(times["K-FAC*"], times["Adam"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    table = Table("step", "ms (median)", "ms (fastest)")
    for name, each in times.items():
        table.add_row(name, f"{median[name]:.1f}", f"{min(each):.1f}")
    Console().print(table, f"ratio, median over the pairs: {ratio:.2f}")
    results.mkdir(exist_ok=True)
    figures = {"milliseconds": median, "fastest": {k: min(v) for k, v in times.items()}}
    text = json.dumps({"ratio": ratio, **figures, "repeats": repeats, **versions()}, indent=2)
    (results / "step_cost.json").write_text(text + "\n")


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    commit = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return {
        "command": " ".join(["python", "examples/benchmark_step.py", *sys.argv[1:]]),
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "allocator": os.environ.get("MALLOC_MMAP_THRESHOLD_", "default"),
    }


if __name__ == "__main__":
    typer.run(main)
