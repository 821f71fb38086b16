"""What r, J and a product with J^T J take of memory, in one closure and in batches; whole steps.

    python examples/reproduce/benchmark_memory.py measure
    python examples/reproduce/benchmark_memory.py report      # fills the page "Cost of a step"

-Laplace u = f on the unit cube and u = 0 on its faces, tanh networks, float64, one thread.  Every
figure is from a process of its own: by how much its largest resident set grew over that of the
loaded libraries, and CPU seconds.  Beside it stands the model of the page.  No process
may take more than 8 GB.  Results: results/memory.json.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from benchmark_step import versions
from suite_rows import peak_memory
from torch import Tensor, nn

from kfac_pinn import KFACPINN, MLP, Batches, KFACStar, laplacian, linearize
from kfac_pinn.pinn.training.clock import now

HERE = Path(__file__).parent
FILE = HERE / "results" / "memory.json"
PAGE = HERE.parents[1] / "docs" / "experiments" / "cost.md"
START, END = "<!-- memory -->", "<!-- end of memory -->"
SMALL, LARGE = (10, 256, 256, 128, 128, 1), (100, 768, 768, 512, 512, 1)
MEMORY = 8 * 1024  # MiB that no process may pass
# Each block of memory is the system's, and goes back to it: what is asked for is what is there
MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)


Closure = Callable[[], Any]


def product(closure: Closure, model: nn.Module) -> None:
    """r, J, the gradient, and J^T J times it."""
    found = linearize(closure, model.parameters(), check=False)
    found.curvature(found.gradient)


def one_step(optimizer: Any, closure: Closure) -> None:
    """Its factors are there afterwards."""
    optimizer.step(closure)


def full_memory(optimizer: Any, closure: Closure) -> None:
    """Four steps of a quarter of the products that it remembers."""
    usual, optimizer.products = optimizer.products, optimizer.limit // 4
    for _ in range(4):
        optimizer.step(closure)
    optimizer.products = usual


@dataclass(frozen=True)
class Work:
    """A step of an optimizer that remembers all that it ever will.

    Attributes:
        make: the optimizer, from parameters.
        before: what fills its memory, on few points.
        vectors: of P numbers that it holds at the peak, factors apart.
    """

    make: Callable[..., Any]
    before: Callable[[Any, Closure], None]
    vectors: int

    def prepared(self, row: Row, model: nn.Module) -> Callable[[Closure], object]:
        """The step."""
        optimizer = self.make(model.parameters())
        few = replace(row, interior=2, boundary=150, at_once=0)
        self.before(optimizer, few.closure(model))
        return lambda closure: optimizer.step(closure)


WORKS = {
    "KFACStar": Work(KFACStar, one_step, 12),
    # 100 products, new ones beside them, and ten iterations of conjugate gradients
    "KFACPINN": Work(partial(KFACPINN, products=10), full_memory, 440),
}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        work: one of `WORKS`, or a product.
        widths: of the network.
        interior, boundary: points.
        at_once: of the larger kind in a batch; 0: all of them, in one closure.
        keep: as of `Batches`.
    """

    work: str
    widths: tuple[int, ...]
    interior: int
    boundary: int = 0
    at_once: int = 0
    keep: bool = False

    def cells(self) -> list[str]:
        """What is measured, in words."""
        points = f"{self.interior:,}" + (f" + {self.boundary:,}" if self.boundary else "")
        way = f"{self.at_once:,} at once, {'kept' if self.keep else 'anew'}"
        return [self.work, sizes(self.widths), points, way if self.at_once else "one closure"]

    def closure(self, model: nn.Module) -> Closure:
        """Its residuals."""
        torch.manual_seed(1)
        counts = [self.interior, self.boundary] if self.boundary else [self.interior]
        points = [torch.rand(n, self.widths[0], dtype=torch.float64) for n in counts]

        def residuals(x: Tensor, *faces: Tensor) -> list[Tensor]:
            return [laplacian(model, x) + 1.0, *map(model, faces)]

        if self.at_once:
            return Batches.of(residuals, points, at_once=self.at_once, keep=self.keep)
        return lambda: residuals(*points)

    def work_of(self, model: nn.Module) -> Callable[[Closure], object]:
        """What is done with them."""
        if self.work in WORKS:
            return WORKS[self.work].prepared(self, model)
        return lambda closure: product(closure, model)

    def formula(self) -> float:
        """MiB, by the model of the page."""
        layers = list(pairwise(self.widths))
        d_in, d_out = (sum(each) for each in zip(*layers, strict=True))
        batches = -(-max(self.interior, self.boundary) // self.at_once) if self.at_once else 1
        positions = self.interior * (self.widths[0] + 2) + self.boundary
        now = positions / batches
        held = positions if self.keep else now
        graph = held * (d_in + d_out) + now * (d_out + 2 * max(self.widths))
        return 8 * (graph + self.state(layers)) / 2**20

    def state(self, layers: list[tuple[int, int]]) -> int:
        """Numbers that do not depend on the points."""
        parameters = sum((a + 1) * b for a, b in layers)
        if self.work not in WORKS:
            return 4 * parameters
        factors = 5 * sum(a**2 + b**2 for a, b in layers)
        # A pair of factors for each term
        terms = 2 if self.boundary else 1
        return WORKS[self.work].vectors * parameters + terms * factors


def sizes(widths: tuple[int, ...]) -> str:
    """2-64-1."""
    return "-".join(map(str, widths))


WAYS = ((), (250, True), (250, False))
PRODUCTS = [Row("J", SMALL, n, 0, *way) for n in (1000, 4000) for way in WAYS]
PRODUCTS += [Row("J", LARGE, 175, 0, *way) for way in ((), (25, True), (25, False))]
# Points of the published 100d Poisson problem, 1.3 million parameters
PUBLISHED = [
    Row(work, LARGE, 175, 2086, *way) for work in WORKS for way in ((), (250, True), (250, False))
]
ROWS = [*PRODUCTS, *(Row(w, SMALL, 1000, 250, *way) for w in WORKS for way in WAYS), *PUBLISHED]


@app.command()
def run(row: int) -> None:
    """One figure, as JSON."""
    torch.set_num_threads(1)
    memory = MEMORY * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    one = ROWS[row]
    # Loads the libraries
    tiny = replace(one, widths=(2, 4, 1), interior=4, boundary=4, at_once=0)
    model = MLP(tiny.widths).double()
    tiny.work_of(model)(tiny.closure(model))
    loaded = peak_memory()
    torch.manual_seed(0)
    model = MLP(one.widths).double()
    work, closure = one.work_of(model), one.closure(model)
    start = now()
    work(closure)
    seconds, peak = now() - start, peak_memory()
    typer.echo(json.dumps({"MiB": peak - loaded, "process": peak, "seconds": seconds}))


@app.command()
def measure(
    rows: Annotated[str, typer.Option(help="their numbers, e.g. 0,1; all, if empty")] = "",
    file: Path = FILE,
) -> None:
    """Those rows; the file keeps the others."""
    stored = json.loads(file.read_text())["rows"] if file.exists() else {}
    for number in map(int, rows.split(",")) if rows else range(len(ROWS)):
        row, found = ROWS[number], measured(number)
        # Blocks of the larger network are mapped anyway, but not those of its batches
        whole = row in PUBLISHED and not row.at_once
        found["mapped"] = found["MiB"] if whole else measured(number, **MAPPED)["MiB"]
        stored[" | ".join(row.cells())] = found
        typer.echo(line(row, found))
        file.write_text(json.dumps({"rows": stored, **versions(__file__)}, indent=1) + "\n")


def measured(number: int, **environment: str) -> dict[str, float]:
    """A row, in a process of its own."""
    command = [sys.executable, __file__, "run", str(number)]
    settings = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return json.loads(done.stdout)


def line(row: Row, found: dict[str, float]) -> str:
    """Of the table."""
    model, mapped = row.formula(), found["mapped"]
    numbers = [f"{each:,.0f}" for each in (model, mapped, found["MiB"], found["process"])]
    cells = [*row.cells(), *numbers[:2], f"{mapped / model:.2f}", *numbers[2:]]
    return f"| {' | '.join(cells)} | {found['seconds']:.3g} |"


MIBS = ["model", "measured", "ratio", "as glibc comes", "whole process"]
HEADINGS = ["", "network", "points", "way", *MIBS, "CPU seconds"]


@app.command()
def report(file: Path = FILE, page: Path = PAGE) -> None:
    """Write the stored table into the page."""
    stored = json.loads(file.read_text())["rows"]
    known = [(row, stored.get(" | ".join(row.cells()))) for row in ROWS]
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + " --- |" * len(HEADINGS)]
    lines += [line(row, found) for row, found in known if found is not None]
    before, rest = page.read_text().split(START)
    page.write_text("\n".join([before + START, *lines, END + rest.split(END)[1]]))


if __name__ == "__main__":
    app()
