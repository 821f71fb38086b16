"""The heat equation in a LightningModule with automatic optimization.

python examples/frameworks/lightning_heat.py
"""

from typing import Any

import lightning
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kfac_pinn import KFACPINN

Kind = type[torch.optim.Optimizer]


def derivative(u: Tensor, x: Tensor) -> Tensor:
    """du/dx of every row."""
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def exact(x: Tensor) -> Tensor:
    """u(t, x) = exp(-pi^2 t / 4) sin(pi x)."""
    return torch.exp(-(torch.pi**2) * x[:, :1] / 4) * torch.sin(torch.pi * x[:, 1:])


class Heat(lightning.LightningModule):
    """u_t = u_xx / 4 on [0, 1]^2, u(0, x) = sin(pi x), u(t, 0) = u(t, 1) = 0."""

    def __init__(self, optimizer: Kind, **settings: Any) -> None:
        super().__init__()
        self.kind, self.settings = optimizer, settings
        self.net = nn.Sequential(
            nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
        )

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        inside, border = batch[0][0].requires_grad_(), batch[1][0]
        first = derivative(self.net(inside), inside)
        second = derivative(first[:, 1:], inside)[:, 1:]
        equation = (first[:, :1] - second / 4).square().mean()
        conditions = nn.functional.mse_loss(self.net(border), exact(border))
        self.log_dict({"equation": equation, "conditions": conditions}, prog_bar=True)
        return equation + 10 * conditions

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.kind(self.parameters(), **self.settings)

    def error(self) -> float:
        """Relative L2 error on a grid."""
        grid = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 50)])
        with torch.no_grad():
            return float((self.net(grid) - exact(grid)).norm() / exact(grid).norm())


def points() -> DataLoader:
    """900 points inside and 120 on the border and at the start, as one batch."""
    inside, border = torch.rand(900, 2), torch.rand(120, 2)
    border[:60, 0], border[60:90, 1], border[90:, 1] = 0.0, 0.0, 1.0
    both = TensorDataset(inside[None], border[None])
    return DataLoader(both, batch_size=None, collate_fn=lambda item: [x[None] for x in item])


def trainer(steps: int, **options: Any) -> lightning.Trainer:
    """A trainer that writes nothing."""
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(max_epochs=steps, **{**defaults, **quiet, **options})


def solve(optimizer: Kind, steps: int, **settings: Any) -> float:
    """The error after so many steps."""
    lightning.seed_everything(0)
    model = Heat(optimizer, **settings)
    trainer(steps).fit(model, points())
    return model.error()


def main(steps: int = 100) -> None:
    """KFACPINN instead of Adam, lr=1e-3."""
    print(f"relative L2 error {solve(KFACPINN, steps):.1e}")


if __name__ == "__main__":
    typer.run(main)
