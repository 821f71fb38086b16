"""Poisson's equation in TorchPhysics.

python examples/frameworks/torchphysics_poisson.py
"""

from typing import Any

import pytorch_lightning
import torch
import torchphysics as tp
import typer
from torch import Tensor

from kfac_pinn import KFACPINN

X, U = tp.spaces.R2("x"), tp.spaces.R1("u")


def exact(x: Tensor) -> Tensor:
    """u = sin(pi x) sin(pi y)."""
    return torch.sin(torch.pi * x).prod(1, keepdim=True)


def poisson(u: Tensor, x: Tensor) -> Tensor:
    """Laplace u + 2 pi^2 u* = 0."""
    return tp.utils.laplacian(u, x) + 2 * torch.pi**2 * exact(x)


def solve(optimizer: type[torch.optim.Optimizer], steps: int, lr: float, **settings: Any) -> float:
    """The error on a grid after so many steps."""
    torch.manual_seed(0)
    square = tp.domains.Parallelogram(X, [0, 0], [1, 0], [0, 1])
    model = tp.models.FCN(input_space=X, output_space=U, hidden=(24, 24))
    # make_static(): the same points in every step, else each call of the loss draws new ones
    inside = tp.samplers.RandomUniformSampler(square, n_points=500).make_static()
    edge = tp.samplers.RandomUniformSampler(square.boundary, n_points=100).make_static()
    conditions = [
        tp.conditions.PINNCondition(module=model, sampler=inside, residual_fn=poisson),
        tp.conditions.PINNCondition(module=model, sampler=edge, residual_fn=lambda u: u, weight=10),
    ]
    setting = tp.OptimizerSetting(optimizer, lr=lr, optimizer_args=settings)
    solver = tp.solver.Solver(conditions, optimizer_setting=setting)
    pytorch_lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(solver)  # fmt: skip
    grid = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 50)])
    with torch.no_grad():
        found = model(tp.spaces.Points(grid, X)).as_tensor
    return float((found - exact(grid)).norm() / exact(grid).norm())


def main(steps: int = 100) -> None:
    """KFACPINN instead of OptimizerSetting(Adam, lr=1e-3); TorchPhysics wants an lr."""
    print(f"relative L2 error {solve(KFACPINN, steps, lr=1.0):.1e}")


if __name__ == "__main__":
    typer.run(main)
