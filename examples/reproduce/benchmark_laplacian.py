"""The Laplacian of a large tanh network by Taylor mode and by the nested autodiff of torch.func.

    python examples/reproduce/benchmark_laplacian.py

Time and peak memory of `laplacian(model, x)` and of `vmap(hessian)`, in float64 on one thread,
alone and with the parameter gradient of the mean square.  Every figure comes from a process of its
own: memory is what the largest resident set grew by over that of the loaded model, time the least
CPU time of a few runs.  The table and its figures are written to results/laplacian.json.
"""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm import tqdm

from kfac_pinn import laplacian
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.training.clock import now

app = typer.Typer(add_completion=False)
Operator = Callable[[nn.Module, Tensor], Tensor]


def nested_laplacian(model: nn.Module, x: Tensor) -> Tensor:
    """The trace of the Hessian of every point, forward over reverse mode."""
    hessian = torch.func.hessian(lambda point: model(point).squeeze(-1))
    return torch.func.vmap(hessian)(x).diagonal(dim1=1, dim2=2).sum(-1, keepdim=True)


POINTS = {10: 256, 100: 64}  # points at each dimension
METHODS: dict[str, Operator] = {"taylor": laplacian, "nested": nested_laplacian}
TASKS = ("forward", "gradient")


def run(operator: Operator, model: nn.Module, x: Tensor, task: str) -> Tensor:
    """The operator alone, or with the parameter gradient of its mean square."""
    if task == "forward":
        with torch.no_grad():
            return operator(model, x)
    loss = operator(model, x).square().mean()
    # The last bias does not move a Laplacian.
    torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.detach()


def peak_memory() -> float:
    """The largest resident set so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@app.command()
def measure(method: str, task: str, d: int, points: int, repeats: int = 5) -> None:
    """One figure: print its seconds, MiB and value as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = MLP((d, 768, 768, 512, 512, 1)).double(), torch.rand(points, d).double()
    run(METHODS[method], model, x[:1], task)  # loads the libraries
    before = peak_memory()
    value = run(METHODS[method], model, x, task)
    memory, seconds = peak_memory() - before, []
    for _ in range(repeats):
        start = now()
        run(METHODS[method], model, x, task)
        seconds.append(now() - start)
    print(json.dumps({"seconds": min(seconds), "MiB": memory, "value": value.sum().item()}))


def measured(method: str, task: str, d: int, points: int) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "measure", method, task, str(d), str(points)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@app.command()
def compare(results: Path = Path(__file__).parent / "results") -> None:
    """All figures, as a table and as JSON."""
    rows = []
    cases = [(d, points, task) for d, points in POINTS.items() for task in TASKS]
    for d, points, task in tqdm(cases, unit="case"):
        row = {name: measured(name, task, d, points) for name in METHODS}
        taylor, nested = row["taylor"], row["nested"]
        assert abs(taylor.pop("value") - nested.pop("value")) < 1e-8  # the same quantity
        rows.append({"d": d, "task": task, "points": points, **row})
    show(rows)
    results.mkdir(exist_ok=True)
    text = json.dumps({"rows": rows, "versions": versions()}, indent=2)
    (results / "laplacian.json").write_text(text + "\n")


def show(rows: list[dict]) -> None:
    """Print the comparison."""
    table = Table("d", "task", "taylor s", "nested s", "time", "taylor MiB", "nested MiB", "memory")
    for row in rows:
        a, b = row["taylor"], row["nested"]
        cells = [f"{each[unit]:.3g}" for unit in ("seconds", "MiB") for each in (a, b)]
        ratios = [f"{a[unit] / b[unit]:.2f}x" for unit in ("seconds", "MiB")]
        table.add_row(str(row["d"]), row["task"], *cells[:2], ratios[0], *cells[2:], ratios[1])
    Console().print(table)


def versions() -> dict[str, str | int]:
    """What the figures were measured with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": 1,
        "allocator": os.environ.get("MALLOC_MMAP_THRESHOLD_", "default"),
        "dtype": "float64",
    }


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Without a command: compare."""
    if context.invoked_subcommand is None:
        compare()


if __name__ == "__main__":
    app()
