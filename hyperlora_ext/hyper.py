"""HyperLoRA: a network that emits, for every task, the low-rank update of one shared PINN."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperlora_ext.emitted_layers import LowRank, TaskLinear, Whole
from hyperlora_ext.lora import frozen, ranks_for, rewired
from hyperlora_ext.symmetry import Shifted, in_frame, shifted
from hyperlora_ext.task_spaces import Task, TaskSpace, single
from kfac_pinn.pinn.networks import MLP

__all__ = ["HIDDEN", "Fields", "HyperLoRA"]

HIDDEN = (512, 512, 256, 256, 128, 128)


class HyperLoRA(nn.Module):
    """Emits theta_t = H(task_t), the factors [A : B] of every linear layer of a shared base.

    At first every task has nearly the base: the last bias is the start of an adaptation (A random,
    B = 0) and the last weights are small. With A = B = 0 instead, training would start at a saddle.

    Args:
        base: u, any module of linear layers; shared and frozen.
        space: of the tasks (`family.space`): what they are, and the range trained on.
        rank: of every layer, or by name, as in `adapt`; None emits the whole base instead, weights
            and biases (the paper's starred rows).
        hidden: widths of the tanh hypernetwork.
        cap: as in `adapt`.

    Raises:
        ValueError: as `adapt`.

    Source: HyperLoRA for PDEs, section "Hypernetworks for low-ranked adaptation".
    """

    def __init__(
        self,
        base: nn.Module,
        space: TaskSpace,
        rank: int | Mapping[str, int] | None = 4,
        hidden: Sequence[int] = HIDDEN,
        cap: bool = True,
    ) -> None:
        super().__init__()
        self.space = space
        self.template = rewired(base, emitter(base, rank, cap))
        start = torch.cat([layer.emission.start() for layer in self.layers])
        self.network = MLP((space.inputs, *hidden, len(start))).to(start)
        last = self.network.layers[-1]
        with torch.no_grad():
            last.get_parameter("weight").mul_(0.1)
            last.get_parameter("bias").copy_(start)

    @property
    def layers(self) -> list[TaskLinear]:
        """The layers whose weights are emitted, in the order of theta."""
        return [m for m in self.template.modules() if isinstance(m, TaskLinear)]

    @property
    def size(self) -> int:
        """How many numbers a task is given."""
        return sum(layer.emission.size for layer in self.layers)

    def factors(self, tasks: Tensor) -> Tensor:
        """theta (T, size) of tasks (T, p), or of one task (p,).

        Raises:
            ValueError: for tasks of the wrong size.
        """
        like = next(self.network.parameters())
        return self.network(self.space.embed(self.space.check(tasks).to(like)))

    def fields(self, tasks: Tensor) -> Fields:
        """u of all tasks at once: maps their points, task after task, (T n, d) to (T n, c)."""
        return Fields(self, self.factors(tasks), self.space.offset(self.space.check(tasks)))

    def forward(self, tasks: Tensor, x: Tensor) -> Tensor:
        """u of each task at its own points x (T, n, d), or at shared ones (n, d): (T, n, c).

        Raises:
            ValueError: for tasks of the wrong size, or points of another number of tasks.
        """
        tasks = self.space.check(tasks)
        if x.ndim == 3 and len(x) != len(tasks):
            raise ValueError(f"points of {len(x)} tasks for {len(tasks)} tasks")
        points = x if x.ndim == 3 else x.expand(len(tasks), -1, -1)
        return self.fields(tasks)(points.flatten(0, 1)).unflatten(0, points.shape[:2])

    def pinn(self, task: Task) -> nn.Module:
        """The predicted network of one task (p,), ready to be used, or polished: adapters on it.

        Warns where the task lies outside the trained range.

        Raises:
            ValueError: for a task of the wrong size, or several.
        """
        task = single(self.space, task)
        self.space.warn(task[None])
        with torch.no_grad():
            return self.made_of(self.factors(task)[0], task)

    @torch.no_grad()
    def made_of(self, theta: Tensor, task: Tensor) -> nn.Module:
        """The network of a task (p,) with numbers theta (size,): the reverse of `numbers`."""
        parts = zip(self.layers, self.split(theta), strict=True)
        memo: dict[int, Any] = {id(layer): layer.emission.module(part) for layer, part in parts}
        network = copy.deepcopy(self.template, memo)
        return in_frame(network, self.space.offset(task[None])[0].to(theta))

    def numbers(self, pinn: nn.Module) -> Tensor:
        """theta (size,) of a network made by `pinn` and trained further: a regression target.

        Raises:
            ValueError: for a network of other layers or ranks.
        """
        names = [n for n, m in self.template.named_modules() if isinstance(m, TaskLinear)]
        network = pinn.network if isinstance(pinn, Shifted) else pinn
        parts = zip(self.layers, map(network.get_submodule, names), strict=True)
        return torch.cat([layer.emission.numbers(module) for layer, module in parts])

    def split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """theta (..., size) by layer."""
        return theta.split([layer.emission.size for layer in self.layers], dim=-1)


class Fields:
    """u of T tasks, with weights emitted once: a function of stacked points, or of their jet.

    Args:
        hyper: whose template is evaluated.
        theta: (T, size).
        offsets: of each task's frame, (T, q).

    Attributes:
        theta: as given.
        weights: lent to each layer, W (T, d_out, d_in) and b.
    """

    def __init__(self, hyper: HyperLoRA, theta: Tensor, offsets: Tensor) -> None:
        self.hyper, self.layers, self.offsets = hyper, hyper.layers, offsets
        self.theta = theta
        parts = zip(self.layers, hyper.split(theta), strict=True)
        self.weights = [layer.emission.weights(part) for layer, part in parts]

    def parameters(self) -> Iterator[Tensor]:
        """theta: its dtype and device are those of the points."""
        return iter([self.theta])

    def __call__(self, x: Any) -> Any:
        """Fields (T n, c) at points (T n, d)."""
        try:
            for layer, lent in zip(self.layers, self.weights, strict=True):
                layer.lent = lent
            return self.hyper.template(shifted(x, self.offsets))
        finally:
            for layer in self.layers:
                layer.lent = None


def emitter(base: nn.Module, rank: int | Mapping[str, int] | None, cap: bool) -> Any:
    """What stands for a layer of the base, by name: with weights emitted, or as it was."""
    if rank is None:
        return lambda name, linear: TaskLinear(Whole(frozen(linear)))
    ranks = ranks_for(base, rank, cap)

    def replace(name: str, linear: nn.Linear) -> nn.Module:
        kept = frozen(linear)
        return TaskLinear(LowRank(kept, ranks[name])) if name in ranks else kept

    return replace
