"""Error and CPU seconds of other people's examples before and after their one line was changed.

    python examples/reproduce/benchmark_frameworks.py measure            # all of them
    python examples/reproduce/benchmark_frameworks.py measure --only pina --example Poisson
    python examples/reproduce/benchmark_frameworks.py measure --share 0.1  # of Adam's steps
    python examples/reproduce/benchmark_frameworks.py report             # the tables of the pages

Before: the optimizer, its settings and the number of steps that the framework's own repository has
for the example ("2000 of 30000" steps: as many as there was time for). Before and after run one
after the other in one process, on one thread. Seconds are CPU seconds of the training alone; errors
are taken on points that were not trained on.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import typer
from published.results import environment
from tqdm import tqdm

from kfac_pinn import KFACPINN, Affordable
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
    """One line of a table: how it was trained, and what came of it.

    Attributes:
        published: how many steps the framework's repository takes, where these are fewer.
    """

    optimizer: str
    steps: int
    seconds: float
    error: float
    published: int | None = None


@dataclass(frozen=True)
class Run:
    """So many steps of an optimizer, written as its user writes it."""

    kind: Any
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    published: int | None = None

    @property
    def label(self) -> str:
        """As in the table."""
        name = self.kind if isinstance(self.kind, str) else self.kind.__name__
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{name} ({settings})" if settings else name

    def with_share(self, share: float) -> Run:
        """With so much of its steps, if it is the line as it was: there may not be time for all."""
        if self.kind is not Adam or share == 1:
            return self
        whole = self.published or self.steps
        return replace(self, steps=max(1, round(share * self.steps)), published=whole)


def adam(steps: int, lr: float = 1e-3, published: int | None = None, **settings: Any) -> Run:
    """The line as it was."""
    return Run(Adam, steps, {"lr": lr, **settings}, published)


@dataclass(frozen=True)
class Demo:
    """A demo of DeepXDE; each list of runs trains one model, with a row after each run."""

    name: str
    runs: list[list[Run]]

    def __call__(self, share: float) -> Iterator[Row]:
        demos = importlib.import_module("deepxde_demos")
        for phases in self.runs:
            demos.dde.config.set_random_seed(0)
            demo, seconds, labels = demos.DEMOS[self.name](), 0.0, []
            for run in (each.with_share(share) for each in phases):
                labels.append(run.label)
                begin = now()
                train(demo, run)
                seconds += now() - begin
                label, steps = " + ".join(dict.fromkeys(labels)), demo.model.train_state.iteration
                yield Row(label, steps, seconds, demo.error(), run.published)


def train(demo: Any, run: Run) -> None:
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


@dataclass(frozen=True)
class Script:
    """A function of a script of examples/frameworks: (kind, steps, **settings) -> error."""

    module: str
    function: str
    runs: list[Run]

    def __call__(self, share: float) -> Iterator[Row]:
        solve: Callable[..., float] = getattr(importlib.import_module(self.module), self.function)
        for run in (each.with_share(share) for each in self.runs):
            begin = now()
            error = solve(run.kind, run.steps, **run.settings)
            yield Row(run.label, run.steps, now() - begin, error, run.published)


def ours(*steps: int, **settings: Any) -> list[Run]:
    """As users write it, and with truncated steps throughout; of two numbers the first is theirs.

    By default the steps are those of `GaussNewton` in all examples but the Navier-Stokes one.
    """
    default = Run(KFACPINN, steps[-1], settings)
    return [default, replace(default, steps=steps[0], settings={**settings, **TRUNCATED})]


TRUNCATED = {"exact": Affordable(0)}


def stages(*runs: Run, times: int) -> list[list[Run]]:
    """Models of which each is trained by one run, so many times."""
    return [[run] * times for run in runs]


Example = Callable[[float], Iterator[Row]]

FRAMEWORKS: dict[str, tuple[str, dict[str, Example]]] = {
    "deepxde": (
        "deepxde",
        {
            "beam": Demo("beam", [[adam(10000)], *stages(*ours(30), times=1)]),
            "diffusivity": Demo(
                "diffusivity", [[adam(10000, published=50000)], *stages(*ours(30), times=1)]
            ),
            "hard constraint": Demo(
                "hard_constraint", [[adam(10000)], *stages(*ours(50), times=2)]
            ),
            "Lorenz": Demo("lorenz", [[adam(6000, published=60000)], *stages(*ours(50), times=2)]),
            "Kovasznay": Demo(
                "kovasznay",
                [
                    [adam(2000, published=30000)],
                    *stages(Run(KFACPINN, 20), times=2),
                ],
            ),
            "Burgers": Demo(
                "burgers",
                [
                    [adam(15000), Run(LBFGS, 0)],
                    [Run(KFACPINN, 60), *stages(Run(KFACPINN, 10), times=5)[0]],
                ],
            ),
        },
    ),
    "pina": (
        "pina-mathlab",
        {
            "Poisson": Script(
                "pina_poisson", "solve", [adam(1000, 0.006, weight_decay=1e-8), *ours(100, 200)]
            ),
            "unknown centre": Script("pina_poisson", "identify", [adam(1500, 0.005), *ours(50)]),
        },
    ),
    "lightning": (
        "lightning",
        {
            "heat": Script(
                "lightning_heat", "solve", [*(adam(2000, lr) for lr in (1e-3, 1e-2)), *ours(50)]
            )
        },
    ),
    "neurodiffeq": (
        "neurodiffeq",
        {"Laplace": Script("neurodiffeq_laplace", "solve", [adam(2000), *ours(100, 30)])},
    ),
    "torchphysics": (
        "torchphysics",
        {
            "Poisson": Script(
                "torchphysics_poisson",
                "solve",
                [*(adam(2000, lr) for lr in (1e-3, 1e-2)), *ours(50, 100, lr=1.0)],
            )
        },
    ),
    "neuromancer": (
        "neuromancer",
        {"diffusion": Script("neuromancer_diffusion", "solve", [adam(5000), *ours(60)])},
    ),
}


@app.command()
def measure(only: str = "", example: str = "", share: float = 1.0) -> None:
    """Train before and after, and write results/frameworks/NAME.json."""
    torch.set_num_threads(1)
    for name in [only] if only else FRAMEWORKS:
        package, examples = FRAMEWORKS[name]
        for title in [example] if example else examples:
            facts = {package: importlib.metadata.version(package), **environment()}
            rows = []
            for row in tqdm(examples[title](share), desc=title, unit="row"):
                print(f"{title}: {row.optimizer}, {row.error:.1e} after {row.seconds:.0f} s")
                rows.append(asdict(row))
                write(name, title, {**facts, "rows": rows})
    report()


def write(name: str, title: str, result: dict[str, Any]) -> None:
    """One example of a framework's file; the others stay."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    order = FRAMEWORKS[name][1]
    known[title] = result
    found = {each: known[each] for each in order if each in known}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


@app.command()
def report() -> None:
    """Fill the pages' tables with what was measured."""
    for path in sorted(RESULTS.glob("*.json")):
        page = PAGES / f"{path.stem}.md"
        package = FRAMEWORKS[path.stem][0]
        page.write_text(filled(page.read_text(), table(package, json.loads(path.read_text()))))


def table(package: str, results: dict[str, Any]) -> str:
    """Markdown: one line a row."""
    lines = ["| example | optimizer | steps | CPU seconds | error |", "|---|---|---|---|---|"]
    made = {}
    for title, result in results.items():
        for row in result["rows"]:
            of = f" of {row['published']}" if row.get("published") else ""
            numbers = f"{row['steps']}{of} | {row['seconds']:.0f} | {row['error']:.1e}"
            lines.append(f"| {title} | `{row['optimizer']}` | {numbers} |")
        versions = f"{package} {result[package]}, torch {result['torch']}"
        made.setdefault(f"{versions}, one thread", []).append(f"{title}: {result['commit']}")
    notes = [f"{what}; commits: {', '.join(commits)}" for what, commits in made.items()]
    return "\n".join([*lines, "", f"({'; '.join(notes)})"])


def filled(page: str, text: str) -> str:
    """The page with the text between its two marks."""
    begin, end = "<!-- measured -->\n", "<!-- end -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    app()
