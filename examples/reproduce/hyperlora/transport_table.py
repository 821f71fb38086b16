"""Convection, diffusion and reaction: one network for a family, against the published errors.

    python examples/reproduce/hyperlora/transport_table.py measure --seconds 20 --out rows.json
    python examples/reproduce/hyperlora/transport_table.py table rows.json

Five ways, each given the same CPU seconds, on the same test tasks:

- parametric: one plain PINN with the coefficients as further inputs;
- groups: the same with dimensionless numbers, beta t and log(1 + nu t), or a x, among its inputs;
- moving: likewise, with x - beta t in place of x and beta t;
- hypernetwork: a third of the time for its base, the rest for HyperLoRA of rank 4;
- adapted: that base, and as long again for low-rank adapters of each of a few tasks.

`--way groups --way moving` measures these alone.

With `--share 0.25 --share 0.5 --share 1` each begins with easy tasks: the parametric network near
the smallest coefficients, the base at smaller ones than its own, the hypernetwork near its base.

Rows are written as they are measured; what is there is not measured again.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import count
from hyperlora_ext.problems import convection, helmholtz, transport
from hyperlora_ext.schedules import LevenbergSchedule
from hyperlora_ext.task_inputs import AtTask, TaskFeatures, parametric
from hyperlora_ext.task_problem import TaskProblem
from hyperlora_ext.task_spaces import Interval, Intervals
from kfac_pinn import SIREN, PeriodicFeatures
from kfac_pinn.pinn.training.clock import now

RANGES = {"1-5": (1.0, 5.0), "1-10": (1.0, 10.0), "1-20": (1.0, 20.0)}
TERMS = {
    "convection": "c",
    "diffusion": "d",
    "reaction": "r",
    "convection-diffusion": "cd",
    "reaction-diffusion": "dr",
    "convection-diffusion-reaction": "cdr",
}
LETTERS = TERMS | {"convection of a sine": "c", "Helmholtz": ""}
# Cho et al. (2024): relative L2 errors of P2INN, one network for a family, in the order of RANGES
PUBLISHED = {
    "convection": (7.9e-3, 1.8e-2, 4.6e-2),
    "diffusion": (0.27, 0.31, 0.37),
    "reaction": (2.7e-3, 8.9e-3, 9.2e-3),
    "convection-diffusion": (8.9e-2, 0.13, 0.15),
    "reaction-diffusion": (0.19, 0.28, 0.14),
    "convection-diffusion-reaction": (5.3e-2, 9.4e-2, 8.1e-2),
}
COLUMNS = {
    "parametric": "parametric PINN",
    "groups": "of groups",
    "moving": "moving along",
    "hypernetwork": "hypernetwork",
    "adapted": "adapted",
}
MEASURED = ("parametric", "groups", "moving", "hypernetwork")  # the last with its adapters
OMEGA = 2.0  # of the sine networks; 4 is as good on convection from 1 to 5
ALL = (1.0,)  # of the tasks, from the beginning
Row = dict[str, Any]
app = typer.Typer(add_completion=False)


def families() -> Iterator[tuple[str, Family, float | None]]:
    """Name, family, published error: the six families with each range, and two more."""
    for place, (label, bounds) in enumerate(RANGES.items()):
        for name, letters in TERMS.items():
            given = [bounds if letter in letters else None for letter in "cdr"]
            yield f"{name} {label}", transport(*given), PUBLISHED[name][place]
    yield "convection of a sine 1-30", convection(), None
    yield "Helmholtz 1-3", helmholtz(), None


@dataclass(frozen=True)
class Plan:
    """How the networks of a row are made and trained.

    Attributes:
        seconds: of each way.
        shares: of the tasks, one after the other, the last as long as all others.
        omega: of the sine networks.
    """

    seconds: float
    shares: Sequence[float] = ALL
    omega: float = OMEGA

    def stages(self, part: float = 1.0) -> Iterator[tuple[float, float]]:
        """Each share and its seconds, of a part of the whole."""
        *first, last = self.shares
        for share in first:
            yield share, part * self.seconds / 2 / len(first)
        yield last, part * self.seconds / (2 if first else 1)

    def network(self, family: Family, inputs: int = 0) -> nn.Module:
        """Periodic where the solution is smooth around the ring; with so many further inputs.

        Of sines: at the same seconds three times ahead of tanh on convection, and begins with
        waves.
        """
        hidden = (24, 24, 24, 1)
        if family.name in ("reaction", "Helmholtz"):
            return SIREN((2 + inputs, *hidden), self.omega).double()
        features = PeriodicFeatures((None, 2 * math.pi, *[None] * inputs))
        return nn.Sequential(features, SIREN((3 + inputs, *hidden), self.omega)).double()


def lowest(family: Family) -> Tensor:
    """The task of the smallest coefficients, (p,)."""
    space = family.space
    parts = space.parts if isinstance(space, Intervals) else [space]
    return torch.tensor([part.lower for part in parts], dtype=torch.float64)


def middle(family: Family) -> Tensor:
    """The task in the middle of the embedded range, (p,): of four hundred, the nearest to it."""
    tasks = family.space.sample(400, torch.Generator().manual_seed(0))
    return tasks[family.space.embed(tasks).norm(dim=1).argmin()]


def schedule(family: Family, interior: int, start: float = 1.0) -> LevenbergSchedule:
    """Levenberg-Marquardt on so many points, the other condition having a fifth of them."""
    sizes = {n: interior if n == "interior" else interior // 5 for n in family.conditions}
    return LevenbergSchedule(sizes, {n: 2 * m for n, m in sizes.items()}, start=start)


def measured(family: Family, predict: Callable[[Tensor], Any], tasks: Tensor) -> Row:
    """Relative L2 errors over the tasks."""
    relative = family.errors(predict, tasks).relative
    numbers = {"mean": relative.mean(), "median": relative.median(), "worst": relative.max()}
    return {name: float(value) for name, value in numbers.items()} | {"tasks": len(tasks)}


@dataclass(frozen=True)
class Groups:
    """Inputs for networks of all tasks of a transport family: numbers without a unit.

    By t -> t / s and c -> s c, a solution depends on x and on c t, for each coefficient c. Time and
    coefficients stay among the inputs: they are what says how early it is.

    Attributes:
        letters: c, d, r: the terms that are there.
        parts: their intervals.
        moving: with x - beta t in place of x and beta t, by Galilei's change of frame.
    """

    letters: str
    parts: tuple[Interval, ...]
    moving: bool = False

    def __call__(self, x: Tensor, task: Tensor) -> Tensor:
        """(N, q) of order one."""
        time, place = x[:, :1], x[:, 1:]
        found = [2 * time - 1]
        for i, (letter, part) in enumerate(zip(self.letters, self.parts, strict=True)):
            number = task[:, i : i + 1]
            found.append(part.embed(number))
            if letter != "c":
                found.append(torch.log1p(number * time) * (2 / math.log1p(part.upper)) - 1)
            elif self.moving:
                place = place - number * time
            else:
                found.append(number * time * (2 / part.upper) - 1)
        # The solution of reaction alone is no smooth function around the ring
        around = [torch.cos(place), torch.sin(place)]
        return torch.cat(found + ([place / math.pi - 1] if self.letters == "r" else around), dim=1)


def in_waves(x: Tensor, task: Tensor) -> Tensor:
    """Of Helmholtz' equation: lengths in units of the source's, which is 1 / a, and a."""
    return torch.cat([task * x / 3, task - 2], dim=1)


def network_of_groups(family: Family, plan: Plan, moving: bool) -> nn.Module:
    """As large as the plain one."""
    space, letters = family.space, LETTERS[family.name]
    parts = space.parts if isinstance(space, Intervals) else (space,)
    features = TaskFeatures(space, Groups(letters, parts, moving) if letters else in_waves)
    inputs = features(torch.zeros(1, 2 + space.inputs)).shape[1]
    return nn.Sequential(features, SIREN((inputs, 24, 24, 24, 1), plan.omega)).double()


def trained(family: Family, plan: Plan, way: str) -> Row:
    """One PINN of points and coefficients, or of groups of them."""
    if way == "parametric":
        u = plan.network(family, family.space.inputs)
    else:
        u = network_of_groups(family, plan, moving=way == "moving")
    start = now()
    for share, seconds in plan.stages():
        problem = parametric(family.near(lowest(family), share))
        schedule(family, 1000, 0.25)(u, problem, seconds=seconds)
    spent = now() - start

    def predict(task: Tensor) -> nn.Module:
        return AtTask(u, family.space, task)

    found = measured(family, predict, family.splits().test)
    return {way: found, f"{way} seconds": spent, f"{way} parameters": count(u)}


def low_rank(family: Family, plan: Plan, some: int) -> Row:
    """A base, a hypernetwork on it, and adapters of a few tasks."""
    u, start, train = plan.network(family), now(), schedule(family, 500)
    low, own = lowest(family), middle(family)
    for share, seconds in plan.stages(1 / 3):
        train(u, family.problem(low + share * (own - low)), seconds=seconds)
    between = now()
    hyper = HyperLoRA(u, family.space, rank=4, hidden=(32, 32))
    sizes = {name: 40 if name == "interior" else 10 for name in family.conditions}
    for share, seconds in plan.stages(2 / 3):
        tasks = TaskProblem(family.near(own, share), 20, sizes=sizes)
        LevenbergSchedule()(hyper, tasks, seconds=seconds)
    spent, test = now() - start, family.splits().test
    row: Row = {"hypernetwork": measured(family, hyper.pinn, test)}

    def adapted(task: Tensor) -> nn.Module:
        v = adapt(u, rank=4, aimed=family.problem(task))
        train(v, family.problem(task), seconds=plan.seconds / 3)
        return v

    row["adapted"] = measured(family, adapted, test[:some])
    return row | {"hypernetwork seconds": spent, "base seconds": between - start}


def ways(family: Family, plan: Plan, some: int) -> dict[str, Callable[[], Row]]:
    """What there is to measure on a family, by name; the last one adapts its base, too."""
    alone = ["parametric", "groups"] + ["moving"] * ("c" in LETTERS[family.name])
    found: dict[str, Callable[[], Row]] = {w: partial(trained, family, plan, w) for w in alone}
    return found | {"hypernetwork": partial(low_rank, family, plan, some)}


def commit() -> str:
    """Of the code that measured."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip()


def markdown(rows: dict[str, Row]) -> Iterator[str]:
    """Relative L2 errors, a family a line: the published one; mean and worst of each way."""
    there = [way for way in COLUMNS if any(way in row for row in rows.values())]
    yield f"| family, coefficients | P²INN | {' | '.join(COLUMNS[way] for way in there)} |"
    yield "|---|---|" + "---|" * len(there)
    for name, row in rows.items():
        published = "" if row["published"] is None else f"{row['published']:.1e}"
        yield f"| {name} | {published} | {' | '.join(shown(row.get(way)) for way in there)} |"


def shown(found: Row | None) -> str:
    """Mean and worst; of one task, its error."""
    if found is None:
        return ""
    numbers = [found["mean"], found["worst"]] if found["tasks"] > 1 else [found["mean"]]
    return ", ".join(f"{number:.1e}" for number in numbers)


@app.command()
def table(files: list[Path]) -> None:
    """Print what is in these files as Markdown."""
    for file in files:
        typer.echo("\n".join(markdown(json.loads(file.read_text()))))


@app.command()
def measure(
    seconds: float = 20.0,
    seed: int = 0,
    some: Annotated[int, typer.Option(help="tasks that are adapted, one by one")] = 3,
    only: Annotated[str, typer.Option(help="rows whose name holds this")] = "",
    share: Annotated[list[float] | None, typer.Option(help="of the tasks; one by one")] = None,
    omega: Annotated[float, typer.Option(help="frequency of the sine networks")] = OMEGA,
    way: Annotated[list[str] | None, typer.Option(help="these alone, as above")] = None,
    out: Path = Path("transport.json"),
) -> None:
    """Measure what is not there yet."""
    plan = Plan(seconds, share or ALL, omega)
    rows: dict[str, Row] = json.loads(out.read_text()) if out.exists() else {}
    if unknown := set(way or ()) - set(MEASURED):
        raise typer.BadParameter(f"--way is one of {', '.join(MEASURED)}, not {', '.join(unknown)}")
    given = asdict(plan) | {"shares": list(plan.shares), "seed": seed}
    with typer.progressbar([row for row in families() if only in row[0]], label="families") as bar:
        for name, family, published in bar:
            row = rows.setdefault(f"{name}, seed {seed}", given | {"published": published})
            if any(row.get(k) != value for k, value in given.items()):
                raise typer.BadParameter(f"{out} has {name} with other settings: take another file")
            for label, make in ways(family, plan, some).items():
                if label in row or (way and label not in way):
                    continue
                torch.manual_seed(seed)
                row |= make() | {f"{label} commit": commit()}
                out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    app()
