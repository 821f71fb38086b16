"""One run of the zoo: a problem, a network, an optimizer, whole or by time windows.

`zoo.py` measures and reports them.
"""

from __future__ import annotations

import math
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    CornerLayers,
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
    early,
    fit,
    march,
    relative_l2,
    window,
)

__all__ = ["NETWORKS", "OPTIMIZERS", "Result", "Runner", "box_of"]

HERE = Path(__file__).parent
SOLVED = 1e-12  # the loss of a problem that is solved when it stands
PASSED = 1e-14  # the loss of a window that needs no more

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "GaussNewton": GaussNewton,
    "KFACPINN": KFACPINN,
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=3e-2),
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
    "harmonics": lambda sizes: nn.Sequential(
        PeriodicFeatures((None, 2.0), harmonics=4), MLP((sizes[0] + 7, *sizes[1:]))
    ),
    "Fourier": lambda sizes: nn.Sequential(
        FourierFeatures(sizes[0], sizes[1], scale=2.0), MLP(sizes[1:])
    ),
    "modified": ModifiedMLP,
    "Pirate": lambda sizes: PirateNet(
        (sizes[0], sizes[1], sizes[-1]), blocks=max(1, len(sizes) - 3), scale=2.0
    ),
}


class Even(nn.Module):
    """(t, x) -> (t, x^2, the layers of both ends added), for what is even in x.

    Args:
        layers: of the lower and the upper end of x in [-1, 1].
    """

    def __init__(self, layers: CornerLayers) -> None:
        super().__init__()
        self.layers, self.width = layers, 4

    def forward(self, x: Any) -> Any:
        """Features (N, 4) at the points (N, 2), or at a jet of them."""
        found = self.layers(x)
        return torch.cat([found[:, :1], found[:, 1:2] ** 2, found[:, 2:4] + found[:, 4:6]], dim=1)


# Problems whose start contradicts a wall: features of (t, x), in [0, 1] but for t ("layers")
CONTRADICTIONS: dict[str, Callable[[TimeSpace], Any]] = {
    "robin_heat": lambda domain: CornerLayers(domain, 1.0, [(1, 1)]),
    "allen_cahn": lambda domain: Even(CornerLayers(domain, 1e-4, [(1, 0), (1, 1)])),
}


@dataclass
class Result:
    """What one run came to.

    Attributes:
        network, sizes: which of `NETWORKS`, or "layers", and its layers.
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
        layers = self.layers(problem)
        network = self.scaled(problem, layers)
        if layers is not None:
            network = nn.Sequential(layers, network)
        if not isinstance(problem, InverseProblem):
            return network
        guesses = {name: each.guess for name, each in problem.unknowns.items()}
        return WithUnknowns(network, guesses)

    def scaled(self, problem: Problem, layers: Any = None) -> nn.Module:
        """A network of the points in [-1, 1]^d; of the points as they are, if it is plain.

        Of the features that layers are, if there are any, an MLP.
        """
        sizes = self.sizes(problem)
        if layers is not None:
            rest, domain = layers.width - 1, self.in_time(problem)
            seen = Box((domain.start, *[0.0] * rest), (domain.end, *[1.0] * rest))
            return nn.Sequential(Normalized(seen), MLP((layers.width, *sizes[1:])))
        network = NETWORKS[self.network](sizes)
        plain = self.network == "tanh"
        return network if plain else nn.Sequential(Normalized(box_of(problem)), network)

    def layers(self, problem: Problem) -> Any:
        """Features of a start that contradicts a wall, for "layers"; else None."""
        layered = self.network == "layers"
        return CONTRADICTIONS[self.problem](self.in_time(problem)) if layered else None

    def in_time(self, problem: Problem) -> TimeSpace:
        """The domain of a problem that has time."""
        if not isinstance(problem.domain, TimeSpace):
            raise typer.BadParameter(f"{self.problem} has no time: leave --windows out")
        return problem.domain

    def drawn(self) -> Problem:
        """The problem, with as many points as were asked for; early ones for "layers"."""
        problem = PROBLEMS[self.problem]()
        sizes = dict(part.split("=") for part in self.points.split(",") if part)
        if unknown := set(sizes) - set(problem.terms):
            raise typer.BadParameter(f"{self.problem} has no {unknown}, but {list(problem.terms)}")
        terms = {
            name: replace(term, size=int(sizes.get(name, term.size)))
            for name, term in problem.terms.items()
        }
        if self.network == "layers":
            domain = self.in_time(problem)
            terms = {n: replace(t, points=early(t.points, domain)) for n, t in terms.items()}
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
            run.errors, unknowns, run.steps, run.loss, run.reason, commit_here(), torch.__version__,
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
        domain = self.in_time(problem)
        length = (domain.end - domain.start) / self.windows
        first = window(problem, (domain.start, domain.start + length))
        found, clock = Outcome({}), Spent(seconds[-1], self.windows)

        def train(u: nn.Module, piece: Problem) -> None:
            history = self.fitted(u, piece, clock.share, clock, StopAtLoss(PASSED), Standing())
            found.note(history)
            typer.echo(f"  {clock.used:.0f} s: {history.last['relative_l2']:.1e}")

        layers = self.layers(problem)
        network = self.scaled(first, layers).double()
        model = march(network, problem, self.windows, train, features=layers)
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


def commit_here() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    return found.stdout.strip()
