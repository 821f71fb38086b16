"""The heat equation under Lightning's DDP strategy: each process has points of its own.

python examples/frameworks/lightning_processes.py 2
"""

from typing import Annotated

import torch
import typer
from lightning_heat import Heat, exact, lightning, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from kfac_pinn import KFACPINN, Processes


class ParallelHeat(Heat):
    """The same module; its optimizer is told of the processes that Lightning has started."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.kind(self.parameters(), processes=Processes(), **self.settings)


def points(processes: int) -> DataLoader:
    """All points in as many batches as processes: the sampler gives each one of them."""
    drawn = torch.Generator().manual_seed(0)
    inside = torch.rand(900, 2, generator=drawn).double()
    border = torch.rand(120, 2, generator=drawn).double()
    border[0::2, 0], border[1::4, 1], border[3::4, 1] = 0.0, 0.0, 1.0
    both = TensorDataset(inside.view(processes, -1, 2), border.view(processes, -1, 2))
    return DataLoader(both, batch_size=1, shuffle=False, collate_fn=one)


def one(items: list[tuple[Tensor, Tensor]]) -> list[list[Tensor]]:
    """A batch as `training_step` takes it."""
    return [[part] for part in items[0]]


def solve(processes: int, steps: int = 20, **settings: float) -> Heat:
    """The module after so many steps, in every process."""
    lightning.seed_everything(0)
    kind = ParallelHeat if processes > 1 else Heat
    model = kind(KFACPINN, **settings).double()
    strategy = "ddp" if processes > 1 else "auto"
    trainer(steps, devices=processes, strategy=strategy).fit(model, points(processes))
    return model


def main(processes: Annotated[int, typer.Argument()] = 2, steps: int = 20) -> None:
    """KFACPINN in so many processes."""
    model = solve(processes, steps, weight_decay=1e-2)
    grid = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 50).double()])
    with torch.no_grad():
        error = float((model.net(grid) - exact(grid)).norm() / exact(grid).norm())
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    norms = model.all_gather(theta.norm()).reshape(-1).tolist()
    if model.trainer.is_global_zero:  # one process prints, what all of them hold
        every = " ".join(f"{norm:.12f}" for norm in norms)
        print(f"relative L2 error {error:.1e}, norm of the parameters in each process: {every}")


if __name__ == "__main__":
    typer.run(main)
