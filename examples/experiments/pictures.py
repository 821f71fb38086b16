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
from torch import Tensor

from experiments.figures import write
from experiments.recipes import OPTIMIZERS
from experiments.training import Clock
from kfac_pinn.domains import Box, TimeSpace
from kfac_pinn.fit import Callback, Run, fit
from kfac_pinn.networks import MLP
from kfac_pinn.operators import taylor
from kfac_pinn.problem import Function, Problem, Term, relative_l2

__all__ = ["convection", "draw", "errors", "measure"]

SPEED, NETWORK, SIDE, SECONDS = 10.0, (2, 32, 32, 1), 41, (0.0, 2.5, 10.0, 40.0)
SHOWN: dict[str, dict[str, float]] = {
    "sgd": {"lr": 1e-4, "momentum": 0.9},
    "adam": {"lr": 3e-3},
    "kfac_star": {"damping": 1e-8, "ema": 0.9},
    "kfac_pinn": {},
}


def convection(speed: float = SPEED) -> Problem:
    """u_t + speed u_x = 0 on [0, 1] x [0, 2 pi], u(0, x) = sin x, exact values at the ends.

    First-order methods fail on it at higher speeds: Krishnapriyan et al. (2021), arXiv:2109.01050,
    with periodic ends.
    """
    domain = TimeSpace(0.0, 1.0, Box((0.0,), (2 * pi,)))

    def solution(x: Tensor) -> Tensor:
        return torch.sin(x[:, 1:2] - speed * x[:, 0:1])

    def interior(u: Function, x: Tensor) -> Tensor:
        _, (u_t, u_x) = taylor(u, x, order=1)
        return u_t + speed * u_x

    def condition(u: Function, x: Tensor) -> Tensor:
        return u(x) - solution(x)

    terms = {
        "interior": Term(domain.interior, interior, 1500),
        "initial": Term(domain.initial, condition, 150),
        "boundary": Term(domain.boundary, condition, 150),
    }
    return Problem(f"convection, speed {speed:g}", domain, terms, solution)


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
    """The state of a run; maps with three digits, t along the rows."""
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
    """SIDE x SIDE points (t, x)."""
    t, x = torch.linspace(0, 1, SIDE), torch.linspace(0, 2 * pi, SIDE)
    return torch.cartesian_prod(t, x)


def numbers(values: Tensor) -> str:
    """A column of a tensor as JSON."""
    return json.dumps([float(f"{value:.3g}") for value in values.detach().flatten().tolist()])


def measure(seconds: tuple[float, ...] = SECONDS) -> pd.DataFrame:
    """A row an optimizer and time; the same initial network and points for all."""
    torch.set_default_dtype(torch.float64)
    frames = []
    for name, settings in SHOWN.items():
        torch.manual_seed(0)
        model, pictures = MLP(NETWORK), Snapshots(seconds)
        optimizer = OPTIMIZERS[name].build(model.parameters(), **settings)
        callbacks = [Clock("cpu"), pictures]
        fit(model, convection(), optimizer, seconds=seconds[-1], callbacks=callbacks)
        text = json.dumps(settings)
        frames.append(pd.DataFrame(pictures.rows).assign(optimizer=name, settings=text))
    return pd.concat(frames, ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Three rows of maps an optimizer, a column a time."""
    names, columns = list(dict.fromkeys(table["optimizer"])), len(SECONDS)
    size = (2.3 * columns + 1, 5.4 * len(names))
    figure, axes = plt.subplots(3 * len(names), columns, figsize=size, layout="constrained")
    exact = convection().solution(grid()).numpy().reshape(SIDE, SIDE).T
    for name, rows in zip(names, axes.reshape(len(names), 3, columns), strict=True):
        states = table[table["optimizer"] == name].itertuples()
        for column, state in zip(rows.T, states, strict=False):
            column[0].set_title(f"{state.seconds:g} s: {state.relative_l2:.1e}", fontsize=9)
            u, residual = maps(state.u), maps(state.residual)
            for axis, values, bound in zip(
                column, (u, abs(u - exact), abs(residual)), (None, 1.0, 10.0), strict=True
            ):
                picture(axis, values, bound)
        for axis, label in zip(rows[:, 0], ("u", "|error|", "|residual|"), strict=True):
            axis.set_ylabel(f"{name}\n{label}", fontsize=9)
    write(figure, path)


def maps(text: str) -> np.ndarray:
    """The reverse of `numbers`, with x upwards and t to the right."""
    return np.array(json.loads(text)).reshape(SIDE, SIDE).T


def picture(axis: plt.Axes, values: np.ndarray, bound: float | None) -> None:
    """u between -1 and 1; errors and residuals on a logarithmic scale of six decades."""
    if bound is None:
        axis.imshow(values, origin="lower", cmap="RdBu_r", vmin=-1, vmax=1)
    else:
        logs = np.log10(values.clip(1e-12))
        top = np.log10(bound)
        axis.imshow(logs, origin="lower", cmap="magma", vmin=top - 6, vmax=top)
    axis.set(xticks=[], yticks=[])


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """The table without its maps."""
    return table[["optimizer", "settings", "seconds", "step", "loss", "relative_l2"]]
