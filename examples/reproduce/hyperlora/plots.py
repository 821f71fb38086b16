"""The paper's Figures 2 to 4 (fields and errors, one family each) and what its tables say, drawn.

    python examples/reproduce/hyperlora/plots.py maps kovasznay --base 90 --folder results

maps     reference and error of each method, for every field, on the first test task
ranks    Table 1: error over rank, the paper's beside
tasks    error of each method on every test task

Budgets and folder as for the tables: what these have measured is drawn at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paper
import torch
from benchmark import Benchmark
from tables import RANKS, arguments, benchmark_of, polished
from torch import Tensor

from hyperlora_ext.family import Family, values
from hyperlora_ext.ranks import widest

__all__ = ["error_maps", "maps", "ranks", "tasks"]

Function = Callable[[Any], Any]

COLUMNS = 5  # of the maps
#: how a hypernetwork is trained -> what its map is called; the paper's B1, B2, B3 and L-HPINN
HYPER = {
    "data": "by data",
    "weights": "by weights",
    "pinns": "by trained PINNs",
    "physics": "by physics",
}


def error_maps(family: Family, task: Tensor, networks: Mapping[str, Function]) -> Any:
    """A matplotlib figure: each field's reference, then every network's error log10 |u - u*|.

    Args:
        networks: u by the name to be shown, with its mean square error over that field.

    Raises:
        ValueError: for a family of one coordinate, or without a solution.
    """
    import matplotlib.pyplot as plt

    truth = family.reference(task)
    if family.grid.shape[1] == 1:
        raise ValueError(f"maps have two coordinates, {family.name} has one: plot its errors by x")
    plane = family.grid[:, :-2].eq(family.grid[-1, :-2]).all(1)  # the last time, if there is one
    points, truth = family.grid[plane], truth[plane]
    whole = truth if family.known is None else truth + family.known(points, task)
    shape = tuple(len(points[:, i].unique()) for i in (-2, -1))
    with torch.no_grad():
        seen = {name: values(family.observed(u), points, truth) for name, u in networks.items()}
    errors = {name: field - truth for name, field in seen.items()}
    columns = min(COLUMNS, 1 + len(errors))
    lines = math.ceil((1 + len(errors)) / columns)  # of one field
    figure, axes = plt.subplots(
        lines * truth.shape[1],
        columns,
        figsize=(2.5 * columns, 2.5 * lines * truth.shape[1]),
        squeeze=False,
        constrained_layout=True,
        subplot_kw={"xticks": [0, 1], "yticks": [0, 1]},
    )
    for i, block in enumerate(axes.reshape(-1, lines * columns)):
        first, *others = block
        figure.colorbar(image(first, whole[:, i].view(shape)), ax=first)
        first.set_title(f"{family.name}\nfield {i + 1}")
        for axis, (name, error) in zip(others, errors.items(), strict=False):
            logs = error[:, i].abs().clamp_min(1e-12).log10().view(shape)
            shown = image(axis, logs, cmap="magma", vmin=-8, vmax=0)
            axis.set_title(f"{name}\nMSE {float(error[:, i].square().mean()):.1e}")
        for axis in others[len(errors) :]:
            axis.set_axis_off()
    figure.colorbar(shown, ax=axes[:, -1], label=r"$\log_{10}$ error", aspect=40)
    return figure


def image(axis: Any, values: Tensor, **style: Any) -> Any:
    """Values on the unit square, (across, up)."""
    return axis.imshow(values.T, origin="lower", aspect="auto", extent=(0, 1, 0, 1), **style)


def maps(benchmark: Benchmark) -> Any:
    """The first test task: trained for it, and predicted by hypernetworks of all four trainings."""
    task = benchmark.splits.test[0]
    networks: dict[str, Function] = {
        "W0": benchmark.w0(task),
        "F-PINN": benchmark.fine_tuned(task),
        "L-PINN 4": benchmark.adapted(task, 4),
    }
    for method, name in HYPER.items():
        hyper, _ = benchmark.hyper(method, 4)
        networks[name] = hyper.pinn(task)
    networks["polished"] = polished(benchmark, hyper, task)
    return error_maps(benchmark.config.family, task, networks)


def ranks(benchmark: Benchmark) -> Any:
    """Mean and worst error of L-PINN over the rank, and the paper's mean."""
    import matplotlib.pyplot as plt

    tried = [rank for rank in RANKS if rank <= widest(benchmark.base)]
    rows = [
        benchmark.measured(f"L-PINN {r}", lambda task, r=r: benchmark.adapted(task, r))  # type: ignore[misc]
        for r in tried
    ]
    figure, axis = plt.subplots(figsize=(5, 3.6), constrained_layout=True)
    for name, style in (("mse", "o-"), ("median_mse", "s-"), ("worst_mse", "^:")):
        axis.loglog(tried, [row[name] for row in rows], style, base=2, label=name)
    printed = [paper.TABLE_1[benchmark.printed][f"L-PINN {rank}"][0] for rank in tried]
    axis.loglog(tried, printed, "k--", base=2, label="paper, mean")
    axis.set_yscale("log", base=10)
    axis.set(xlabel="rank", ylabel="MSE", title=benchmark.config.family.name)
    axis.legend()
    return figure


def tasks(benchmark: Benchmark) -> Any:
    """Error over the task: the number itself, or the root mean square of a function."""
    import matplotlib.pyplot as plt

    hyper, _ = benchmark.hyper("physics", 4)
    ways: dict[str, Callable[[Tensor], Any]] = {
        "untouched W0": benchmark.w0,
        "L-PINN 4": lambda task: benchmark.adapted(task, 4),
        "HyperPINN": hyper.pinn,
        "HyperPINN polished": lambda task: polished(benchmark, hyper, task),
    }
    place = benchmark.splits.test.square().mean(1).sqrt()
    figure, axis = plt.subplots(figsize=(5, 3.6), constrained_layout=True)
    for name, make in ways.items():
        axis.semilogy(place, benchmark.each(name, make)["mse"], "o", label=name)
    axis.set(xlabel="task (root mean square)", ylabel="MSE", title=benchmark.config.family.name)
    axis.locator_params(axis="x", nbins=6)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def main(given: Sequence[str] | None = None) -> None:
    """The command."""
    makers = {"maps": maps, "ranks": ranks, "tasks": tasks}
    parser = arguments(__doc__, "figure", list(makers))
    parser.add_argument("--out", help="file; FIGURE_FAMILY.png by default")
    parsed = vars(parser.parse_args(given))
    name, out = parsed.pop("figure"), parsed.pop("out")
    benchmark = benchmark_of(parsed)
    makers[name](benchmark).savefig(out or f"{name}_{benchmark.name}.png", dpi=120)


if __name__ == "__main__":
    main()
