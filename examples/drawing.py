"""The pictures of the examples: maps and curves side by side, drawn without a display."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from kfac_pinn import History

Out = Annotated[Path, typer.Option(help="where to draw the picture")]
Panel = Callable[[Axes], None]


def save(path: Path, *panels: Panel) -> None:
    """Draw the panels side by side, and say where."""
    figure = Figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


def square(lower: Sequence[float], upper: Sequence[float], n: int = 101) -> Tensor:
    """The points of a grid on a rectangle, (n n, 2), the second coordinate running first."""
    lines = [torch.linspace(a, b, n) for a, b in zip(lower, upper, strict=True)]
    return torch.cartesian_prod(*lines)


def field(title: str, points: Tensor, values: Tensor, names: str = "xy") -> Panel:
    """A map of values (n n, 1) at the points of `square`."""
    return colours(title, points, values, names, {"levels": 64})


def deviation(title: str, points: Tensor, values: Tensor, names: str = "xy") -> Panel:
    """A map of what should be zero: white there, red above and blue below."""
    largest = max(float(values.detach().nan_to_num().abs().max()), 1e-300)
    levels = torch.linspace(-largest, largest, 65).tolist()
    return colours(title, points, values, names, {"levels": levels, "cmap": "RdBu_r"})


def colours(title: str, points: Tensor, values: Tensor, names: str, how: dict[str, Any]) -> Panel:
    """A map with its colour bar; `how` goes to `contourf`."""

    def draw(axis: Axes) -> None:
        n = round(len(points) ** 0.5)
        x, y, z = (v.detach().view(n, n).numpy() for v in (*points.T, values))
        image = axis.contourf(x, y, z, **how)
        axis.figure.colorbar(image, ax=axis, ticks=MaxNLocator(6))
        axis.set(title=title, xlabel=names[0], ylabel=names[1])

    return draw


def curves(title: str, xlabel: str, x: Sequence[float], **lines: Sequence[float]) -> Panel:
    """Curves on a logarithmic axis, by their names."""

    def draw(axis: Axes) -> None:
        for name, y in lines.items():
            axis.semilogy(x, y, label=label(name))
        axis.set(title=title, xlabel=xlabel)
        axis.legend()

    return draw


def label(name: str) -> str:
    """A column's name as people write it."""
    words = name.replace("_", " ").replace("relative l2", "relative L2 error")
    return words.replace("L2", "$L_2$")


def training(history: History) -> Panel:
    """The loss and the relative error of a run over its steps."""
    lines = {name: history.column(name) for name in ("loss", "relative_l2")}
    return curves("training", "steps", history.column("step"), **lines)
