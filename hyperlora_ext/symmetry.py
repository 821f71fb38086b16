"""Symmetries: tasks seen in frames of their own, moved in space or time, and mirrored tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kfac_pinn.pinn.windows import Shifted
from kfac_pinn.settings import FUNCTION, check, instance, takes

__all__ = ["Averaged", "Shifted", "Symmetry", "averaged", "in_frame", "shifted"]


@dataclass(frozen=True)
class Symmetry:
    """A mirror of a family: where u solves a task, x -> fields(u(points(x))) solves task(that).

    All three applied twice are the identity.

    Attributes:
        task: (p,) -> (p,).
        points: (N, d) -> (N, d), also of a jet.
        fields: (N, c) -> (N, c), likewise.

    Raises:
        TypeError: for what is no function.
    """

    task: Callable[[Tensor], Tensor]
    points: Callable[[Any], Any]
    fields: Callable[[Any], Any]

    def __post_init__(self) -> None:
        check(self, task=FUNCTION, points=FUNCTION, fields=FUNCTION)


SYMMETRY = instance(Symmetry, "a Symmetry, e.g. reflection()")


class Averaged(nn.Module):
    """x -> (u(x) + fields(v(points(x)))) / 2, v being the network of the mirrored task.

    What u and v get wrong each in its own way is halved, and the result has the symmetry exactly.
    """

    def __init__(self, network: nn.Module, mirrored: nn.Module, symmetry: Symmetry) -> None:
        super().__init__()
        self.network, self.mirrored, self.symmetry = network, mirrored, symmetry

    def forward(self, x: Any) -> Any:
        """Fields (N, c) at the points x (N, d), or at a jet of them."""
        mirrored = self.symmetry.fields(self.mirrored(self.symmetry.points(x)))
        return (self.network(x) + mirrored) / 2


@takes(predict=FUNCTION, symmetry=SYMMETRY)
def averaged(
    predict: Callable[[Tensor], nn.Module], symmetry: Symmetry
) -> Callable[[Tensor], nn.Module]:
    """Predictions averaged with those of the mirrored tasks: no training, twice the evaluation.

        errors = family.errors(averaged(hyper.pinn, reflection), tasks)

    The mean square error is at most the mean of those of both tasks.

    Args:
        predict: task (p,) -> network, as `hyper.pinn`.
        symmetry: of the family, as `hyperlora_ext.problems.reflection()`.

    Raises:
        ValueError: by the function, for a task that mirrored twice is another one.
    """

    def both(task: Tensor) -> nn.Module:
        mirrored = symmetry.task(task)
        if not torch.allclose(symmetry.task(mirrored), task, rtol=1e-9, atol=1e-12):
            raise ValueError(
                "Symmetry: task applied twice does not return the task: give a mirror, such as "
                "lambda task: -task"
            )
        return Averaged(predict(task), predict(mirrored), symmetry)

    return both


def in_frame(network: nn.Module, offset: Tensor) -> nn.Module:
    """The network as a task sees it whose last q coordinates are moved by (q,); q may be 0."""
    return Shifted(network, offset) if len(offset) else network


def shifted(x: Tensor, offsets: Tensor) -> Tensor:
    """Points (T n, d), or a jet of them, minus the offsets (T, q) of their tasks."""
    if not offsets.shape[1]:
        return x
    # The last q coordinates are moved: time comes first and stays
    padded = torch.nn.functional.pad(offsets, (x.shape[1] - offsets.shape[1], 0))
    each = padded.repeat_interleave(len(x) // len(offsets), dim=0)
    return x - each.to(x.device, x.dtype)
