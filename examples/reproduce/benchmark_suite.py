"""The benchmark suite: pieces of a step and whole steps, beside what a user would do instead.

    python examples/reproduce/benchmark_suite.py measure
    python examples/reproduce/benchmark_suite.py measure --only "step: KFACPINN" --threads 2
    python examples/reproduce/benchmark_suite.py measure --against ../older  # a checkout

Every measurement is a process of its own (suite_rows.py), float64: median CPU seconds, peak memory
above that of the built network, operations of the matrix products as torch counts them, and
the ratio to one large matrix product of as many operations in the same process.  With `--against`
both checkouts take turns, in one run.  Results: results/suite.json; `report` fills the page "Cost
of a step" from them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from benchmark_step import versions
from rich.console import Console
from rich.progress import track
from rich.table import Table
from suite_rows import ROWS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "experiments" / "cost.md"
START, END = "<!-- suite -->", "<!-- end of suite -->"
app = typer.Typer(add_completion=False, help=__doc__)
Results = Annotated[Path, typer.Option(help="Folder of the result files.")]


def measured(row: str, way: str, threads: int, tree: Path, **more: str) -> dict[str, Any]:
    """One way of one row, by the package of that tree, with more variables set."""
    settings = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(tree.resolve()), **more}
    done = subprocess.run(
        [sys.executable, str(HERE / "suite_rows.py"), row, way],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    found = json.loads(done.stdout)
    if not Path(found.pop("from")).is_relative_to(tree.resolve()):
        raise typer.BadParameter(f"{tree} is no checkout of the package")
    return found


@app.command()
def measure(
    only: Annotated[list[str], typer.Option(help="Rows, by their beginnings; else all.")] = [],  # noqa: B006
    threads: int = 1,
    against: Annotated[Path | None, typer.Option(help="Another checkout.")] = None,
    results: Results = HERE / "results",
) -> None:
    """Measure, print and store; rows that are not asked for keep their stored figures."""
    chosen = [row for row in ROWS if not only or any(row.startswith(each) for each in only)]
    file = results / f"suite_{threads}.json" if threads > 1 else results / "suite.json"
    stored = json.loads(file.read_text())["rows"] if file.exists() else {}
    for row in track(chosen, description="rows", console=Console(stderr=True)):
        here = measured(row, "ours", threads, HERE.parents[1])
        found = {"ours": here}
        for way in here.pop("ways", ["ours"])[1:]:
            found[way] = measured(row, way, threads, HERE.parents[1])
            found[way].pop("ways", None)
        if against is not None:
            found["other checkout"] = measured(row, "ours", threads, against)
            found["other checkout"].pop("ways", None)
        stored[row] = {**found, "commit": versions()["commit"]}
    rows = {row: stored[row] for row in ROWS if row in stored}
    file.write_text(json.dumps({"rows": rows, "threads": threads, **versions(__file__)}, indent=1))
    show({row: rows[row] for row in chosen})


def cells(row: str, found: dict[str, Any]) -> list[list[str]]:
    """A line a way: seconds, memory, operations, times the products, ours relative to it."""
    ours, lines = found["ours"], []
    for way, each in found.items():
        if way == "commit":
            continue
        if "failed" in each:
            why = "not installed" if "No module named" in each["failed"] else each["failed"][:60]
            lines.append([row if way == "ours" else "", way, why, "", "", "", ""])
            continue
        ratio = "" if way == "ours" else f"{ours['seconds'] / each['seconds']:.2f}"
        counted = f"{each['operations'] / 1e9:.3g}" if each["operations"] else "not counted"
        products = f"{each['products']:.1f}" if each["products"] else ""
        lines.append([
            row if way == "ours" else "", way, f"{1e3 * each['seconds']:.3g}",
            f"{each['MiB']:.0f}", counted, products, ratio,
        ])  # fmt: skip
    return lines


HEADINGS = ["", "way", "ms", "MiB", "1e9 operations", "times its products", "ours / this"]


def show(rows: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(*HEADINGS)
    for row, found in rows.items():
        for line in cells(row, found):
            table.add_row(*line)
    Console().print(table)


@app.command()
def report(results: Results = HERE / "results", page: Path = PAGE) -> None:
    """Write the stored table into the page."""
    stored = json.loads((results / "suite.json").read_text())
    lines = [line for row, found in stored["rows"].items() for line in cells(row, found)]
    table = ["| " + " | ".join(each) + " |" for each in (HEADINGS, ["---"] * 7, *lines)]
    text = page.read_text()
    before, rest = text.split(START)
    page.write_text("\n".join([before + START, *table, END + rest.split(END)[1]]))


if __name__ == "__main__":
    app()
