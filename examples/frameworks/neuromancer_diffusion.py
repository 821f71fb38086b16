"""A diffusion equation in Neuromancer, with bounds on the solution.

The problem, the network and the points are those of Neuromancer's first example of a PINN.

python examples/frameworks/neuromancer_diffusion.py
"""

from typing import Any

import torch
import typer
from neuromancer.constraint import variable
from neuromancer.dataset import DictDataset
from neuromancer.loss import PenaltyLoss
from neuromancer.modules import blocks
from neuromancer.problem import Problem
from neuromancer.system import Node
from neuromancer.trainer import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from kfac_pinn import KFACPINN

BORDER = 100


def exact(x: Tensor, t: Tensor) -> Tensor:
    """u = e^-t sin(pi x)."""
    return torch.exp(-t) * torch.sin(torch.pi * x)


def points(inside: int) -> tuple[Tensor, Tensor]:
    """x in [-1, 1] and t in [0, 1], each (N, 1); the last BORDER lie at the start or an end."""
    x, t = 2 * torch.rand(inside + BORDER, 1) - 1, torch.rand(inside + BORDER, 1)
    t[-BORDER : -BORDER // 2] = 0
    x[-BORDER // 2 :] = x[-BORDER // 2 :].sign()
    return x.requires_grad_(), t.requires_grad_()


def diffusion(net: torch.nn.Module, values: Tensor) -> Problem:
    """u_t = u_xx + f with the initial and boundary values, and |u| <= 1."""
    u, x, t = variable("u"), variable("x"), variable("t")
    source = torch.exp(-t) * torch.sin(torch.pi * x) * (1 - torch.pi**2)
    equation = 100.0 * (u.grad(t) - u.grad(x).grad(x) + source == 0.0) ^ 2
    border = 100.0 * (u[-BORDER:] == values) ^ 2
    bounds = [100.0 * (u <= 1.0) ^ 2, 100.0 * (u >= -1.0) ^ 2]
    loss = PenaltyLoss(objectives=[equation, border], constraints=bounds)
    return Problem(nodes=[Node(net, ["x", "t"], ["u"])], loss=loss, grad_inference=True)


def solve(
    optimizer: type[torch.optim.Optimizer],
    steps: int,
    width: int = 32,
    inside: int = 1000,
    **settings: Any,
) -> float:
    """The error on a grid after so many epochs of one step."""
    torch.manual_seed(0)
    x, t = points(inside)
    net = blocks.MLP(insize=2, outsize=1, hsizes=[width, width], nonlin=torch.nn.Tanh)
    problem = diffusion(net, exact(x, t)[-BORDER:].detach())
    data = DictDataset({"x": x, "t": t}, name="train")
    Trainer(
        problem,
        DataLoader(data, batch_size=len(x), collate_fn=data.collate_fn),
        optimizer=optimizer(problem.parameters(), **settings),
        epochs=steps, epoch_verbose=steps, warmup=steps,
        train_metric="train_loss", dev_metric="train_loss", eval_metric="train_loss",
    ).train()  # fmt: skip
    grid = torch.cartesian_prod(torch.linspace(-1, 1, 50), torch.linspace(0, 1, 50))
    with torch.no_grad():
        found, expected = net(grid), exact(grid[:, :1], grid[:, 1:])
    return float((found - expected).norm() / expected.norm())


def main(steps: int = 100) -> None:
    """KFACPINN instead of Adam(problem.parameters(), lr=1e-3)."""
    print(f"relative L2 error {solve(KFACPINN, steps):.1e}")


if __name__ == "__main__":
    typer.run(main)
