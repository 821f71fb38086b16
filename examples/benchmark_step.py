"""What a K-FAC* step costs, next to an Adam step on the same forward-Laplacian residual.

python examples/benchmark_step.py

4+1d heat, 5-64-64-48-48-1 tanh, 3000 + 500 points, float64, one thread. The two take turns, and
medians are compared, so that a machine whose speed drifts treats them alike.
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
from torch import Tensor

from kfac_pinn import KFACPINN, KFACStar, total_loss
from kfac_pinn.networks import MLP
from kfac_pinn.problems import heat_4d

RESULT = Path(__file__).parent / "results" / "step_cost.json"


def main(repeats: int = 40, path: Path = RESULT) -> None:
    """Print milliseconds a step and their ratio to Adam's; store them with versions and commit."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    steps = {"Adam": adam(), "KFAC*": ours(KFACStar), "KFACPINN": ours(KFACPINN)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 3):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repeat >= 3:  # the first ones fill caches and take Adam's and K-FAC's first step
                times[name].append(1e3 * (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:9s} {median:7.1f} ms a step, {median / medians['Adam']:.2f} x Adam")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"milliseconds": medians, **environment()}, indent=1) + "\n")


def setup() -> tuple[MLP, Callable[[], dict[str, Tensor]]]:
    """The same network and points for everyone."""
    torch.manual_seed(0)
    model = MLP((5, 64, 64, 48, 48, 1))
    return model, heat_4d().sample(torch.Generator().manual_seed(0)).residuals(model)


def adam() -> Callable[[], object]:
    """One step of torch's Adam."""
    model, residuals = setup()
    optimizer = torch.optim.Adam(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = total_loss(residuals())
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def ours(optimizer: type) -> Callable[[], object]:
    """One step of ours with its default settings."""
    model, residuals = setup()
    built = optimizer(model.parameters())
    return lambda: built.step(residuals)


def environment() -> dict[str, object]:
    """What the figures were measured with."""
    git = ["git", "rev-parse", "HEAD"]
    return {
        "clock": "process seconds",
        "command": " ".join(["python", *sys.argv]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "malloc": os.environ.get("MALLOC_TOP_PAD_", "default"),
    }


if __name__ == "__main__":
    typer.run(main)
