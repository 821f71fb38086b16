"""Every problem with the recommended default, beside Adam and L-BFGS on the same network.

    python examples/reproduce/zoo.py measure                       # all that is not done yet
    python examples/reproduce/zoo.py measure --only helmholtz --seeds 3
    python examples/reproduce/zoo.py measure --only convection --network sine --hidden 32-32
    python examples/reproduce/zoo.py measure --only kdv --network periodic --hidden 20-20 \
        --windows 25 --points interior=1350,initial=150,periodic=10
    python examples/reproduce/zoo.py report                        # fills docs/experiments/zoo.md

One run is one JSON file in results/zoo: the error (relative L2 on points held out) after 30, 100
and 300 seconds of `fit`, whose seconds are those of the training thread. By time windows (`march`)
there is one error, at the end: it stands under the first of these seconds that all windows together
kept to. A run that fails leaves its reason; a run that was interrupted is made again. Float64, one
thread, nothing tuned.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
    History,
    InverseProblem,
    ModifiedMLP,
    Normalized,
    PeriodicFeatures,
    PirateNet,
    Problem,
    Progress,
    Run,
    StopAtLoss,
    TimeSpace,
    WithUnknowns,
    fit,
    march,
    relative_l2,
    window,
)

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo"
PAGE = HERE.parents[1] / "docs" / "experiments" / "zoo.md"
SECONDS = (30.0, 100.0, 300.0)
SOLVED = 1e-12  # the loss of a window that needs no more
LEFT_OUT = {"poisson_ritz"}  # an energy, whose minimum is off the solution

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "GaussNewton": GaussNewton,
    "KFACPINN": KFACPINN,
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "L-BFGS": lambda parameters: torch.optim.LBFGS(
        parameters, max_iter=20, history_size=50, line_search_fn="strong_wolfe"
    ),
}

Sizes = tuple[int, ...]

# After the points are scaled to [-1, 1]^d, all but the first: frequencies mean the same everywhere,
# and any interval of x is two long ("periodic", of points (t, x))
NETWORKS: dict[str, Callable[[Sizes], nn.Module]] = {
    "tanh": MLP,
    "sine": lambda sizes: SIREN(sizes, omega=8.0),
    "periodic": lambda sizes: nn.Sequential(
        PeriodicFeatures((None, 2.0)), MLP((sizes[0] + 1, *sizes[1:]))
    ),
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
        windows, points: as of `Runner`.
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
    windows: int = 1
    points: str = ""


class Marks(Callback):
    """The error when so many seconds of training are over."""

    ends = False

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self.waiting, self.errors = list(seconds), dict[str, float]()

    def on_step(self, run: Run) -> None:
        while self.waiting and run.seconds >= self.waiting[0]:
            self.errors[f"{self.waiting.pop(0):g}"] = run.evaluate()["relative_l2"]

    def on_end(self, run: Run) -> None:
        """What a run that is solved ends with stands under the marks it did not need."""
        self.errors |= {f"{mark:g}": run.evaluate()["relative_l2"] for mark in self.waiting}


class Spent(Callback):
    """The seconds of all windows so far, and what the next may take of the rest.

    Args:
        seconds: of all together.
        windows: how many.
    """

    ends = False

    def __init__(self, seconds: float, windows: int) -> None:
        self.seconds, self.left, self.used = seconds, windows, 0.0

    @property
    def share(self) -> float:
        """Up to twice its part, so that a hard window may take what an easy one left."""
        return 2 * (self.seconds - self.used) / (self.left + 1)

    def on_end(self, run: Run) -> None:
        self.used += run.seconds
        self.left -= 1


class Standing(Callback):
    """Stops when so many steps together have not halved a loss that is below so much."""

    def __init__(self, steps: int = 30, below: float = math.inf) -> None:
        self.steps, self.below, self.losses = steps, below, list[float]()

    def on_step(self, run: Run) -> None:
        self.losses.append(run.loss)
        small, known = run.loss < self.below, len(self.losses) > self.steps
        if small and known and run.loss > self.losses[-self.steps - 1] / 2:
            run.stop(f"the loss stands at {run.loss:.1e}")


@dataclass
class Outcome:
    """What training came to; the attributes are those of `Result`."""

    errors: dict[str, float]
    steps: int = 0
    loss: float = math.nan
    reason: str = ""

    def note(self, history: History) -> None:
        """Steps add up over windows; loss and reason are the last one's."""
        self.steps += history.last["step"]
        self.loss, self.reason = history.last["loss"], history.reason


@dataclass(frozen=True)
class Runner:
    """What a run is made of: a problem by name, a network by kind and hidden layers.

    Attributes:
        hidden: e.g. "32-32"; those of the problem's smallest network, if empty.
        windows: of time, each with a network of its own.
        points: e.g. "interior=1000", in each window; those of the problem, where not said.
    """

    problem: str
    optimizer: str
    network: str = "tanh"
    hidden: str = ""
    seed: int = 0
    windows: int = 1
    points: str = ""

    @property
    def name(self) -> str:
        """Of the file that keeps the result."""
        inner = f"{self.network}{'-' if self.hidden else ''}{self.hidden}"
        parts = f"-{self.windows}windows" if self.windows > 1 else ""
        points = f"-{self.points}" if self.points else ""
        return f"{self.problem}-{inner}{parts}{points}-{self.optimizer}-{self.seed}"

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

    def drawn(self) -> Problem:
        """The problem, with as many points as were asked for."""
        problem = PROBLEMS[self.problem]()
        sizes = dict(part.split("=") for part in self.points.split(",") if part)
        if unknown := set(sizes) - set(problem.terms):
            raise typer.BadParameter(f"{self.problem} has no {unknown}, but {list(problem.terms)}")
        terms = {
            name: replace(term, size=int(sizes.get(name, term.size)))
            for name, term in problem.terms.items()
        }
        return replace(problem, terms=terms)

    def __call__(self, seconds: tuple[float, ...]) -> Result:
        """One run; a failure is a result too."""
        torch.manual_seed(self.seed)
        problem = self.drawn()
        train = self.whole if self.windows == 1 else self.by_windows
        model, run = train(problem, seconds)
        unknowns = {
            key: abs(getattr(model, key).item() - each.truth) / abs(each.truth)
            for key, each in getattr(problem, "unknowns", {}).items()
        }
        return Result(
            self.problem, self.optimizer, self.seed, self.network, self.sizes(problem),
            run.errors, unknowns, run.steps, run.loss, run.reason, _commit(), torch.__version__,
            self.windows, self.points,
        )  # fmt: skip

    def whole(self, problem: Problem, seconds: tuple[float, ...]) -> tuple[nn.Module, Outcome]:
        """One network for all of the domain."""
        model, marks = self.model(problem).double(), Marks(seconds)
        found = Outcome(marks.errors)
        try:
            solved = Standing(60, below=SOLVED)
            found.note(self.fitted(model, problem, seconds[-1], marks, solved))
        except Exception as error:
            found.reason = "".join(traceback.format_exception_only(error)).strip()
        return model, found

    def by_windows(self, problem: Problem, seconds: tuple[float, ...]) -> tuple[nn.Module, Outcome]:
        """One network a window, until its loss is small, stands, or has taken its time."""
        domain = problem.domain
        if not isinstance(domain, TimeSpace):
            raise typer.BadParameter(f"{self.problem} has no time: leave --windows out")
        length = (domain.end - domain.start) / self.windows
        first = window(problem, (domain.start, domain.start + length))
        found, clock = Outcome({}), Spent(seconds[-1], self.windows)

        def train(u: nn.Module, piece: Problem) -> None:
            history = self.fitted(u, piece, clock.share, clock, StopAtLoss(SOLVED), Standing())
            found.note(history)
            typer.echo(f"  {clock.used:.0f} s: {history.last['relative_l2']:.1e}")

        model = march(self.model(first).double(), problem, self.windows, train)
        x = problem.held_out(torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        within = min((mark for mark in seconds if clock.used <= mark), default=seconds[-1])
        found.errors[f"{within:g}"] = relative_l2(model, problem.solution, x)
        found.reason = f"{clock.used:.1f} of {seconds[-1]} seconds are spent"
        return model, found

    def fitted(self, u: nn.Module, problem: Problem, seconds: float, *more: Callback) -> History:
        """A run of `fit`."""
        return fit(
            u,
            problem,
            OPTIMIZERS[self.optimizer](p for p in u.parameters() if p.requires_grad),
            seconds=seconds,
            every=10**9,
            seed=self.seed,
            callbacks=[*more, Progress()],
        )


def box_of(problem: Problem) -> Box:
    """The box of a problem; of another shape the smallest around the points that it draws."""
    domain = problem.domain.box if isinstance(problem.domain, TimeSpace) else problem.domain
    if isinstance(domain, Box):
        return domain
    x = problem.held_out(torch.Generator().manual_seed(0), 2000, dtype=torch.float64)
    return Box(tuple(x.amin(0).tolist()), tuple(x.amax(0).tolist()))


@app.command()
def measure(
    only: Annotated[str, typer.Option(help="problems with this in their name")] = "",
    optimizer: Annotated[str, typer.Option(help="one of them; all, if empty")] = "",
    network: Annotated[str, typer.Option(help=f"one of {', '.join(NETWORKS)}")] = "tanh",
    hidden: Annotated[str, typer.Option(help="e.g. 32-32; the problem's smallest, if empty")] = "",
    windows: Annotated[int, typer.Option(min=1, help="of time, one network each")] = 1,
    points: Annotated[str, typer.Option(help="e.g. interior=1000; else the problem's")] = "",
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
                run = Runner(name, each, network, hidden, seed, windows, points)
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
        parts = run.get("windows", 1), run.get("points", "")
        return place[0], run["network"] != "tanh", run["network"], run["sizes"], *parts, place[1]

    for (place, *_, at), group in itertools.groupby(sorted(runs, key=kind), kind):
        mine, name, optimizer = list(group), known[place], list(OPTIMIZERS)[at]
        errors = [_median([r["errors"].get(mark) for r in mine]) for mark in marks]
        network = f"{'-'.join(map(str, mine[0]['sizes']))} {mine[0]['network']}"
        if mine[0].get("windows", 1) > 1:
            network += f", {mine[0]['windows']} windows"
        published = PUBLISHED.get(name, "")
        lines.append(_line([name, network, optimizer, *errors, str(len(mine)), published]))
        failed += [
            f"- {name}, {optimizer}, {network}, seed {r['seed']}: {r['reason']}"
            for r in mine
            if not r["reason"].endswith("seconds are spent") and "stands" not in r["reason"]
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
