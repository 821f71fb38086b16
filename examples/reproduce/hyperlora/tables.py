"""Tables 1, 2 and 3 of the paper for one family, measured here, the paper's numbers beside.

    python examples/reproduce/hyperlora/tables.py 1 kovasznay --base 90 --task 5 --folder results

Prints Markdown. The budgets are seconds; the paper's are hours on a P100. With a folder, what has
been measured is kept there, and an interrupted command continues. `--methods "L-PINN 4" F-PINN`
makes these rows alone.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import paper
import torch
from benchmark import Benchmark, Budget
from cache import Cache, Row
from configs import CONFIGS
from torch import Tensor, nn
from tqdm import tqdm

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.certified import solve
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import count
from hyperlora_ext.symmetry import averaged

__all__ = [
    "RANKS",
    "arguments",
    "benchmark_of",
    "markdown",
    "polished",
    "table_1",
    "table_2",
    "table_3",
]

RANKS = (1, 2, 4, 8, 16, 32, 64)
HYPER = ("data", "weights", "pinns", "physics")


def table_1(
    benchmark: Benchmark, ranks: Sequence[int] = RANKS, methods: Collection[str] = ()
) -> Iterator[Row]:
    """PINN, F-PINN and L-PINN of every rank, one network a test task; or some methods alone."""
    ways: dict[str, tuple[Callable[[Tensor], Any], int]] = {
        name: (make, 0) for name, make in benchmark.baselines().items()
    }
    ways["PINN"] = benchmark.from_scratch, count(benchmark.base)
    ways["F-PINN"] = benchmark.fine_tuned, count(benchmark.base)
    for rank in ranks:
        trained = count(adapt(benchmark.base, rank))
        ways[f"L-PINN {rank}"] = lambda task, r=rank: benchmark.adapted(task, r), trained  # type: ignore[misc]
    for method in wanted(ways, methods):
        make, trained = ways[method]
        error, took = paper.TABLE_1[benchmark.printed].get(method, (None, None))
        printed = {"paper mse": error, "paper seconds": took}
        yield benchmark.measured(method, make) | {"parameters": trained} | printed
    yield benchmark.reference()


def table_2(
    benchmark: Benchmark,
    ranks: Sequence[int | None] = (1, 2, 4, 8, None),
    methods: Collection[str] = (),
) -> Iterator[Row]:
    """Hypernetworks by data, weights, PINNs and physics; None is the whole network."""
    baselines = benchmark.baselines()
    names = wanted([*baselines, *HYPER], methods)
    for method in (name for name in names if name in baselines):
        yield benchmark.cache.row(
            f"{method} sets",
            lambda m=method: {"method": m, **errors_of(benchmark, baselines[m])},  # type: ignore[misc]
        )
    for rank in ranks:
        for method in (name for name in names if name in HYPER):
            label = f"{method} {rank or '*'} sets"
            yield benchmark.cache.row(
                label,
                lambda m=method, r=rank: hyper_row(benchmark, m, r),  # type: ignore[misc]
            )
    yield benchmark.reference()


def wanted(known: Iterable[str], methods: Collection[str]) -> list[str]:
    """Those of the methods; all if none is named.

    Raises:
        ValueError: for a method that the table does not have.
    """
    names = list(known)
    if unknown := set(methods) - set(names):
        raise ValueError(f"the table has {names}, not {sorted(unknown)}")
    return [name for name in names if not methods or name in methods]


def hyper_row(benchmark: Benchmark, method: str, rank: int | None) -> Row:
    """One hypernetwork, trained and measured."""
    hyper, spent = benchmark.hyper(method, rank)
    row = {"method": method, "rank": rank or "*", "emitted": hyper.size}
    row |= errors_of(benchmark, lambda task: prediction(hyper, task)) | spent
    test, epoch = paper.TABLE_2[benchmark.printed][method].get(rank, (None,) * 4)[2:]
    return row | {"paper test": test, "paper seconds": epoch and 15_000 * epoch}


@torch.no_grad()
def prediction(hyper: HyperLoRA, task: Tensor) -> Any:
    """u of a task; unlike `hyper.pinn`, it does not warn beyond the trained range."""
    return hyper.fields(task)


def errors_of(benchmark: Benchmark, predict: Callable[[Tensor], Any]) -> Row:
    """Errors on the four task sets."""
    row: Row = {}
    for part, tasks in vars(benchmark.splits).items():
        summary = benchmark.config.family.errors(predict, tasks).summary()
        row[part] = summary["mse"]
        if part == "test":
            row |= {f"test {name}": summary[name] for name in summary if name != "mse"}
    return row


def polished(
    benchmark: Benchmark, hyper: HyperLoRA, task: Tensor, steps: int = 5, share: int = 1
) -> nn.Module:
    """The prediction after a few steps on the task's own residuals, at a share of the points."""
    sizes = {name: size // share for name, size in benchmark.config.step.items()}
    solved = solve(hyper, benchmark.config.family, task, sizes=sizes, steps=steps)
    benchmark.steps.taken += solved.steps
    return solved.model


def table_3(benchmark: Benchmark, methods: Collection[str] = ()) -> Iterator[Row]:
    """Seconds for a new task, and the error: predicted, polished, adapted, from scratch."""

    @cache
    def hyper() -> HyperLoRA:
        trained, _ = benchmark.hyper("physics", 4)
        trained.pinn(benchmark.splits.test[0])
        return trained

    # what must be trained before a task is met is trained outside of its clock
    ways: dict[str, tuple[Callable[[], Callable[[Tensor], Any]], int | None]] = {
        "HyperPINN": (lambda: hyper().pinn, 3),
        "HyperPINN polished": (lambda: partial(polished, benchmark, hyper()), None),
        "HyperPINN, two steps": (
            lambda: partial(polished, benchmark, hyper(), steps=2, share=4),
            None,
        ),
        "L-PINN 4": (lambda: partial(benchmark.adapted, rank=4), 2),
        "F-PINN": (lambda: benchmark.fine_tuned, 1),
        "PINN": (lambda: benchmark.from_scratch, 0),
    }
    if symmetry := benchmark.config.symmetry:
        ways["HyperPINN averaged"] = lambda: averaged(hyper().pinn, symmetry), None
    if benchmark.config.plain:
        ways["parametric PINN"] = benchmark.parametric, None
    for method in wanted(ways, methods):
        prepare, place = ways[method]
        printed = None if place is None else paper.TABLE_3[benchmark.printed][place]
        yield benchmark.measured(method, prepare()) | {"paper seconds": printed}
    yield benchmark.reference()


def markdown(rows: Iterable[Row]) -> Iterator[str]:
    """The rows as a table, each as soon as it is measured; a row of other columns begins anew."""
    names: list[str] = []
    for row in rows:
        if not set(row) <= set(names):
            names = list(row)
            yield "| " + " | ".join(names) + " |"
            yield "|" + "---|" * len(names)
        yield "| " + " | ".join(shown(row.get(name)) for name in names) + " |"


def shown(value: Any) -> str:
    """A number in a table."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def benchmark_of(given: dict[str, Any]) -> Benchmark:
    """The benchmark that a command's arguments describe."""
    folder: Path | None = given.pop("folder")
    family, device = given.pop("family"), given.pop("device")
    cache = Cache(folder and folder / family)
    kept = cache.row("budget", lambda: dict(given))
    if kept != given:
        warnings.warn(
            f"the rows in {folder} were begun with {kept}, not {given}: those that are there stay "
            "as they were measured; take another folder to measure them again",
            stacklevel=2,
        )
    return Benchmark(family, Budget(**given), cache, device)


def arguments(about: str | None, what: str, choices: Sequence[Any]) -> argparse.ArgumentParser:
    """What to make, family, budgets and folder: the same for tables and figures."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument(what, type=type(choices[0]), choices=choices)
    parser.add_argument("family", choices=list(CONFIGS))
    kinds = {"base": float, "task": float, "hyper": float, "tasks": int, "seed": int}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(Budget, name))
    parser.add_argument("--folder", type=Path, help="where results are kept")
    parser.add_argument("--device", default="cpu", help="cuda, say")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    """The command."""
    parser = arguments(__doc__, "table", (1, 2, 3))
    parser.add_argument("--ranks", type=int, nargs="*", help="in Table 2, 0 is the whole network")
    parser.add_argument("--methods", nargs="*", default=(), help="these rows alone")
    parsed = vars(parser.parse_args(given))
    table, ranks, methods = (parsed.pop(name) for name in ("table", "ranks", "methods"))
    benchmark = benchmark_of(parsed)
    whole = None if table == 2 else 0
    some = {} if ranks is None or table == 3 else {"ranks": [rank or whole for rank in ranks]}
    tables: dict[int, Callable[..., Iterator[Row]]] = {1: table_1, 2: table_2, 3: table_3}
    rows = tqdm(tables[table](benchmark, methods=methods, **some), unit="row")
    for line in markdown(rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
