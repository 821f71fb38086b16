"""The deep Ritz method: minimise an energy instead of squared residuals.

    python examples/deep_ritz.py

    E(u) = mean over the square of 1/2 |grad u|^2 - f u,    u = 0 on the boundary,

has the minimiser -Laplace u = f. A `ConvexLoss` hands the optimizer the energy density; its second
derivative with respect to (u, grad u) makes the Gauss-Newton matrix. Only first derivatives of the
network are needed. The mean over the points stands for an integral: between fixed points a network
can lower it without coming nearer to the solution, so that they are new every five steps.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import typer
from drawing import Out, curves, deviation, field, save, square
from torch import Tensor
from tqdm.auto import trange

from kfac_pinn import (
    KFACPINN,
    MLP,
    Affordable,
    Box,
    ConvexLoss,
    HardConstraint,
    relative_l2,
    sobol,
    taylor,
    wall_distance,
)

SQUARE = Box.cube(2, fill=sobol)


def solution(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y)."""
    return torch.sin(torch.pi * x).prod(1, keepdim=True)


def main(steps: int = 60, points: int = 4096, out: Out = Path("figures/deep_ritz.png")) -> None:
    """Minimise the energy; the network vanishes on the boundary by construction."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = HardConstraint(MLP((2, 24, 24, 1)), lambda x: 0.0, wall_distance(SQUARE))

    def energy_at(x: Tensor) -> Callable[[], ConvexLoss]:
        f = 2 * torch.pi**2 * solution(x)[:, 0]

        def density(u: Tensor, u_x: Tensor, u_y: Tensor) -> Tensor:
            return (u_x**2 + u_y**2) / 2 - f * u

        def energy() -> ConvexLoss:
            u, du = taylor(model, x, order=1)
            return ConvexLoss((u, *du), density)

        return energy

    # Exact steps follow points that are new every five steps too far
    optimizer = KFACPINN(model.parameters(), exact=Affordable(0))
    held_out, errors = SQUARE.interior(2000), []
    for step in (bar := trange(steps)):
        if step % 5 == 0:
            energy = energy_at(SQUARE.interior(points))
        value = float(optimizer.step(energy))
        errors.append(relative_l2(model, solution, held_out))
        bar.set_postfix_str(f"energy {value:.10f}, error {errors[-1]:.1e}")

    grid = square((0, 0), (1, 1))
    u = model(grid)
    training = curves("training", "steps", range(steps), relative_L2_error=errors)
    error = deviation("error u - u*", grid, u - solution(grid))
    save(out, field("u", grid, u), error, training)
    print(f"energy {value:.10f}, relative L2 error {errors[-1]:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
