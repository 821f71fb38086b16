"""What the way back from the high target is worth: each run with it, and without it from there on.

    python examples/reproduce/benchmark_stages.py measure               # all that is not done yet
    python examples/reproduce/benchmark_stages.py measure --only wave_two_modes
    python examples/reproduce/benchmark_stages.py report                # a table, in Markdown

Up to the first return both runs are the same one, so they are one: it is copied there. A run whose
second stage is final has no other; it ends there. Small networks and few points, float64, one
thread. One run is one JSON file in results/stages.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Generator, Tensor, nn
from tqdm import tqdm

from kfac_pinn import (
    MLP,
    PROBLEMS,
    GaussNewton,
    InverseProblem,
    Problem,
    WithUnknowns,
    relative_l2,
)
from kfac_pinn.pinn.training.clock import now

app = typer.Typer(help=__doc__, no_args_is_help=True)
RESULTS = Path(__file__).parent / "results" / "stages"
EVERY = 10  # steps between two marks
FITTED = 1e-26  # of the loss: rounding


@dataclass(frozen=True)
class Case:
    """A problem, the hidden layers, the share of its points, and how many steps."""

    problem: Callable[[], Problem]
    hidden: tuple[int, ...]
    share: float
    steps: int


CASES = {
    "wave_two_modes": Case(PROBLEMS["wave_two_modes"], (24, 24), 0.5, 200),
    "oscillator_inverse": Case(PROBLEMS["oscillator_inverse"], (16, 16), 1.0, 300),
    "lorenz_inverse": Case(PROBLEMS["lorenz_inverse"], (12, 12), 0.5, 300),
    "forced_beam": Case(PROBLEMS["forced_beam"], (12, 12), 0.15, 250),
    "biharmonic_plate": Case(PROBLEMS["biharmonic_plate"], (12, 12), 0.15, 250),
    "convection_40": Case(lambda: PROBLEMS["convection"](40.0), (20, 20), 0.3, 300),
    "burgers_01": Case(lambda: PROBLEMS["burgers"](0.01), (12, 12, 12), 0.3, 200),
    "reaction": Case(PROBLEMS["reaction"], (16, 16), 0.3, 200),
    "klein_gordon": Case(PROBLEMS["klein_gordon"], (16, 16), 0.3, 200),
    "poisson_2d": Case(PROBLEMS["poisson_2d"], (12, 12), 0.3, 200),
}


@dataclass
class Result:
    """Marks of a run with the way back, and of the one without from the first return on."""

    case: str
    hidden: tuple[int, ...]
    points: dict[str, int]
    changes: list[int] = field(default_factory=list)
    with_return: list[dict[str, float]] = field(default_factory=list)
    without: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Training:
    """One run: a model, its optimizer, its closure and where its error is taken."""

    model: nn.Module
    optimizer: GaussNewton
    residuals: Callable[[], Any]
    error: Callable[[nn.Module], float]
    seconds: float = 0.0

    def step(self) -> None:
        """One step, its seconds counted."""
        start = now()
        self.optimizer.step(self.residuals)
        self.seconds += now() - start

    def mark(self) -> dict[str, float]:
        """What is recorded."""
        loss, stage = float(self.optimizer.stats["loss"]), self.optimizer.memory.stage
        return {
            "step": self.optimizer.steps,
            "seconds": round(self.seconds, 2),
            "loss": loss,
            "error": self.error(self.model),
            "lowest": stage.lowest,
            "second": float(stage.second),
        }

    def without_return(self) -> None:
        """From now on the high target holds, if it does."""
        memory = self.optimizer.memory
        self.optimizer.memory = replace(memory, stage=replace(memory.stage, due=-math.inf))

    @property
    def over(self) -> bool:
        """Whether the rest is the same with the way back and without."""
        stage = self.optimizer.memory.stage
        return stage.second and stage.due == -math.inf


def training(case: Case, seed: int) -> tuple[Training, dict[str, int]]:
    """A run at its start, and how many points it has."""
    problem = case.problem()
    sizes = {name: max(1, int(case.share * term.size)) for name, term in problem.terms.items()}
    batch = problem.sample(Generator().manual_seed(seed), sizes, torch.float64)
    held_out = problem.held_out(Generator().manual_seed(10_000), 4000, torch.float64)
    torch.manual_seed(seed)
    first, *_, last = problem.networks[0]
    model: nn.Module = MLP((first, *case.hidden, last))
    if isinstance(problem, InverseProblem):
        model = WithUnknowns(model, {name: each.guess for name, each in problem.unknowns.items()})
    model = model.double()

    def error(model: nn.Module) -> float:
        solution: Callable[[Tensor], Tensor] | None = problem.solution
        return math.nan if solution is None else relative_l2(model, solution, held_out)

    optimizer = GaussNewton(model.parameters())
    return Training(model, optimizer, batch.residuals(model), error), sizes


def measured(name: str, seed: int) -> Result:
    """Both runs of a case."""
    case = CASES[name]
    run, sizes = training(case, seed)
    result, fork = Result(name, case.hidden, sizes), None
    while run.optimizer.steps < case.steps and not run.over:
        saved = state(run) if run.optimizer.memory.stage.second and fork is None else None
        before = run.optimizer.memory.stage.second
        run.step()
        if run.optimizer.memory.stage.second != before:
            result.changes.append(run.optimizer.steps)
            fork = fork or (saved if before else None)
        if run.optimizer.steps % EVERY == 0 or run.over:
            result.with_return.append(run.mark())
        if run.optimizer.stats["loss"] < FITTED:
            break
    if fork is not None:
        run, _ = training(case, seed)
        run.model.load_state_dict(fork[0])
        run.optimizer.load_state_dict(fork[1])
        run.seconds = fork[2]
        while run.optimizer.steps < case.steps and run.optimizer.stats.get("loss", 1.0) > FITTED:
            run.without_return()
            run.step()
            if run.optimizer.steps % EVERY == 0:
                result.without.append(run.mark())
    return result


def state(run: Training) -> tuple[Any, Any, float]:
    """All that a run depends on."""
    both = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
    return (*both, run.seconds)


@app.command()
def measure(
    only: Annotated[str, typer.Option(help="cases with this in their name")] = "",
    seed: int = 0,
    folder: Path = RESULTS,
) -> None:
    """Whatever has no result yet."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(CASES, unit="case"):
        path = folder / f"{name}-{seed}.json"
        if only in name and not path.exists():
            result = measured(name, seed)
            path.write_text(json.dumps(asdict(result), indent=1) + "\n")
            typer.echo(f"{name}: {result.with_return[-1]}; without {result.without[-1:]}")


@app.command()
def report(folder: Path = RESULTS) -> None:
    """The last marks of all runs."""
    typer.echo("| problem | hidden layers | changes at steps | steps | with | without |")
    typer.echo("|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        changes = ", ".join(map(str, result["changes"])) or "none"
        ends = [_last(result[key]) for key in ("with_return", "without")]
        hidden = "-".join(map(str, result["hidden"]))
        steps = f"{result['with_return'][-1]['step']:.0f}"
        typer.echo(f"| {result['case']} | {hidden} | {changes} | {steps} | {' | '.join(ends)} |")


def _last(marks: list[dict[str, float]]) -> str:
    """Loss and error at the end."""
    return f"{marks[-1]['loss']:.1e}, {marks[-1]['error']:.1e}" if marks else "the same"


if __name__ == "__main__":
    app()
