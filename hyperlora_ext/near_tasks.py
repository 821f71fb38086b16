"""A part of a space of tasks, around one of them: where training begins if the rest is hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from hyperlora_ext.task_spaces import Task, TaskSpace, shown, single, warn_outside
from kfac_pinn.settings import POSITIVE, SHARE, check, having

__all__ = ["Near"]


@dataclass(frozen=True)
class Near:
    """The tasks centre + share (t - centre), t the tasks of another space.

    They are embedded as that space embeds them, so that a network trained on them goes on with a
    larger share, and with all of them at last.

    Attributes:
        space: of all the tasks.
        centre: one of them, (p,).
        share: above 0, at most 1: all of them.

    Raises:
        TypeError, ValueError: for a setting of another kind, or a centre that is not in the space.
    """

    space: TaskSpace
    centre: Task
    share: float

    def __post_init__(self) -> None:
        check(self, space=having("sample", "Interval(0.0, 1.0)"), share=SHARE)
        check(self, share=POSITIVE)
        try:
            # Where and how spaces draw: in double, on the CPU
            centre = single(self.space, self.centre).to("cpu", torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = ValueError if isinstance(error, ValueError) else TypeError
            text = f"Near: the centre is no task, found {self.centre!r}: {error}"
            raise kind(text) from None
        if not self.space.contains(centre[None]):
            found = shown(centre) if isinstance(self.centre, Tensor) else repr(self.centre)
            raise ValueError(
                f"Near: the centre {found} is none of the tasks, as "
                f"{shown(self.space.middle())} is: training begins at one of them, an easy one"
            )
        object.__setattr__(self, "centre", centre)  # the dataclass is frozen

    @property
    def inputs(self) -> int:
        """p."""
        return self.space.inputs

    def sample(self, n: int, generator: Generator | None = None) -> Tensor:
        """Random ones, (n, p)."""
        return self._moved(self.space.sample(n, generator))

    def outside(self, n: int, generator: Generator | None = None) -> Tensor:
        """Beyond them."""
        return self._moved(self.space.outside(n, generator))

    def middle(self) -> Tensor:
        """The middle of all tasks, moved like all."""
        return self._moved(self.space.middle())

    def embed(self, tasks: Tensor) -> Tensor:
        """As the whole space does."""
        return self.space.embed(tasks)

    def unembed(self, inputs: Any) -> Any:
        """As the whole space does."""
        return self.space.unembed(inputs)

    def offset(self, tasks: Tensor) -> Tensor:
        """As the whole space does."""
        return self.space.offset(tasks)

    def contains(self, tasks: Tensor) -> Tensor:
        """Which tasks are among them."""
        centre = self.centre.to(tasks)  # type: ignore[union-attr]
        return self.space.contains(centre + (tasks - centre) / self.share)

    def check(self, tasks: Task) -> Tensor:
        """As the whole space does."""
        return self.space.check(tasks)

    def warn(self, tasks: Tensor) -> None:
        """Say so where tasks are not among them."""
        near = f"{self.share:g} of the way from {shown(self.centre)}"  # type: ignore[arg-type]
        warn_outside(self.contains(tasks), near)

    def _moved(self, tasks: Tensor) -> Tensor:
        return self.centre + self.share * (tasks - self.centre)
