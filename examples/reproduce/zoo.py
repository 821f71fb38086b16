"""Every problem with the recommended default, beside Adam and L-BFGS on the same network.

    python examples/reproduce/zoo.py measure                       # all that is not done yet
    python examples/reproduce/zoo.py measure --only helmholtz --seeds 3
    python examples/reproduce/zoo.py report                        # fills docs/experiments/zoo.md

One run is one JSON file in results/zoo: the error (relative L2 on points held out) after 30, 100
and 300 seconds of `fit`, whose seconds are those of the training thread. A run that fails leaves
its reason; a run that was interrupted is made again. Float64, one thread, nothing tuned.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.optim import Optimizer

from kfac_pinn import (
    KFACPINN,
    MLP,
    PROBLEMS,
    Callback,
    GaussNewton,
    InverseProblem,
    Problem,
    Progress,
    Run,
    WithUnknowns,
    fit,
)

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo"
PAGE = HERE.parents[1] / "docs" / "experiments" / "zoo.md"
SECONDS = (30.0, 100.0, 300.0)
LEFT_OUT = {"poisson_ritz"}  # an energy, whose minimum is off the solution

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "GaussNewton": GaussNewton,
    "KFACPINN": KFACPINN,
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "L-BFGS": lambda parameters: torch.optim.LBFGS(
        parameters, max_iter=20, history_size=50, line_search_fn="strong_wolfe"
    ),
}

#: The best relative L2 errors that were published, with their methods, where one is known.
PUBLISHED = {
    "helmholtz": "2.0e-9, SPRING, 540 s GPU",
    "burgers_2d": "5.8e-7, natural gradient, 75 s GPU",
    "convection": "5.4e-6, 1e6 L-BFGS iterations, GPU",
    "reaction": "2.9e-5",
    "wave_two_modes": "3.8e-4",
    "wave_pinnacle": "9.8e-2, PINNacle",
    "allen_cahn": "9.4e-7, SSBroyden",
    "kuramoto_sivashinsky": "2.7e-5, SSBroyden, 5 windows",
    "kdv": "3.4e-4",
    "klein_gordon_inverse": "4.7e-4, 470 s GPU",
    "burgers": "1.4e-2, PINNacle",
    "poisson_holes": "1.2e-2, PINNacle",
    "poisson_boltzmann": "1.4e-2, PINNacle",
    "poisson_nd": "4.7e-4, PINNacle",
    "heat_ball": "1.2e-4, PINNacle",
    "poisson_inverse": "2.5e-2, PINNacle (noise)",
    "heat_inverse": "5.3e-2, PINNacle (noise)",
}


@dataclass
class Result:
    """What one run came to.

    Attributes:
        errors: relative L2 by the seconds after which it was measured.
        unknowns: of an inverse problem, the relative errors of the numbers at the end.
        steps, loss: at the end.
        reason: why it ended; of a failure the exception.
    """

    problem: str
    optimizer: str
    seed: int
    network: tuple[int, ...]
    errors: dict[str, float]
    unknowns: dict[str, float]
    steps: int
    loss: float
    reason: str
    commit: str
    torch: str


class Marks(Callback):
    """The error when so many seconds of training are over."""

    ends = False

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self.waiting, self.errors = list(seconds), dict[str, float]()

    def on_step(self, run: Run) -> None:
        while self.waiting and run.seconds >= self.waiting[0]:
            self.errors[f"{self.waiting.pop(0):g}"] = run.evaluate()["relative_l2"]


def model_of(problem: Problem) -> nn.Module:
    """The smallest of its networks, in tanh, with what is unknown."""
    network = MLP(problem.networks[0])
    if not isinstance(problem, InverseProblem):
        return network
    return WithUnknowns(network, {name: each.guess for name, each in problem.unknowns.items()})


def trained(name: str, optimizer: str, seed: int, seconds: tuple[float, ...]) -> Result:
    """One run; a failure is a result too."""
    torch.manual_seed(seed)
    problem, marks = PROBLEMS[name](), Marks(seconds)
    model = model_of(problem).double()
    steps, loss = 0, math.nan
    try:
        history = fit(
            model,
            problem,
            OPTIMIZERS[optimizer](model.parameters()),
            seconds=seconds[-1],
            every=10**9,
            seed=seed,
            callbacks=[marks, Progress()],
        )
        steps, loss, reason = history.last["step"], history.last["loss"], history.reason
    except Exception as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
    unknowns = {
        key: abs(getattr(model, key).item() - each.truth) / abs(each.truth)
        for key, each in getattr(problem, "unknowns", {}).items()
    }
    network, commit = problem.networks[0], _commit()
    return Result(
        name, optimizer, seed, network, marks.errors, unknowns, steps, loss, reason, commit,
        torch.__version__,
    )  # fmt: skip


@app.command()
def measure(
    only: Annotated[str, typer.Option(help="problems with this in their name")] = "",
    optimizer: Annotated[str, typer.Option(help="one of them; all, if empty")] = "",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    seconds: Annotated[str, typer.Option(help="when errors are taken, increasing")] = "30,100,300",
    folder: Path = RESULTS,
) -> None:
    """Train whatever has no result yet, the seeds one after the other."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    names = [name for name in PROBLEMS if only in name and name not in LEFT_OUT]
    chosen = [optimizer] if optimizer else list(OPTIMIZERS)
    marks = tuple(float(each) for each in seconds.split(","))
    if not names or not set(chosen) <= set(OPTIMIZERS) or list(marks) != sorted(set(marks)):
        raise typer.BadParameter(
            f"no problem has {only!r} in its name, or {optimizer!r} is none of {list(OPTIMIZERS)}, "
            f"or {seconds!r} does not increase"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name in names:
            for each in chosen:
                path = folder / f"{name}-{each}-{seed}.json"
                if not path.exists():
                    result = trained(name, each, seed, marks)
                    _write(path, json.dumps(asdict(result), indent=1) + "\n")
                    typer.echo(f"{name}, {each}, seed {seed}: {result.errors}, {result.reason}")


@app.command()
def report(folder: Path = RESULTS, page: Path = PAGE) -> None:
    """Fill the page's table with what was measured, medians over the seeds."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise typer.BadParameter(f"there is no result in {folder}: measure first")
    before, _, rest = page.read_text().partition(BEGIN)
    _write(page, f"{before}{BEGIN}{table(runs)}\n{END}{rest.partition(END)[2]}")


BEGIN, END = "<!-- measured -->\n", "<!-- end -->"


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a line a problem and optimizer; below it why runs failed."""
    marks = sorted({mark for run in runs for mark in run["errors"]}, key=float)
    head = ["problem", "network", "optimizer", *(f"{mark} s" for mark in marks)]
    lines = [_line([*head, "seeds", "published"]), _line(["---"] * (len(head) + 2))]
    failed = []
    for name in dict.fromkeys([*PROBLEMS, *(run["problem"] for run in runs)]):
        for optimizer in OPTIMIZERS:
            mine = [r for r in runs if (r["problem"], r["optimizer"]) == (name, optimizer)]
            if not mine:
                continue
            errors = [_median([r["errors"].get(mark) for r in mine]) for mark in marks]
            network = "-".join(map(str, mine[0]["network"]))
            published = PUBLISHED.get(name, "")
            lines.append(_line([name, network, optimizer, *errors, str(len(mine)), published]))
            failed += [
                f"- {name}, {optimizer}, seed {r['seed']}: {r['reason']}"
                for r in mine
                if not r["reason"].endswith("seconds are spent")
            ]
    return "\n".join([*lines, *(["", "Ended early:", "", *failed] if failed else [])])


def _median(errors: list[float | None]) -> str:
    """Of the seeds; a run that did not come that far counts as the worst."""
    found = statistics.median([math.inf if e is None else e for e in errors])
    return "–" if math.isinf(found) else f"{found:.1e}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _write(path: Path, text: str) -> None:
    """The whole file or nothing."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    return found.stdout.strip()


if __name__ == "__main__":
    app()
