"""The pictures of the how-to pages: the snippets of a page run, and what they leave is drawn.

    python examples/reproduce/howto.py                     # all of them, some minutes
    python examples/reproduce/howto.py --only neumann --only odes

Pictures go to docs/figures/howto.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.axes import Axes
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from drawing import Panel, deviation, field, save, square  # noqa: E402

Names = dict[str, Any]
Function = Callable[[Tensor], Tensor]
Corners = tuple[Sequence[float], Sequence[float]]
UNIT: Corners = ((0.0, 0.0), (1.0, 1.0))
DISC: Corners = ((-1.0, -1.0), (1.0, 1.0))


def run(page: Path) -> Names:
    """What all snippets of a page leave behind."""
    code = "".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    names: Names = {"__name__": "__main__"}
    exec(compile(code, str(page), "exec"), names)
    return names


def maps(u: Function, exact: Function, corners: Corners = UNIT, names: str = "xy") -> list[Panel]:
    """The solution, and its error."""
    x = square(*corners)
    with torch.no_grad():
        value, error = u(x), u(x) - exact(x)
    return [field("u", x, value, names), deviation("error", x, error, names)]


def within(inside: Callable[[Tensor], Tensor], u: Function) -> Function:
    """A function that is not drawn outside."""
    return lambda x: u(x).masked_fill(~inside(x)[:, None], torch.nan)


def lines(xlabel: str, x: Tensor, found: dict[str, Tensor], data: Sequence[Tensor] = ()) -> Panel:
    """Curves by their names, and data as dots."""

    def draw(axis: Axes) -> None:
        for name, y in found.items():
            axis.plot(x.detach(), y.detach(), ":" if name.startswith("exact") else "-", label=name)
        if data:
            axis.plot(*(each.detach() for each in data), ".", color="0.5", label="data")
        axis.set(xlabel=xlabel)
        axis.legend()

    return draw


def l_shape(n: Names) -> list[Panel]:
    """The solution that is not known, on its domain."""
    x = square(*DISC)
    outside = (x > 0).all(1)
    with torch.no_grad():
        return [field("u", x, n["u"](x).masked_fill(outside[:, None], torch.nan))]


def family(n: Names) -> list[Panel]:
    """Three members of the family of equations."""
    x, found = torch.linspace(0, 1, 200)[:, None], {}
    for a in ([1.0, 0.0], [-0.5, 1.0], [0.3, -0.8]):
        z = torch.cat([torch.tensor(a).expand(200, 2), x], dim=1)
        found[f"a = {a}"] = n["model"](z)
        found[f"exact, a = {a}"] = (n["inverse"] * z[:, :2] * n["waves"](z)).sum(1, keepdim=True)
    return [lines("x", x, found)]


#: What of a page's names is drawn.
PICTURES: dict[str, Callable[[Names], list[Panel]]] = {
    "neumann": lambda n: maps(
        within(lambda x: x.norm(dim=1) <= 1, n["model"]), n["solution"], DISC
    ),
    "initial_velocity": lambda n: maps(n["model"], n["exact"], names="tx"),
    "hard_constraints": lambda n: maps(n["u"], n["exact"]),
    "domains": lambda n: maps(within(lambda x: x[:, 1] <= x[:, 0], n["model"]), n["exact"]),
    "geometry": l_shape,
    "odes": lambda n: [lines("t", n["t"], dict(zip(("prey", "predator"), n["u"](n["t"]).T)))],  # noqa: B905
    "systems": lambda n: maps(
        lambda x: n["flow"](x)[:, :1], lambda x: n["kovasznay"](x)[:, :1], ((0, -0.5), (1, 0.5))
    ),
    "inverse": lambda n: [
        lines("x", n["x"], {"found a": n["a"](n["x"]), "exact a": n["field"](n["x"])})
    ],
    "noise": lambda n: [
        lines(
            "x",
            n["test"],
            {"found u": n["model"](n["test"]), "exact u": n["exact"](n["test"])},
            (n["sensors"], n["data"]),
        )
    ],
    "operator_networks": family,
    "time_windows": lambda n: maps(n["solved"], n["problem"].solution, names="tx"),
    "adam_lbfgs": lambda n: maps(n["model"], n["exact"]),
    "weights": lambda n: maps(n["model"], n["heat"], names="tx"),
    "weight_decay": lambda n: [
        lines(
            "x",
            n["z"],
            {"found": n["model"](n["z"]), "exact": n["truth"](n["z"])},
            (n["x"], n["y"]),
        )
    ],
    "save_resume": lambda n: maps(n["model"], n["poisson_2d"]().solution),
}


def main(
    only: Annotated[list[str], typer.Option(help="Names of pages; else all.")] = [],  # noqa: B006
    docs: Annotated[Path, typer.Option(help="The documentation.")] = ROOT / "docs",
) -> None:
    """Run pages one after the other, and draw."""
    pages = docs.resolve()
    for name in tqdm(only or list(PICTURES), unit="page"):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # for what a snippet writes
            names = run(pages / "howto" / f"{name}.md")
            os.chdir(pages)
        save(pages / "figures" / "howto" / f"{name}.png", *PICTURES[name](names))


if __name__ == "__main__":
    typer.run(main)
