"""The seven regimes of the paper: three for one task, four for a hypernetwork over a family.

Each takes `train`, a schedule: `LevenbergSchedule(...)` (ours) or `PublishedSchedule(...)` (the
paper's), called as train(model, problem, steps, seconds, seed, callbacks). Hypernetworks have
adapters or, made with rank=None, have not (the paper's starred rows).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.condition import Condition
from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.ranks import Ranks
from hyperlora_ext.schedules import Train
from hyperlora_ext.task_problem import TaskProblem, known_fields
from kfac_pinn.linalg import damped_solve
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training import History

__all__ = [
    "by_data",
    "by_physics",
    "by_pinns",
    "by_weights",
    "f_pinn",
    "l_pinn",
    "pinn",
    "teachers",
]

Tasks = Callable[[Generator | None], Tensor]


def pinn(network: nn.Module, problem: Problem, train: Train, **budget: Any) -> nn.Module:
    """PINN: all weights, from a random start."""
    train(network, problem, **budget)
    return network


def f_pinn(base: nn.Module, problem: Problem, train: Train, **budget: Any) -> nn.Module:
    """F-PINN: all weights, from those of another task; the base is not changed."""
    return pinn(copy.deepcopy(base).requires_grad_(), problem, train, **budget)


def l_pinn(
    base: nn.Module,
    problem: Problem,
    train: Train,
    rank: Ranks = 4,
    aimed: bool = True,
    **budget: Any,
) -> nn.Module:
    """L-PINN: the factors A, B of every layer; weights and biases of the base are frozen.

    Args:
        aimed: A starts along the full Gauss-Newton step, instead of the paper's random one.
    """
    return pinn(adapt(base, rank, aimed=problem if aimed else None), problem, train, **budget)


def by_physics(
    hyper: HyperLoRA,
    family: Family,
    tasks: Tasks,
    train: Train,
    sizes: Mapping[str, int] | None = None,
    **budget: Any,
) -> History:
    """HyperPINN + LoRA: the residuals of all tasks; no solutions are needed."""
    return train(hyper, TaskProblem(family, tasks, sizes=sizes), **budget)


def by_data(
    hyper: HyperLoRA, family: Family, tasks: Tasks, train: Train, size: int = 200, **budget: Any
) -> History:
    """Benchmark 1: mean squared error against the true solutions, at `size` points a task."""
    problem = TaskProblem(family, tasks, known_fields(family), {"field": size})
    return train(hyper, problem, **budget)


def by_pinns(
    hyper: HyperLoRA,
    family: Family,
    known: tuple[Tensor, list[nn.Module]],
    train: Train,
    size: int = 200,
    **budget: Any,
) -> History:
    """Benchmark 3: mean squared error against fields that PINNs predict, one trained a task.

    Args:
        known: the tasks (T, p) and their networks (`teachers`).
    """
    tasks, networks = known
    grid = family.grid.to(next(networks[0].parameters()))
    with torch.no_grad():
        fields = torch.stack([family.observed(network)(grid).cpu() for network in networks])
    terms = known_fields(family, lambda tasks: fields)
    return train(hyper, TaskProblem(family, tasks, terms, {"field": size}), **budget)


def by_weights(
    hyper: HyperLoRA,
    family: Family,
    known: tuple[Tensor, list[nn.Module]],
    train: Train | None = None,
    **budget: Any,
) -> float:
    """Benchmark 2: regression on the factors of PINNs trained one a task.

    Returns the root mean square misfit that is left.

    Args:
        known: the tasks (T, p) and their networks (`teachers`).
        train: a schedule of torch's optimizers for all layers, as the paper's `PUBLISHED_HYPER`;
            None: the last layer alone, exactly (`fit_last_layer`), in a moment.
    """
    tasks, networks = known
    numbers = torch.stack([hyper.numbers(v) for v in networks])
    if train is None:
        fit_last_layer(hyper, tasks, numbers)
    else:
        train(hyper, TaskProblem(family, tasks, known_weights(numbers), {"theta": 1}), **budget)
    with torch.no_grad():
        return float((numbers - hyper.factors(tasks)).square().mean().sqrt())


def known_weights(numbers: Tensor) -> dict[str, Condition]:
    """The term of regression on the numbers (T, size) of trained networks, whatever they make.

    Its residuals do not pass through the networks: for torch's optimizers only.
    """

    def points(n: int, tasks: Tensor, generator: Generator | None) -> Tensor:
        """No points: the numbers themselves, (T, size, 1)."""
        return numbers[..., None].cpu()

    def residual(u: Any, known: Tensor, task: Tensor) -> Tensor:
        """All entries of H(task) - theta."""
        return u.theta.reshape(-1, 1) - known

    return {"theta": Condition(points, residual, 1)}


@torch.no_grad()
def fit_last_layer(hyper: HyperLoRA, tasks: Tensor, numbers: Tensor) -> None:
    """Ridge regression of the last layer, theta_t = V phi_t + c, by the kernel phi phi^T + 1.

    Its damping is the one that predicts each task best from the others.
    """
    last = hyper.network.layers[-1]
    inputs: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    misfit = numbers - hyper.factors(tasks)
    handle.remove()
    (phi,) = inputs
    kernel = phi @ phi.T + 1
    size = float(kernel.diagonal().mean())
    dampings = [size * 10.0**power for power in range(-8, 3)]
    damping = min(dampings, key=lambda damping: left_out(kernel, misfit, damping))
    alpha = damped_solve(kernel, misfit, damping)
    last.get_parameter("weight").add_(alpha.T @ phi)
    last.get_parameter("bias").add_(alpha.sum(0))


def left_out(kernel: Tensor, misfit: Tensor, damping: float) -> float:
    """Mean square of what is left of each row (T, n) where it is predicted from the others.

    With A = (K + damping I)^-1, (A Y)_i / A_ii.
    """
    inverse = torch.linalg.inv(kernel + damping * torch.eye(len(kernel)).to(kernel))
    return float((inverse @ misfit / inverse.diagonal()[:, None]).square().mean())


def teachers(
    hyper: HyperLoRA, family: Family, tasks: Tensor, train: Train, **budget: Any
) -> list[nn.Module]:
    """PINNs for benchmarks 2 and 3, one a task, each from the hypernetwork's own prediction.

    From one start the factors of neighbouring tasks are comparable; from random ones they are
    not, for B A = (B R) (R^-1 A).
    """
    return [pinn(hyper.pinn(task), family.problem(task), train, **budget) for task in tasks]
