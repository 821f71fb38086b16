"""The deep Ritz method: minimise an energy instead of squared residuals.

    python examples/deep_ritz.py

    E(u) = mean over the square of 1/2 |grad u|^2 - f u,    u = 0 on the boundary,

has the minimiser -Laplace u = f. A `ConvexLoss` hands the optimizer the energy density; its second
derivative with respect to (u, grad u) makes the Gauss-Newton matrix. Only first derivatives of the
network are needed. The mean over the points stands for an integral: its error, small for Sobol
points, bounds that of the solution.
"""

import torch
import typer
from torch import Tensor

from kfac_pinn import KFACPINN, ConvexLoss, taylor
from kfac_pinn.pinn.domains import Box, sobol
from kfac_pinn.pinn.networks import MLP, HardConstraint, wall_distance
from kfac_pinn.pinn.problem import relative_l2

SQUARE = Box.cube(2, fill=sobol)


def solution(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y)."""
    return torch.sin(torch.pi * x).prod(1, keepdim=True)


def main(steps: int = 200, points: int = 4096) -> None:
    """Minimise the energy; the network vanishes on the boundary by construction."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = HardConstraint(MLP((2, 24, 24, 1)), lambda x: 0.0, wall_distance(SQUARE))
    x = SQUARE.interior(points)
    f = 2 * torch.pi**2 * solution(x)[:, 0]

    def density(u: Tensor, u_x: Tensor, u_y: Tensor) -> Tensor:
        return (u_x**2 + u_y**2) / 2 - f * u

    def energy() -> ConvexLoss:
        u, du = taylor(model, x, order=1)
        return ConvexLoss((u, *du), density)

    optimizer = KFACPINN(model.parameters())
    places = SQUARE.interior(2000)
    for step in range(steps):
        value = optimizer.step(energy)
        if step % 20 == 0 or step == steps - 1:
            error = relative_l2(model, solution, places)
            print(f"step {step:4d}  energy {value:.10f}  relative L2 error {error:.1e}")


if __name__ == "__main__":
    typer.run(main)
