"""Every problem with the recommended default, beside Adam and L-BFGS on the same network.

    python examples/reproduce/zoo.py measure                       # all that is not done yet
    python examples/reproduce/zoo.py measure --only helmholtz --seeds 3
    python examples/reproduce/zoo.py measure --only convection --network sine --hidden 32-32
    python examples/reproduce/zoo.py report                        # fills docs/experiments/zoo.md

One run is one JSON file in results/zoo: the error (relative L2 on points held out) after 30, 100
and 300 seconds of `fit`, whose seconds are those of the training thread. A run that fails leaves
its reason; a run that was interrupted is made again. Float64, one thread, nothing tuned.
"""

from __future__ import annotations

import itertools
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
    SIREN,
    Box,
    Callback,
    FourierFeatures,
    GaussNewton,
    InverseProblem,
    ModifiedMLP,
    Normalized,
    PirateNet,
    Problem,
    Progress,
    Run,
    SelfScaledBroyden,
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
    "SelfScaledBroyden": SelfScaledBroyden,
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "L-BFGS": lambda parameters: torch.optim.LBFGS(
        parameters, max_iter=20, history_size=50, line_search_fn="strong_wolfe"
    ),
}

Sizes = tuple[int, ...]

# After the points are scaled to [-1, 1]^d, all but the first: frequencies mean the same everywhere
NETWORKS: dict[str, Callable[[Sizes], nn.Module]] = {
    "tanh": MLP,
    "sine": lambda sizes: SIREN(sizes, omega=8.0),
    "Fourier": lambda sizes: nn.Sequential(
        FourierFeatures(sizes[0], sizes[1], scale=2.0), MLP(sizes[1:])
    ),
    "modified": ModifiedMLP,
    "Pirate": lambda sizes: PirateNet(
        (sizes[0], sizes[1], sizes[-1]), blocks=max(1, len(sizes) - 3), scale=2.0
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
        network, sizes: which of `NETWORKS`, and its layers.
        errors: relative L2 by the seconds after which it was measured.
        unknowns: of an inverse problem, the relative errors of the numbers at the end.
        steps, loss: at the end.
        reason: why it ended; of a failure the exception.
    """

    problem: str
    optimizer: str
    seed: int
    network: str
    sizes: Sizes
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


@dataclass(frozen=True)
class Runner:
    """What a run is made of: a problem by name, a network by kind and hidden layers.

    Attributes:
        hidden: e.g. "32-32"; those of the problem's smallest network, if empty.
    """

    problem: str
    optimizer: str
    network: str = "tanh"
    hidden: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the file that keeps the result."""
        inner = f"{self.network}{'-' if self.hidden else ''}{self.hidden}"
        return f"{self.problem}-{inner}-{self.optimizer}-{self.seed}"

    def sizes(self, problem: Problem) -> Sizes:
        """Of the layers."""
        smallest = problem.networks[0]
        if not self.hidden:
            return smallest
        return (smallest[0], *map(int, self.hidden.split("-")), smallest[-1])

    def model(self, problem: Problem) -> nn.Module:
        """The network, with what is unknown."""
        network = NETWORKS[self.network](self.sizes(problem))
        if self.network != "tanh":
            network = nn.Sequential(Normalized(box_of(problem)), network)
        if not isinstance(problem, InverseProblem):
            return network
        guesses = {name: each.guess for name, each in problem.unknowns.items()}
        return WithUnknowns(network, guesses)

    def __call__(self, seconds: tuple[float, ...]) -> Result:
        """One run; a failure is a result too."""
        torch.manual_seed(self.seed)
        problem, marks = PROBLEMS[self.problem](), Marks(seconds)
        model = self.model(problem).double()
        steps, loss = 0, math.nan
        try:
            history = fit(
                model,
                problem,
                OPTIMIZERS[self.optimizer](model.parameters()),
                seconds=seconds[-1],
                every=10**9,
                seed=self.seed,
                callbacks=[marks, Progress()],
            )
            steps, loss, reason = history.last["step"], history.last["loss"], history.reason
        except Exception as error:
            reason = "".join(traceback.format_exception_only(error)).strip()
        unknowns = {
            key: abs(getattr(model, key).item() - each.truth) / abs(each.truth)
            for key, each in getattr(problem, "unknowns", {}).items()
        }
        return Result(
            self.problem, self.optimizer, self.seed, self.network, self.sizes(problem),
            marks.errors, unknowns, steps, loss, reason, _commit(), torch.__version__,
        )  # fmt: skip


def box_of(problem: Problem) -> Box:
    """The smallest box around the points that a problem draws."""
    x = problem.held_out(torch.Generator().manual_seed(0), 2000, dtype=torch.float64)
    return Box(tuple(x.amin(0).tolist()), tuple(x.amax(0).tolist()))


@app.command()
def measure(
    only: Annotated[str, typer.Option(help="problems with this in their name")] = "",
    optimizer: Annotated[str, typer.Option(help="one of them; all, if empty")] = "",
    network: Annotated[str, typer.Option(help="tanh, sine, Fourier, modified or Pirate")] = "tanh",
    hidden: Annotated[str, typer.Option(help="e.g. 32-32; the problem's smallest, if empty")] = "",
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
    known = set(chosen) <= set(OPTIMIZERS) and network in NETWORKS
    if not names or not known or list(marks) != sorted(set(marks)):
        raise typer.BadParameter(
            f"no problem has {only!r} in its name, or {optimizer!r} is none of {list(OPTIMIZERS)}, "
            f"or {network!r} none of {list(NETWORKS)}, or {seconds!r} does not increase"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name in names:
            for each in chosen:
                run = Runner(name, each, network, hidden, seed)
                path = folder / f"{run.name}.json"
                if not path.exists():
                    result = run(marks)
                    _write(path, json.dumps(asdict(result), indent=1) + "\n")
                    typer.echo(f"{run.name}: {result.errors}, {result.reason}")


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
    known = list(dict.fromkeys([*PROBLEMS, *(run["problem"] for run in runs)]))

    def kind(run: dict[str, Any]) -> tuple[Any, ...]:
        place = known.index(run["problem"]), list(OPTIMIZERS).index(run["optimizer"])
        return place[0], run["network"] != "tanh", run["network"], run["sizes"], place[1]

    for (place, *_, at), group in itertools.groupby(sorted(runs, key=kind), kind):
        mine, name, optimizer = list(group), known[place], list(OPTIMIZERS)[at]
        errors = [_median([r["errors"].get(mark) for r in mine]) for mark in marks]
        network = f"{'-'.join(map(str, mine[0]['sizes']))} {mine[0]['network']}"
        published = PUBLISHED.get(name, "")
        lines.append(_line([name, network, optimizer, *errors, str(len(mine)), published]))
        failed += [
            f"- {name}, {optimizer}, {network}, seed {r['seed']}: {r['reason']}"
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
