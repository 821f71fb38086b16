"""Laplace's equation in neurodiffeq, its boundary values built into the solution.

The problem, the network and the points are those of neurodiffeq's README.

python examples/frameworks/neurodiffeq_laplace.py
"""

from typing import Any

import torch
import typer
from neurodiffeq import diff
from neurodiffeq.conditions import DirichletBVP2D
from neurodiffeq.generators import Generator2D
from neurodiffeq.networks import FCNN
from neurodiffeq.solvers import Solver2D
from torch import Tensor

from kfac_pinn import KFACPINN


def exact(x: Tensor, y: Tensor) -> Tensor:
    """u = sin(pi y) sinh(pi (1 - x)) / sinh(pi)."""
    return (
        torch.sin(torch.pi * y)
        * torch.sinh(torch.pi * (1 - x))
        / torch.sinh(torch.tensor(torch.pi))
    )


def laplace(u: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    """u_xx + u_yy = 0."""
    return [diff(u, x, order=2) + diff(u, y, order=2)]


def solve(
    optimizer: type[torch.optim.Optimizer],
    steps: int,
    width: int = 512,
    points: int = 32,
    **settings: Any,
) -> float:
    """The error on a grid after so many epochs, each one step on new points x points points."""
    torch.manual_seed(0)
    nothing = torch.zeros_like
    condition = DirichletBVP2D(
        x_min=0, x_min_val=lambda y: torch.sin(torch.pi * y), x_max=1, x_max_val=nothing,
        y_min=0, y_min_val=nothing, y_max=1, y_max_val=nothing,
    )  # fmt: skip
    net = FCNN(n_input_units=2, n_output_units=1, hidden_units=(width,))
    solver = Solver2D(
        pde_system=laplace,
        conditions=[condition],
        nets=[net],
        xy_min=(0, 0),
        xy_max=(1, 1),
        train_generator=Generator2D((points, points), method="equally-spaced-noisy"),
        optimizer=optimizer(net.parameters(), **settings),
    )
    solver.fit(max_epochs=steps, tqdm_file=None)
    x, y = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 40)]).unbind(1)
    found = solver.get_solution(best=False)(x, y).detach()
    return float((found - exact(x, y)).norm() / exact(x, y).norm())


def main(steps: int = 100) -> None:
    """KFACPINN instead of Adam(net.parameters(), lr=1e-3)."""
    print(f"relative L2 error {solve(KFACPINN, steps):.1e}")


if __name__ == "__main__":
    typer.run(main)
