"""CPU seconds of the parts of one exact step of a hypernetwork.

    python examples/reproduce/hyperlora/step_costs.py --family burgers1d_whole

What is left for evaluating the hypernetwork once a task instead of once a row is the difference of
the last two lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import typer
from configs import CONFIGS, Config

from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.task_problem import TaskProblem
from hyperlora_ext.task_residuals import EmittedLinearization, TaskResiduals, task_rows
from kfac_pinn.pinn.training.clock import now


def closure_of(config: Config, rank: int) -> TaskResiduals:
    """Tasks and points of one step, for a new hypernetwork."""
    hyper = HyperLoRA(config.network(), config.family.space, rank=rank)
    problem = TaskProblem(config.family, config.hyper_tasks, sizes=config.hyper_step)
    return problem.sample(torch.Generator().manual_seed(0), dtype=torch.float64).residuals(hyper)


def parts(closure: TaskResiduals) -> Iterator[tuple[str, float]]:
    """Each part of a step and its seconds."""
    trained = [p for p in closure.model.parameters() if p.requires_grad]
    spent, rows = timed(lambda: task_rows(closure))
    yield "rows", spent
    spent, linear = timed(lambda: EmittedLinearization(closure, trained, rows))
    yield "linearising the hypernetwork", spent
    spent, kernel = timed(linear.kernel)
    yield "kernel", spent
    damped = kernel + kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype)
    yield "Cholesky", timed(lambda: torch.linalg.cholesky(damped))[0]
    yield (
        "the hypernetwork at every row",
        timed(lambda: closure.model.factors(closure.tasks[rows.task]))[0],
    )
    yield "the hypernetwork at every task", timed(lambda: closure.model.factors(closure.tasks))[0]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = now()
    result = work()
    return now() - start, result


def main(family: str = "burgers1d_whole", rank: int = 4, repeats: int = 3) -> None:
    """Print each part of a step, the least of so many repeats."""
    torch.manual_seed(0)
    closure = closure_of(CONFIGS[family](), rank)
    runs = [dict(parts(closure)) for _ in range(repeats)]
    for name in runs[0]:
        typer.echo(f"{name:32} {min(run[name] for run in runs):.3f}")


if __name__ == "__main__":
    typer.run(main)
