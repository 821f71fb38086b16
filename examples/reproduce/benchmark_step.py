"""What one K-FAC* step costs, measured against one Adam step on the same residuals.

    python examples/reproduce/benchmark_step.py

The 4+1d heat equation on 3000 + 500 points with the tanh network 5-64-64-48-48-1, float64, one
thread. All see the same forward-Laplacian residuals; their steps alternate, and the means of the
faster half of their CPU times are compared. Adam's step is one backward pass of the loss; K-FAC*'s
adds the Kronecker factors and their inverses, and two exact products with the Jacobian. Counting
matrix products only, in units of one forward pass: Adam 3; K-FAC* 3 + 1.3 (factors) + 2. Once with
factors and inverses renewed in every step, as published, and once in every third.
The figures are written to results/step_cost.json.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import trange

from kfac_pinn import KFACStar, total_loss
from kfac_pinn.curvature.kronecker_factors import Factors
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import heat_4d
from kfac_pinn.pinn.training.clock import now

HERE = Path(__file__).parent
Step = Callable[[], object]


def steps_of(dtype: torch.dtype) -> dict[str, Step]:
    """One optimizer step each, on copies of one network and on the same points."""
    batch = heat_4d().sample(torch.Generator().manual_seed(0), dtype=dtype)
    torch.manual_seed(0)
    models = [MLP((5, 64, 64, 48, 48, 1)).to(dtype) for _ in range(3)]
    closures = [batch.residuals(model) for model in models]
    return {
        "K-FAC*": kfac_star(models[0], closures[0], Factors()),
        "K-FAC*, factors every 3": kfac_star(
            models[1], closures[1], Factors(every=3, invert_every=3)
        ),
        "Adam": adam(models[2], closures[2]),
    }


def kfac_star(model: nn.Module, residuals: Callable, factors: Factors) -> Step:
    """The published algorithm, both directions renewed every step."""
    optimizer = KFACStar(model.parameters(), damping=1e-8, factors=factors)
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
    """CPU times of steps that alternate, after three of each to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in trange(-3, repeats, unit="round"):
        for name, step in steps.items():
            start = now()
            step()
            if repeat >= 0:
                times[name].append(1e3 * (now() - start))
    return times


def main(repeats: int = 42, results: Path = HERE / "results") -> None:
    """Print means and their ratios to Adam's, and store them."""
    torch.set_num_threads(1)
    times = milliseconds(steps_of(torch.float64), repeats)
    mean = {name: trimmed_mean(each) for name, each in times.items()}
    ratio = {name: value / mean["Adam"] for name, value in mean.items()}
    table = Table("step", "ms (mean)", "ms (fastest)", "times Adam")
    for name, each in times.items():
        table.add_row(name, f"{mean[name]:.1f}", f"{min(each):.1f}", f"{ratio[name]:.2f}")
    Console().print(table)
    results.mkdir(exist_ok=True)
    figures = {"ratio": ratio, "milliseconds": mean, "repeats": repeats, **versions()}
    (results / "step_cost.json").write_text(json.dumps(figures, indent=2) + "\n")


def trimmed_mean(times: list[float]) -> float:
    """By periods of three steps, as factors are renewed; the slower half of them is disturbed."""
    periods = sorted(statistics.mean(times[i : i + 3]) for i in range(0, len(times) - 2, 3))
    return statistics.mean(periods[: max(1, len(periods) // 2)])


def versions(script: str = __file__) -> dict[str, str]:
    """What the figures were measured with."""
    commit = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return {
        "command": " ".join(["python", f"examples/reproduce/{Path(script).name}", *sys.argv[1:]]),
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "allocator": os.environ.get("MALLOC_MMAP_THRESHOLD_", "default"),
    }


if __name__ == "__main__":
    typer.run(main)
