"""A problem of your own: -Laplace u + u^3 = f on a disk, zero on its boundary, u* = 1 - |x|^2."""

from collections.abc import Callable
from pathlib import Path

import torch
import typer
from drawing import Out, save, training

import kfac_pinn as kp


def solution(x: torch.Tensor) -> torch.Tensor:
    return 1 - (x * x).sum(1, keepdim=True)


def equation(u: Callable, x: torch.Tensor) -> torch.Tensor:
    """f = 4 + (1 - |x|^2)^3; u and its Laplacian from one pass."""
    value, _, laplacian = kp.taylor(u, x, weights=[1.0, 1.0])
    return -laplacian + value**3 - 4 - solution(x) ** 3


def cubic() -> kp.Problem:
    """A domain, terms (where the points come from, what vanishes there), the exact solution."""
    disk = kp.Ball((0.0, 0.0))
    inside = kp.Term(disk.interior, equation, 600)
    edge = kp.Term(disk.boundary, lambda u, x: u(x), 100)
    return kp.Problem("cubic reaction on a disk", disk, {"inside": inside, "edge": edge}, solution)


def main(steps: int = 300, out: Out = Path("figures/own_problem.png")) -> None:
    """Train on it, and compare with the exact solution."""
    torch.set_default_dtype(torch.float64)
    problem, model, bar = cubic(), kp.MLP((2, 24, 24, 1)), [kp.Progress()]
    optimizer = kp.KFACPINN(model.parameters())
    history = kp.fit(model, problem, optimizer, steps=steps, every=10, callbacks=bar)
    save(out, training(history))
    print(f"relative L2 error {history.last['relative_l2']:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
