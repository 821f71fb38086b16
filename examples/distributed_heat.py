"""The heat equation in four dimensions of space with its points shared out among processes.

torchrun --nproc_per_node 2 examples/distributed_heat.py
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import typer
from drawing import Out, curves, save
from matplotlib.axes import Axes
from torch import Generator, Tensor
from tqdm import trange

from kfac_pinn import KFACPINN, MLP, Processes, heat_4d, relative_l2


def shares(total: int, rank: int, count: int) -> int:
    """How many of so many points a process has: they need not be divisible."""
    return total * (rank + 1) // count - total * rank // count


def along_a_diagonal(model: MLP, solution: Callable[[Tensor], Tensor], axis: Axes) -> None:
    """Draw u and u* at x = (s, s, s, s), at three times."""
    s = torch.linspace(0, 1, 101)
    for t in (0.0, 0.5, 1.0):
        x = torch.stack([torch.full_like(s, t), s, s, s, s], 1)
        axis.plot(s, model(x).detach(), label=f"t = {t}")
        axis.plot(s, solution(x), "k:", linewidth=1)
    axis.set(title="u at (s, s, s, s); dotted: u*", xlabel="s")
    axis.legend()


def main(
    steps: int = 60,
    points: int = 6000,
    seed: int = 0,
    out: Out = Path("figures/distributed_heat.png"),
) -> None:
    """Train, then say how far the network is from u* = exp(-t) sum_i sin(2 x_i)."""
    processes = None
    if dist.is_torchelastic_launched():  # by torchrun
        dist.init_process_group("gloo")
        processes = Processes()
    rank, count = (processes.rank, processes.count) if processes else (0, 1)
    torch.set_default_dtype(torch.float64)
    problem = heat_4d()
    torch.manual_seed(seed)  # the same network everywhere
    model = MLP((5, 24, 24, 1))
    # but points of one's own
    sizes = {name: shares(points // len(problem.terms), rank, count) for name in problem.terms}
    batch = problem.sample(Generator().manual_seed(seed * count + rank), sizes)
    x = problem.held_out(Generator().manual_seed(seed))
    optimizer = KFACPINN(model.parameters(), processes=processes)
    numbers, errors = [], []
    bar = trange(steps, disable=rank > 0)
    for step in bar:
        loss = float(optimizer.step(batch.residuals(model)))
        numbers.append(step + 1)
        errors.append(relative_l2(model, problem.solution, x))
        bar.set_postfix_str(f"loss {loss:.1e}, error {errors[-1]:.1e}")
    if rank == 0:
        error = curves("on held-out points", "steps", numbers, relative_L2_error=errors)
        save(out, lambda axis: along_a_diagonal(model, problem.solution, axis), error)
        print(f"relative L2 error {errors[-1]:.1e} on held-out points, {count} processes")
    if processes:
        dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
