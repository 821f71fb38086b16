"""Every problem with the recommended default, beside Adam and L-BFGS on the same network.

    python examples/reproduce/zoo.py measure                       # all that is not done yet
    python examples/reproduce/zoo.py measure --only helmholtz --seeds 3
    python examples/reproduce/zoo.py measure --only convection --network sine --hidden 32-32
    python examples/reproduce/zoo.py measure --only kdv --network periodic --hidden 20-20 \
        --windows 25 --points interior=1350,initial=150,periodic=10
    python examples/reproduce/zoo.py rates                         # which rate Adam should have
    python examples/reproduce/zoo.py report                        # fills docs/experiments/zoo.md
    python examples/reproduce/zoo.py counts                        # solved by whom, and when

One run is one JSON file in results/zoo: the error (relative L2 on points held out) after 30, 100
and 300 seconds of `fit`, whose seconds are those of the training thread. By time windows (`march`)
there is one error, at the end: it stands under the first of these seconds that all windows together
kept to. A run that fails leaves its reason; a run that was interrupted is made again. Float64, one
thread, nothing tuned but the rate of Adam, once for all problems (`rates`).
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from zoo_runs import CONTRADICTIONS, NETWORKS, OPTIMIZERS, Runner

from kfac_pinn import PROBLEMS

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "zoo"
PAGE = HERE.parents[1] / "docs" / "experiments" / "zoo.md"
TUNED_ON = (
    "poisson_2d", "heat_4d", "helmholtz", "reaction", "klein_gordon", "burgers", "kovasznay"
)  # fmt: skip
RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
LEFT_OUT = {"poisson_ritz"}  # an energy, whose minimum is off the solution

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


@app.command()
def measure(
    only: Annotated[str, typer.Option(help="a problem, or a part of names")] = "",
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
    named = [only] if only in PROBLEMS else [name for name in PROBLEMS if only in name]
    names = [name for name in named if name not in LEFT_OUT]
    chosen = [optimizer] if optimizer else list(OPTIMIZERS)
    marks = tuple(float(each) for each in seconds.split(","))
    known = set(chosen) <= set(OPTIMIZERS) and (
        network in NETWORKS or (network == "layers" and set(names) <= set(CONTRADICTIONS))
    )
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
def rates(seconds: float = 30.0, file: Path = HERE / "results" / "adam_rates.json") -> None:
    """Adam by rate on problems of several kinds: what `OPTIMIZERS` takes is the best in the mean.

    The mean is that of the logarithms of the errors.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    stored = json.loads(file.read_text()) if file.exists() else {}
    for name, rate in itertools.product(TUNED_ON, RATES):
        found = stored.setdefault(name, {})
        if f"{rate:g}" not in found:
            OPTIMIZERS[f"Adam {rate:g}"] = partial(torch.optim.Adam, lr=rate)
            errors = Runner(name, f"Adam {rate:g}")((seconds,)).errors
            found[f"{rate:g}"] = errors[f"{seconds:g}"]
            _write(file, json.dumps(stored, indent=1) + "\n")
    for rate in RATES:
        errors = [each[f"{rate:g}"] for each in stored.values()]
        typer.echo(f"{rate:g}: {statistics.geometric_mean(errors):.2e}")


@app.command()
def report(folder: Path = RESULTS, page: Path = PAGE) -> None:
    """Fill the page's table with what was measured, medians over the seeds."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise typer.BadParameter(f"there is no result in {folder}: measure first")
    before, _, rest = page.read_text().partition(BEGIN)
    _write(page, f"{before}{BEGIN}{table(runs)}\n{END}{rest.partition(END)[2]}")


@app.command()
def counts(below: float = 1e-3, folder: Path = RESULTS) -> None:
    """Of the problems' own tanh networks: how many each optimizer brings below an error, by when.

    And on how many an optimizer is ahead of the default at that time.
    """
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    plain = [run for run in runs if run["network"] == "tanh" and run.get("windows", 1) == 1]
    for mark in sorted({mark for run in plain for mark in run["errors"]}, key=float):
        found: dict[str, dict[str, list[float]]] = {name: {} for name in OPTIMIZERS}
        for run in plain:
            if mark in run["errors"]:
                known = found[run["optimizer"]].setdefault(run["problem"], [])
                known.append(run["errors"][mark])
        errors = {
            name: {p: statistics.median(e) for p, e in of.items()} for name, of in found.items()
        }
        default = errors["KFACPINN"]
        for name, of in errors.items():
            solved = sum(error < below for error in of.values())
            ahead = sum(error < default.get(problem, 0.0) for problem, error in of.items())
            typer.echo(f"{mark} s, {name}: {solved} of {len(of)} below {below:g}, {ahead} ahead")


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


if __name__ == "__main__":
    app()
