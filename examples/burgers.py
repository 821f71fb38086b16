"""Burgers' equation, whose solution steepens to a front; the conditions are built in.

    python examples/burgers.py

u(t, x) = -sin(pi x) + t (1 - x^2) network(t, x) has the right initial and boundary values, so that
the equation is the only residual.
"""

from math import pi
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from kfac_pinn import GaussNewton, taylor
from kfac_pinn.pinn.networks import MLP, HardConstraint
from kfac_pinn.pinn.problem import relative_l2
from kfac_pinn.pinn.problems.burgers import burgers, cole_hopf


def build() -> HardConstraint:
    """The network with its initial and boundary values."""
    return HardConstraint(
        MLP((2, 16, 16, 16, 1)),
        lambda x: -torch.sin(pi * x[:, 1:2]),
        lambda x: x[:, 0:1] * (1 - x[:, 1:2] ** 2),
    )


def draw(model: torch.nn.Module, viscosity: float, path: Path) -> None:
    """The solution and its error over time and space."""
    import matplotlib.pyplot as plt

    t, x = torch.meshgrid(torch.linspace(0, 1, 101), torch.linspace(-1, 1, 201), indexing="ij")
    points = torch.stack([t.flatten(), x.flatten()], 1)
    u = model(points).detach()
    maps = {"u": u, "error": (u - cole_hopf(points, viscosity)).abs()}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        image = axis.pcolormesh(t, x, values.view_as(t))
        axis.set(xlabel="t", ylabel="x", title=name)
        figure.colorbar(image)
    figure.savefig(path, dpi=100)


def main(
    steps: int = 100,
    points: int = 6000,
    viscosity: float = 0.01,
    figure: Annotated[Path | None, typer.Option(help="where to draw the solution")] = None,
) -> None:
    """Train with Gauss-Newton and compare with the exact solution of Cole and Hopf."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    problem, model = burgers(viscosity), build()
    x = problem.domain.interior(points)

    def residual() -> Tensor:
        u, (u_t, u_x), u_xx = taylor(model, x, weights=[0.0, 1.0])
        return u_t + u * u_x - viscosity * u_xx

    optimizer = GaussNewton(model.parameters())
    places = problem.held_out(n=5000)
    for step in range(steps):
        loss = optimizer.step(residual)
        if step % 10 == 0 or step == steps - 1:
            error = relative_l2(model, lambda x: cole_hopf(x, viscosity), places)
            print(f"step {step:4d}  loss {loss:.1e}  relative L2 error {error:.1e}")
    if figure is not None:
        draw(model, viscosity, figure)


if __name__ == "__main__":
    typer.run(main)
