"""Tables 1, 2 and 3 of the paper for one family, measured here, the paper's numbers beside.

    python -m hyperlora_ext.tables 1 kovasznay --base 90 --task 5 --tasks 20

Prints Markdown. The budgets are seconds; the paper's are hours on a P100.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyperlora_ext import paper, regimes
from hyperlora_ext.family import Splits
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import adapt, count
from hyperlora_ext.problems import step_function
from hyperlora_ext.setups import SETUPS, Setup
from hyperlora_ext.solve import solve

__all__ = ["Budget", "table_1", "table_2", "table_3"]

Row = dict[str, Any]
RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Budget:
    """Seconds for the base, for each task and for each hypernetwork; how many test tasks."""

    base: float = 90.0
    task: float = 5.0
    hyper: float = 90.0
    tasks: int = 20


def table_1(name: str, budget: Budget, ranks: Sequence[int] = RANKS) -> Iterator[Row]:
    """PINN, F-PINN and L-PINN of every rank, one network a test task."""
    setup = SETUPS[name]()
    base, tasks = setup.base(budget.base), setup.family.splits().test[: budget.tasks]
    printed = {
        "untouched W0": (None, None),
        "step function": (None, None),
    } | paper.TABLE_1[name]

    def measured(method: str, trained: int, make: Callable[[Tensor], Any]) -> Row:
        start = time.perf_counter()
        networks = {tuple(task.tolist()): make(task) for task in tasks}
        seconds = (time.perf_counter() - start) / len(tasks)
        errors = setup.family.errors(lambda task: networks[tuple(task.tolist())], tasks)
        error, took = printed[method]
        row: Row = {"method": method, "parameters": trained, **errors.summary()}
        return row | {"seconds": seconds, "paper mse": error, "paper seconds": took}

    def problem(task: Tensor) -> Any:
        return setup.family.problem(task)

    yield measured("untouched W0", 0, lambda task: base)
    if name == "burgers2d":
        yield measured("step function", 0, lambda task: step_function)
    train, spent = setup.train, {"seconds": budget.task}
    scratch = {"seconds": budget.base}
    yield measured(
        "PINN", count(base), lambda t: regimes.pinn(setup.network(), problem(t), train, **scratch)
    )
    yield measured(
        "F-PINN", count(base), lambda t: regimes.f_pinn(base, problem(t), train, **spent)
    )
    for rank in ranks:
        yield measured(
            f"L-PINN {rank}",
            count(adapt(base, rank)),
            lambda t, r=rank: regimes.l_pinn(base, problem(t), train, r, **spent),  # type: ignore[misc]
        )


def table_2(
    name: str, budget: Budget, ranks: Sequence[int | None] = (1, 2, 4, 8, None)
) -> Iterator[Row]:
    """Hypernetworks by data, weights, PINNs and physics; None is the whole network."""
    setup = SETUPS[name]()
    base, splits = setup.base(budget.base), setup.family.splits()
    for rank in ranks:
        for method in ("data", "weights", "pinns", "physics"):
            torch.manual_seed(0)
            hyper = HyperLoRA(base, setup.family.space, rank)
            start = time.perf_counter()
            trained(setup, hyper, splits.train, method, budget)
            row: Row = {
                "method": method,
                "rank": rank or "*",
                "emitted": len(hyper.factors(splits.test[0])[0]),
            }
            row["seconds"] = time.perf_counter() - start
            yield (
                row | errors_of(setup, hyper, splits, budget.tasks) | printed_2(name, method, rank)
            )


def trained(setup: Setup, hyper: HyperLoRA, tasks: Tensor, method: str, budget: Budget) -> None:
    """Train the hypernetwork in one of the paper's four ways."""
    family, train, spent = setup.family, setup.hyper_train, {"seconds": budget.hyper}

    def known() -> tuple[Tensor, list[nn.Module]]:
        return tasks, regimes.teachers(hyper, family, tasks, setup.train, seconds=budget.task)

    ways: dict[str, Callable[[], Any]] = {
        "physics": lambda: regimes.by_physics(
            hyper, family, setup.fresh_tasks, train, setup.hyper_step, **spent
        ),
        "data": lambda: regimes.by_data(hyper, family, lambda g: tasks, train, 40, **spent),
        "pinns": lambda: regimes.by_pinns(hyper, family, known(), train, 40, **spent),
        "weights": lambda: regimes.by_weights(hyper, *known()),
    }
    ways[method]()


def errors_of(setup: Setup, hyper: HyperLoRA, splits: Splits, tasks: int) -> Row:
    """Errors on the four task sets."""
    row: Row = {}
    for part in ("train", "valid", "test", "extrapolation"):
        chosen = getattr(splits, part)[:tasks]
        with torch.no_grad():
            fields = {tuple(t.tolist()): hyper.fields(t) for t in chosen}
        summary = setup.family.errors(lambda t, f=fields: f[tuple(t.tolist())], chosen).summary()  # type: ignore[misc]
        row[part] = summary["mse"]
        if part == "test":
            row |= {"worst test": summary["worst_mse"], "relative_l2": summary["relative_l2"]}
    return row


def printed_2(name: str, method: str, rank: int | None) -> Row:
    """The paper's test error, and its 15 000 epochs in seconds."""
    found = paper.TABLE_2[name][method].get(rank)
    return {"paper test": found and found[2], "paper seconds": found and 15_000 * found[3]}


def table_3(name: str, budget: Budget) -> Iterator[Row]:
    """Seconds for one new task, and the error: predicted, polished, adapted, from scratch."""
    setup = SETUPS[name]()
    base = setup.base(budget.base)
    hyper = HyperLoRA(base, setup.family.space)
    trained(setup, hyper, setup.family.splits().train, "physics", budget)
    task = setup.family.splits().test[0]
    problem, train = setup.family.problem(task), setup.train
    ways: dict[str, tuple[Callable[[], Any], float | None]] = {
        "predict": (lambda: hyper.pinn(task), paper.TABLE_3[name][3]),
        "predict, certify, polish": (
            lambda: solve(hyper, setup.family, task, sizes=setup.step, steps=5).model,
            None,
        ),
        "L-PINN 4": (
            lambda: regimes.l_pinn(base, problem, train, seconds=budget.task),
            paper.TABLE_3[name][2],
        ),
        "F-PINN": (
            lambda: regimes.f_pinn(base, problem, train, seconds=budget.task),
            paper.TABLE_3[name][1],
        ),
        "PINN": (
            lambda: regimes.pinn(setup.network(), problem, train, seconds=budget.base),
            paper.TABLE_3[name][0],
        ),
    }
    hyper.pinn(task)
    for method, (make, printed) in ways.items():
        start = time.perf_counter()
        network = make()
        seconds = time.perf_counter() - start
        error = setup.family.errors(lambda _, v=network: v, task)  # type: ignore[misc]
        yield {
            "method": method,
            "seconds": seconds,
            "mse": float(error.mse),
            "paper seconds": printed,
        }
    start = time.perf_counter()
    setup.family.solution(setup.family.grid, task)
    yield {"method": "reference", "seconds": time.perf_counter() - start, "mse": 0.0}


def markdown(rows: Iterator[Row]) -> Iterator[str]:
    """The rows as a table, each as soon as it is measured."""
    for index, row in enumerate(rows):
        if index == 0:
            names = list(row)
            yield "| " + " | ".join(names) + " |"
            yield "|" + "---|" * len(names)
        yield "| " + " | ".join(shown(row.get(name)) for name in names) + " |"


def shown(value: Any) -> str:
    """A number in a table."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("table", type=int, choices=(1, 2, 3))
    parser.add_argument("family", choices=list(SETUPS))
    for name, kind in (("base", float), ("task", float), ("hyper", float), ("tasks", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Budget, name))
    given = vars(parser.parse_args(arguments))
    make = {1: table_1, 2: table_2, 3: table_3}[given.pop("table")]
    family = given.pop("family")
    for line in markdown(make(family, Budget(**given))):
        print(line, flush=True)


if __name__ == "__main__":
    main()
