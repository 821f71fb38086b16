"""An operator of your own: diffusion in a medium with a grain, -div(K grad u) = f.

    python examples/own_operator.py

`taylor` gives derivatives along any directions. With K = L L^T the sum of the second derivatives
along the columns of L is the operator, summed inside the network:

    sum_d  l_d . H(u) l_d  =  trace(L^T H L)  =  sum_ij K_ij d_i d_j u.
"""

from collections.abc import Callable
from math import pi
from pathlib import Path

import torch
import typer
from drawing import Out, curves, field, save, square
from torch import Tensor
from tqdm.auto import trange

from kfac_pinn import KFACPINN, MLP, Box, relative_l2, taylor


def anisotropic(u: Callable[[Tensor], Tensor], x: Tensor, conductivity: Tensor) -> Tensor:
    """sum_ij K_ij d_i d_j u at the points x (N, d), for a constant K (d, d)."""
    columns = torch.linalg.cholesky(conductivity).T
    return taylor(u, x, directions=columns, weights=torch.ones(len(columns)))[-1]


def solution(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y), zero on the boundary."""
    return torch.sin(pi * x).prod(1, keepdim=True)


def main(steps: int = 200, out: Out = Path("figures/own_operator.png")) -> None:
    """Solve with a conductivity three times larger along one diagonal than across it."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    conductivity = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    box, model = Box.cube(2), MLP((2, 32, 32, 1))
    x, wall, held_out = box.interior(900), box.boundary(120), box.interior(5000)
    f = -anisotropic(solution, x, conductivity)

    def residuals() -> tuple[Tensor, Tensor]:
        return anisotropic(model, x, conductivity) + f, model(wall)

    optimizer, losses, errors = KFACPINN(model.parameters()), [], []
    for _ in (bar := trange(steps)):
        losses.append(float(optimizer.step(residuals)))
        errors.append(relative_l2(model, solution, held_out))
        bar.set_postfix_str(f"loss {losses[-1]:.1e}, error {errors[-1]:.1e}")

    grid = square((0, 0), (1, 1))
    u = model(grid)
    training = curves("training", "steps", range(steps), loss=losses, relative_L2_error=errors)
    save(out, field("u", grid, u), field("error", grid, u - solution(grid)), training)
    print(f"relative L2 error {errors[-1]:.1e} on held-out points, loss {losses[-1]:.1e}")


if __name__ == "__main__":
    typer.run(main)
