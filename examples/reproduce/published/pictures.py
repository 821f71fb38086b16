"""Training seen as maps: solution, error, residual, where SGD and Adam fail and K-FAC does not."""

from __future__ import annotations

import json
from math import pi
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.image import AxesImage
from torch import Tensor

from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, relative_l2
from kfac_pinn.pinn.problems.poisson_equation import poisson
from kfac_pinn.pinn.training import Callback, Run, fit
from published.figures import NAMES, write
from published.recipes import OPTIMIZERS

__all__ = ["draw", "errors", "measure", "poisson_waves"]

WAVES, NETWORK, SIDE = 3, (2, 32, 32, 1), 41
SECONDS = (0.0, 1.25, 5.0, 20.0)
TRIAL = 4.0  # seconds a learning rate is tried
SHOWN: dict[str, list[dict[str, float]]] = {
    "sgd": [{"lr": lr, "momentum": 0.9} for lr in (1e-6, 1e-5, 1e-4)],
    "adam": [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2)],
    "kfac_star": [{"damping": 1e-8, "ema": 0.9, "lr": 0.1}],
    "kfac_pinn": [{}],
}


def poisson_waves(waves: int = WAVES) -> Problem:
    """-Laplace u = f on the unit square, u* = sin(k pi x) sin(k pi y)."""

    def solution(x: Tensor) -> Tensor:
        return torch.sin(waves * pi * x[:, 0:1]) * torch.sin(waves * pi * x[:, 1:2])

    return poisson(2, lambda x: 2 * (waves * pi) ** 2 * solution(x), solution, (900, 120))


class Snapshots(Callback):
    """A row with the maps of u and of the residual when each of some times has passed."""

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self.seconds, self.rows = seconds, []

    def on_start(self, run: Run) -> None:
        self.rows.append(snapshot(run))

    def on_step(self, run: Run) -> None:
        if len(self.rows) < len(self.seconds) and run.seconds >= self.seconds[len(self.rows)]:
            self.rows.append(snapshot(run))


def snapshot(run: Run) -> dict[str, Any]:
    """The state of a run; maps with three digits."""
    x = grid()
    u, residual = run.model(x), run.problem.terms["interior"].residual(run.model, x)
    return {
        "seconds": round(run.seconds, 1),
        "step": run.step,
        "loss": run.evaluate()["loss"],
        "relative_l2": relative_l2(run.model, run.problem.solution, run.places),
        "u": numbers(u),
        "residual": numbers(residual),
    }


def grid() -> Tensor:
    """SIDE x SIDE points (x, y)."""
    side = torch.linspace(0, 1, SIDE)
    return torch.cartesian_prod(side, side)


def numbers(values: Tensor) -> str:
    """A column of a tensor as JSON."""
    return json.dumps([float(f"{value:.3g}") for value in values.detach().flatten().tolist()])


def measure(seconds: tuple[float, ...] = SECONDS) -> pd.DataFrame:
    """A row an optimizer and time; the same initial network and points for all."""
    torch.set_default_dtype(torch.float64)
    frames = []
    for name, candidates in SHOWN.items():
        settings = candidates[0]
        if len(candidates) > 1:
            settings = min(candidates, key=lambda c: pictures(name, c, (0.0, TRIAL))[-1]["loss"])
        rows = pd.DataFrame(pictures(name, settings, seconds))
        frames.append(rows.assign(optimizer=name, settings=json.dumps(settings)))
    return pd.concat(frames, ignore_index=True)


def pictures(
    optimizer: str, settings: dict[str, float], seconds: tuple[float, ...]
) -> list[dict[str, Any]]:
    """One run, as its snapshots."""
    torch.manual_seed(0)
    model, taken = MLP(NETWORK), Snapshots(seconds)
    built = OPTIMIZERS[optimizer].build(model.parameters(), **settings)
    fit(model, poisson_waves(), built, seconds=seconds[-1], callbacks=[taken])
    return taken.rows


def draw(table: pd.DataFrame, path: Path) -> None:
    """A row an optimizer; for every time but the first: u, its error, its residual."""
    names, times = list(dict.fromkeys(table["optimizer"])), len(SECONDS) - 1
    size = (4.5 * times, 1.75 * len(names))
    figure, axes = plt.subplots(
        len(names), 3 * times, figsize=size, squeeze=False, layout="constrained"
    )
    exact = poisson_waves().solution(grid()).numpy().reshape(SIDE, SIDE).T
    images: list[AxesImage] = []
    for name, row in zip(names, axes, strict=True):
        row[0].set_ylabel(NAMES[name])
        states = table[table["optimizer"] == name].iloc[1:]
        for state, cells in zip(states.itertuples(), row.reshape(times, 3), strict=True):
            u, residual = maps(state.u), maps(state.residual)
            images = [
                picture(cells[0], u, None),
                picture(cells[1], abs(u - exact), 1.0),
                picture(cells[2], abs(residual), 100.0),
            ]
            cells[0].set_title(f"u, {state.seconds:g} s", fontsize=8)
            cells[1].set_title(f"error {state.relative_l2:.1e}", fontsize=8)
            cells[2].set_title(f"residual, loss {state.loss:.0e}", fontsize=8)
    labels = ["u", *(f"$\\log_{{10}}$ |{name}|" for name in ("error", "residual"))]
    for image, of in zip(images, labels, strict=True):
        figure.colorbar(image, ax=axes, label=of, pad=0.005, aspect=40, shrink=0.7)
    write(figure, path)


def maps(text: str) -> np.ndarray:
    """The reverse of `numbers`, x to the right and y upwards."""
    return np.array(json.loads(text)).reshape(SIDE, SIDE).T


def picture(axis: plt.Axes, values: np.ndarray, bound: float | None) -> AxesImage:
    """u between -1 and 1; errors and residuals on a logarithmic scale of six decades."""
    axis.set(xticks=[], yticks=[])
    if bound is None:
        return axis.imshow(values, origin="lower", cmap="RdBu_r", vmin=-1, vmax=1)
    logs, top = np.log10(values.clip(1e-12)), np.log10(bound)
    return axis.imshow(logs, origin="lower", cmap="magma", vmin=top - 6, vmax=top)


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """The table without its maps."""
    settings = table["settings"].str.replace(r'[{}"]', "", regex=True)
    columns = ["optimizer", "settings", "seconds", "step", "loss", "relative_l2"]
    named = table.assign(settings=settings, optimizer=table["optimizer"].map(NAMES))[columns]
    return named.rename(columns={"step": "steps", "relative_l2": "relative L2"})
