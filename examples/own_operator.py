"""An operator of your own: diffusion in a medium with a grain, -div(K grad u) = f.

    python examples/own_operator.py

`taylor` gives derivatives along any directions. With K = L L^T the sum of the second derivatives
along the columns of L is the operator, summed inside the network:

    sum_d  l_d . H(u) l_d  =  trace(L^T H L)  =  sum_ij K_ij d_i d_j u.
"""

from math import pi

import torch
import typer
from torch import Tensor

from kfac_pinn import KFACPINN, taylor
from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Function, relative_l2


def anisotropic(u: Function, x: Tensor, conductivity: Tensor) -> Tensor:
    """sum_ij K_ij d_i d_j u at the points x (N, d), for a constant K (d, d)."""
    columns = torch.linalg.cholesky(conductivity).T
    return taylor(u, x, directions=columns, weights=torch.ones(len(columns)))[-1]


def solution(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y), zero on the boundary."""
    return torch.sin(pi * x).prod(1, keepdim=True)


def main(steps: int = 200) -> None:
    """Solve with a conductivity three times larger along one diagonal than across it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    conductivity = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    box, model = Box.cube(2), MLP((2, 32, 32, 1))
    x, wall = box.interior(900), box.boundary(120)
    f = -anisotropic(solution, x, conductivity)

    def residuals() -> tuple[Tensor, Tensor]:
        return anisotropic(model, x, conductivity) + f, model(wall)

    optimizer = KFACPINN(model.parameters())
    for _ in range(steps):
        loss = optimizer.step(residuals)
    error = relative_l2(model, solution, box.interior(5000))
    print(f"loss {loss:.1e}, relative L2 error {error:.1e}")


if __name__ == "__main__":
    typer.run(main)
