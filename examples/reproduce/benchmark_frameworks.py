"""Error and CPU seconds of other people's examples before and after their one line was changed.

    python examples/reproduce/benchmark_frameworks.py measure            # all of them
    python examples/reproduce/benchmark_frameworks.py measure --only pina
    python examples/reproduce/benchmark_frameworks.py report             # the tables of the pages

Before and after run one after the other in one process, on one thread. Seconds are CPU seconds of
the training alone; errors are taken on points that were not trained on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from kfac_pinn import KFACPINN, GaussNewton
from kfac_pinn.pinn.training.clock import now

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "frameworks"
PAGES = ROOT / "docs" / "frameworks"
sys.path.insert(0, str(HERE.parent / "frameworks"))

Adam, LBFGS = torch.optim.Adam, "L-BFGS"


@dataclass(frozen=True)
class Row:
    """One line of a table: what was trained, how, and what came of it."""

    example: str
    optimizer: str
    steps: int
    seconds: float
    error: float


@dataclass(frozen=True)
class Run:
    """So many steps of an optimizer, written as its user writes it."""

    kind: Any
    steps: int
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """As in the table."""
        name = self.kind if isinstance(self.kind, str) else self.kind.__name__
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{name} ({settings})" if settings else name


def adam(steps: int, lr: float = 1e-3) -> Run:
    """The line as it was."""
    return Run(Adam, steps, {"lr": lr})


def deepxde(name: str, dtype: str, runs: list[list[Run]]) -> Iterator[Row]:
    """Each list of runs trains one model, one run after the other, a row after each."""
    demos = importlib.import_module("deepxde_demos")
    demos.dde.config.set_default_float(dtype)
    for phases in runs:
        demos.dde.config.set_random_seed(0)
        demo, seconds, steps, labels = demos.DEMOS[name](), 0.0, 0, []
        for run in phases:
            labels.append(run.label)
            begin = now()
            train_deepxde(demo, run)
            seconds += now() - begin
            steps = demo.model.train_state.iteration
            label = " + ".join(dict.fromkeys(labels))
            yield Row(f"{name}, {dtype}", label, steps, seconds, demo.error())


def train_deepxde(demo: Any, run: Run) -> None:
    """Compile and train; L-BFGS has a number of steps of its own."""
    model, unknowns = demo.model, demo.unknowns or None
    if run.kind == LBFGS:
        model.compile(LBFGS, external_trainable_variables=unknowns, verbose=0)
        model.train(verbose=0)
    elif run.kind is Adam:
        model.compile("adam", external_trainable_variables=unknowns, **run.settings, verbose=0)
        model.train(iterations=run.steps, display_every=run.steps, verbose=0)
    else:
        if model.opt is None or not isinstance(model.opt, run.kind):
            model.compile(run.kind(demo.trained, **run.settings), verbose=0)
        model.train(iterations=run.steps, display_every=run.steps, verbose=0)


def script(module: str, function: str, example: str, runs: list[Run]) -> Iterator[Row]:
    """Each run trains anew."""
    solve: Callable[..., float] = getattr(importlib.import_module(module), function)
    for run in runs:
        begin = now()
        error = solve(run.kind, run.steps, **run.settings)
        yield Row(example, run.label, run.steps, now() - begin, error)


def deepxde_demos() -> Iterator[Row]:
    """Burgers with the training of DeepXDE's repository, the others with Adam for longer."""
    runs = {
        "burgers": [
            [Run(KFACPINN, 50, {})] * 4,
            [Run(GaussNewton, 50, {})] * 4,
            [adam(15000), Run(LBFGS, 0, {})],
        ],
        "beam": [[adam(1000)], [Run(GaussNewton, 50, {})]],
        "diffusivity": [[adam(3000)], [Run(GaussNewton, 50, {})], [Run(KFACPINN, 50, {})]],
        "hard_constraint": [[adam(3000)], [Run(GaussNewton, 50, {})], [Run(KFACPINN, 50, {})]],
        "kovasznay": [[adam(1000)], [Run(KFACPINN, 50, {})]],
    }
    for name, phases in runs.items():
        yield from deepxde(name, "float32", phases)


def pina() -> Iterator[Row]:
    runs = [adam(1000), Run(KFACPINN, 50, {}), Run(GaussNewton, 50, {})]
    yield from script("pina_poisson", "solve", "Poisson", runs)
    yield from script("pina_poisson", "identify", "unknown source, error of mu", runs)


def lightning() -> Iterator[Row]:
    runs = [adam(2000), Run(KFACPINN, 50, {}), Run(GaussNewton, 50, {})]
    yield from script("lightning_heat", "solve", "heat", runs)


def neurodiffeq() -> Iterator[Row]:
    runs = [adam(500), Run(KFACPINN, 50, {}), Run(GaussNewton, 50, {})]
    yield from script("neurodiffeq_laplace", "solve", "Laplace", runs)


def torchphysics() -> Iterator[Row]:
    runs = [adam(2000), Run(KFACPINN, 50, {"lr": 1.0}), Run(GaussNewton, 50, {"lr": 1.0})]
    yield from script("torchphysics_poisson", "solve", "Poisson", runs)


def neuromancer() -> Iterator[Row]:
    runs = [adam(1000), Run(KFACPINN, 60, {}), Run(GaussNewton, 60, {})]
    yield from script("neuromancer_diffusion", "solve", "diffusion", runs)


FRAMEWORKS: dict[str, tuple[str, Callable[[], Iterator[Row]]]] = {
    "deepxde": ("deepxde", deepxde_demos),
    "pina": ("pina-mathlab", pina),
    "lightning": ("lightning", lightning),
    "neurodiffeq": ("neurodiffeq", neurodiffeq),
    "torchphysics": ("torchphysics", torchphysics),
    "neuromancer": ("neuromancer", neuromancer),
}


@app.command()
def measure(only: str = "") -> None:
    """Train before and after, and write results/frameworks/NAME.json."""
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in [only] if only else FRAMEWORKS:
        package, rows = FRAMEWORKS[name]
        versions = {p: importlib.metadata.version(p) for p in (package, "torch")}
        found: list[dict[str, Any]] = []
        for row in rows():
            found.append(asdict(row))
            print(f"{row.example}: {row.optimizer}, {row.error:.1e} after {row.seconds:.0f} s")
            text = json.dumps({"versions": versions, "rows": found}, indent=1)
            (RESULTS / f"{name}.json").write_text(text + "\n")
    report()


@app.command()
def report() -> None:
    """Fill the pages' tables with what was measured."""
    for path in sorted(RESULTS.glob("*.json")):
        page = PAGES / f"{path.stem}.md"
        page.write_text(filled(page.read_text(), table(json.loads(path.read_text()))))


def table(result: dict[str, Any]) -> str:
    """Markdown: one line a row."""
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    lines = ["| example | optimizer | steps | CPU seconds | error |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        optimizer = f"`{row['optimizer']}`"
        numbers = f"{row['steps']} | {row['seconds']:.0f} | {row['error']:.1e}"
        lines.append(f"| {row['example']} | {optimizer} | {numbers} |")
    return "\n".join([*lines, "", f"({versions}; one thread)"])


def filled(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    begin, end = "<!-- measured -->\n", "<!-- end -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    app()
