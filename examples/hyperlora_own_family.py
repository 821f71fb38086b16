"""A family of your own: u_xx + a u_yy + b e^u = 0 in a disk, u = 0 around; no solution known.

python examples/hyperlora_own_family.py
"""

from collections.abc import Callable
from pathlib import Path

import torch
import typer
from drawing import Out, field, save, square
from torch import Tensor

import hyperlora_ext as hl
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP, Ball, HardConstraint, Progress, taylor

disk = Ball((0.0, 0.0))
space = hl.Intervals((hl.Interval(0.5, 2.0), hl.Interval(0.5, 2.0)))  # a and b


def equation(u: Callable[[Tensor], Tensor], x: Tensor, task: Tensor) -> Tensor:
    """The task: a and b at every point, (N, 2)."""
    value, _, (u_xx, u_yy) = taylor(u, x)
    return u_xx + task[:, :1] * u_yy + task[:, 1:] * torch.exp(value)


def edge(x: Tensor) -> Tensor:
    """Zero around."""
    return 1 - x[:, :1] * x[:, :1] - x[:, 1:] * x[:, 1:]


inside = hl.Condition(disk.interior, equation, 1000)
family = hl.Family("Bratu", disk, space, {"inside": inside})


def main(
    steps: int = 60, shown: int = 3, out: Out = Path("figures/hyperlora_own_family.png")
) -> None:
    """One network for a = b = 1, a hypernetwork for the others; some of them, polished."""
    torch.manual_seed(0)
    bar = [Progress()]
    network = HardConstraint(MLP((2, 16, 16, 1)), lambda x: 0 * x[:, :1], edge).double()
    one = family.problem(torch.tensor([1.0, 1.0]))
    LevenbergSchedule()(network, one, steps=40, callbacks=bar)
    h = hl.HyperLoRA(network, space, rank=4, hidden=(64, 64))
    tasks = hl.TaskProblem(family, 20, sizes={"inside": 40})
    LevenbergSchedule(every=3)(h, tasks, steps=steps, callbacks=bar)

    x, panels = square((-1, -1), (1, 1)).double(), []
    outside = x.norm(dim=1, keepdim=True) > 1
    for task in space.sample(shown, torch.Generator().manual_seed(1)):
        solved = hl.solve(h, family, task, tolerance=1e-8, steps=10)
        u = solved.model(x).masked_fill(outside, torch.nan)
        panels.append(field(f"a = {task[0]:.2f}, b = {task[1]:.2f}", x, u))
        print(f"{solved.predicted:.0e} predicted, {solved.loss:.0e} after {solved.steps} steps")
    save(out, *panels)
    print(f"{shown} tasks, the last one to a held-out loss of {solved.loss:.0e}")


if __name__ == "__main__":
    typer.run(main)
