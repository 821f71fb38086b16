"""The plain alternative to a hypernetwork: one PINN with the task among its inputs.

For one smooth number as the task this is simpler; what it reaches is a row of Table 3.

    train(network, parametric(family), steps=100)   # a network of d + p inputs
    u = AtTask(network, family.space, task)         # one of d inputs

Its inputs may be what solutions depend on, `TaskFeatures`, instead of point and task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.condition import Condition
from hyperlora_ext.family import FAMILY, Family
from hyperlora_ext.symmetry import shifted
from hyperlora_ext.task_spaces import TaskSpace
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.settings import FUNCTION, TENSOR, having, takes

__all__ = ["AtTask", "TaskFeatures", "parametric"]


SHARE = 8  # points of a condition that have a task in common: samplers go round the faces


class AtTask(nn.Module):
    """u of each point's own task: x -> network([x, embedded task]), in the task's frame.

    Args:
        network: of d + p inputs.
        space: of the tasks.
        tasks: (N, p); or one for all points, (p,) or (1, p).

    Raises:
        TypeError, ValueError: for what is none of these; it is named.
    """

    inputs: Tensor
    offsets: Tensor

    def __init__(self, network: nn.Module, space: TaskSpace, tasks: Tensor) -> None:
        super().__init__()
        FUNCTION("AtTask: network", network)
        having("embed", "Interval(0.0, 1.0)")("AtTask: space", space)
        TENSOR("AtTask: tasks", tasks)
        if tasks.ndim not in (1, 2) or tasks.shape[-1] != space.inputs:
            raise ValueError(
                f"AtTask: tasks of {space.inputs} number(s) have the shape (N, {space.inputs}), "
                f"found {tuple(tasks.shape)}"
            )
        tasks = tasks.reshape(-1, space.inputs)
        self.network = network
        self.register_buffer("inputs", space.embed(tasks))
        self.register_buffer("offsets", space.offset(tasks))

    def forward(self, x: Any) -> Any:
        """Fields (N, c) at the points x (N, d), or at a jet of them."""
        inputs = self.inputs.to(x.device, x.dtype).expand(len(x), -1)
        return self.network(torch.cat([shifted(x, self.offsets), inputs], dim=-1))


class TaskFeatures(nn.Module):
    """What solutions depend on, for a parametric network: [x, embedded task] -> features(x, task).

        def groups(x, speed):                       # of u_t + speed u_x = 0, t from 0 to 1
            waves = torch.cos(x[:, 1:]), torch.sin(x[:, 1:])
            return torch.cat([*waves, speed * x[:, :1] / 10 - 1], dim=1)

        network = nn.Sequential(TaskFeatures(space, groups), MLP((3, 24, 24, 1)))

    Where a change of units, or of frame, turns one solution into another, solutions depend on fewer
    numbers than point and task have: here on x and speed t. With these as inputs the network learns
    at one task what holds at all others.

    Args:
        space: of the tasks.
        features: x (N, d) and tasks (N, p), in their own frames -> (N, q), of order one; of torch
            functions, through which derivatives go.

    Raises:
        TypeError: for a space or features of another kind.

    Source: Buckingham, On physically similar systems (1914), for dimensionless groups.
    """

    def __init__(self, space: TaskSpace, features: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        having("unembed", "Interval(0.0, 1.0)")("TaskFeatures: space", space)
        FUNCTION("TaskFeatures: features", features)
        self.space, self.features = space, features

    def forward(self, inputs: Any) -> Any:
        """(N, q) of points with their embedded tasks (N, d + p), or of a jet of them.

        Raises:
            ValueError: for points without tasks.
        """
        dim = inputs.shape[-1] - self.space.inputs
        if dim < 1:
            raise ValueError(
                f"TaskFeatures: inputs have the shape (N, d + {self.space.inputs}), points with "
                f"their tasks; found {tuple(inputs.shape)}. Train on parametric(family), predict "
                "by AtTask(network, space, task)"
            )
        return self.features(inputs[:, :dim], self.space.unembed(inputs[:, dim:]))


@takes(family=FAMILY)
def parametric(family: Family) -> Problem:
    """All tasks as one problem for a network of d + p inputs.

    Its points are [x, task], (N, d + p); the trained network predicts as
    `AtTask(network, family.space, task)`.

    Raises:
        TypeError: for what is no family.
    """
    dim = family.domain.dim
    terms = {name: _term(c, family.space, dim) for name, c in family.conditions.items()}
    return Problem(f"{family.name}, all tasks", family.domain, terms)


def _term(condition: Condition, space: TaskSpace, dim: int) -> Term:
    """A condition at points of random tasks."""

    def points(
        n: int, generator: Generator | None = None, dtype: Any = None, device: Any = None
    ) -> Tensor:
        # Rounded up, and cut to n below
        tasks = space.sample(-(-n // SHARE), generator)
        x = condition.draw(SHARE, tasks, generator).flatten(0, 1)
        pairs = torch.cat([x, tasks.repeat_interleave(SHARE, dim=0)], dim=1)[:n]
        return pairs.to(dtype=dtype, device=device)

    def residual(u: Any, pairs: Tensor) -> Any:
        x, tasks = pairs[:, :dim], pairs[:, dim:]
        return condition.residual(AtTask(u, space, tasks), x, tasks)

    # Twenty tasks' worth, as many as `TaskProblem` draws by default
    return Term(points, residual, 20 * condition.size)
