"""HyperLoRA: a network that emits, for every task, the low-rank update of one shared PINN."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperlora_ext.base_check import PROBLEM, warn_unsolved
from hyperlora_ext.emitted_layers import LowRank, TaskLinear, Whole
from hyperlora_ext.lora import frozen
from hyperlora_ext.ranks import Ranks, ranks_for
from hyperlora_ext.rewiring import linear_layers, rewired
from hyperlora_ext.symmetry import Shifted, in_frame, shifted
from hyperlora_ext.task_spaces import Task, TaskSpace, single
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.settings import FLAG, FUNCTION, MODULE, having, many, optional, takes, whole

__all__ = ["HIDDEN", "Fields", "HyperLoRA"]

# Narrowing: the last layer, times the number of emitted factors, is nearly all of the parameters.
HIDDEN = (512, 512, 256, 256, 128, 128)
Maker = Callable[[int, int], nn.Module]


class HyperLoRA(nn.Module):
    """Emits theta_t = start + H(task_t), the factors [A : B] of every linear layer of a base.

    The start (A random, B = 0) leaves the base as it is; with A = B = 0 training would start at a
    saddle. H is a tanh network with small last weights, so that at first every task has nearly the
    base, or any module of the user's.

    Args:
        base: u, any module of linear layers; shared and frozen.
        space: of the tasks (`family.space`): what they are, and the range trained on.
        rank: of every layer, or by name, as in `adapt`; None emits the whole base instead, weights
            and biases (the paper's starred rows).
        hidden: widths of the tanh network.
        cap: as in `adapt`.
        network: another H: a module that maps embedded tasks (T, space.inputs) to (T, size), each
            by itself, or what makes one, called as network(space.inputs, size). Give its last layer
            small weights.
        solves: the problem that the base was trained on, if it is to be checked, as in `adapt`.

    Raises:
        TypeError: for what is none of these; it is named.
        ValueError: as `adapt`, and for a network that emits another number of numbers.

    Source: HyperLoRA for PDEs, section "Hypernetworks for low-ranked adaptation".
    """

    start: Tensor

    def __init__(
        self,
        base: nn.Module,
        space: TaskSpace,
        rank: Ranks | None = 4,
        hidden: Sequence[int] = HIDDEN,
        cap: bool = True,
        *,
        network: nn.Module | Maker | None = None,
        solves: Problem | None = None,
    ) -> None:
        super().__init__()
        MODULE("HyperLoRA: base", base)
        having("embed", "Interval(0.0, 1.0)")("HyperLoRA: space", space)
        FLAG("HyperLoRA: cap", cap)
        many(whole(1), 0)("HyperLoRA: hidden", hidden)
        # A class of modules makes one, too
        if not (isinstance(network, type) and issubclass(network, nn.Module)):
            optional(FUNCTION)("HyperLoRA: network", network)
        optional(PROBLEM)("HyperLoRA: solves", solves)
        if solves is not None:
            warn_unsolved(base, solves)
        self.space = space
        self.template = rewired(base, *emitter(base, rank, cap))
        start = torch.cat([layer.emitted.start() for layer in self.layers])
        # A buffer: it moves with the module, is saved, and is not trained
        self.register_buffer("start", start)
        if not isinstance(network, nn.Module):
            network = made(network or tanh_network(hidden), space.inputs, len(start))
        self.network = network.to(start)
        self._check()

    @property
    def layers(self) -> list[TaskLinear]:
        """The layers whose weights are emitted, in the order of theta."""
        return [m for m in self.template.modules() if isinstance(m, TaskLinear)]

    @property
    def size(self) -> int:
        """How many numbers a task is given."""
        return len(self.start)

    def factors(self, tasks: Tensor) -> Tensor:
        """theta (T, size) of tasks (T, p), or of one task (p,).

        Raises:
            ValueError: for tasks of the wrong size.
        """
        embedded = self.space.embed(self.space.check(tasks).to(self.start))
        return self.start + self.network(embedded)

    def fields(self, tasks: Tensor) -> Fields:
        """u of all tasks at once: maps their points, task after task, (T n, d) to (T n, c)."""
        return Fields(self, self.factors(tasks), self.space.offset(self.space.check(tasks)))

    def forward(self, tasks: Tensor, x: Tensor | None = None) -> Tensor:
        """u of each task at its own points x (T, n, d), or at shared ones (n, d): (T, n, c).

        Raises:
            TypeError: without points, as networks of one task are called.
            ValueError: for tasks of the wrong size, or points of another number of tasks.
        """
        if x is None:
            raise TypeError(
                "a HyperLoRA is a function of tasks and points: train it on TaskProblem(family), "
                "and take hyper.pinn(task) where the network of one task is meant"
            )
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
        # deepcopy with the replacements as if copied already: what else the base has stays as it is
        memo: dict[int, Any] = {id(layer): layer.emitted.module(part) for layer, part in parts}
        network = copy.deepcopy(self.template, memo)
        return in_frame(network, self.space.offset(task[None])[0].to(theta))

    @takes(pinn=MODULE)
    def numbers(self, pinn: nn.Module) -> Tensor:
        """theta (size,) of a network made by `pinn` and trained further: a regression target.

        Raises:
            ValueError: for a network of other layers or ranks.
        """
        names = [n for n, m in self.template.named_modules() if isinstance(m, TaskLinear)]
        network = pinn.network if isinstance(pinn, Shifted) else pinn
        parts = zip(self.layers, map(network.get_submodule, names), strict=True)
        return torch.cat([layer.emitted.numbers(module) for layer, module in parts])

    def split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """theta (..., size) by layer."""
        return theta.split([layer.emitted.size for layer in self.layers], dim=-1)

    @torch.no_grad()
    def _check(self) -> None:
        """The network takes a stack of embedded tasks, and emits as many numbers as are needed."""
        # Two, so that a network for one task alone, or one that mixes tasks' rows, is found out
        tasks = torch.stack([torch.zeros(self.space.inputs), torch.ones(self.space.inputs)])
        expected, found = (2, self.size), f"takes no stack {tuple(tasks.shape)} of tasks"
        try:
            theta = self.network(tasks.to(self.start))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(NETWORK.format(found=found, expected=expected)) from error
        if not isinstance(theta, Tensor) or theta.shape != expected:
            shape = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            found = f"emits {shape} for a stack {tuple(tasks.shape)} of tasks"
            raise ValueError(NETWORK.format(found=found, expected=expected))


NETWORK = (
    "the hypernetwork {found}: map (T, inputs) to (T, size), here to {expected}, one row a task. "
    "Given as a function of (inputs, size) instead of a module, it is told both"
)


def made(maker: Maker, inputs: int, size: int) -> nn.Module:
    """The hypernetwork that a function or a class of modules makes."""
    try:
        return maker(inputs, size)
    except TypeError as error:
        name = getattr(maker, "__name__", type(maker).__name__)
        raise TypeError(
            f"HyperLoRA: network is {name}, which cannot be called as {name}({inputs}, {size}): "
            f"{error}. Give a module, or what makes one of (inputs, size)"
        ) from error


def tanh_network(hidden: Sequence[int]) -> Maker:
    """The paper's hypernetwork, with a small last layer."""

    def make(inputs: int, size: int) -> nn.Module:
        network = MLP((inputs, *hidden, size))
        with torch.no_grad():
            # A tenth of the usual: every task begins near the base
            network.layers[-1].get_parameter("weight").mul_(0.1)
            network.layers[-1].get_parameter("bias").zero_()
        return network

    return make


class Fields:
    """u of T tasks, with numbers emitted once: a function of stacked points, or of their jet.

    Args:
        hyper: whose template is evaluated.
        theta: (T, size).
        offsets: of each task's frame, (T, q).

    Attributes:
        theta: as given.
    """

    def __init__(self, hyper: HyperLoRA, theta: Tensor, offsets: Tensor) -> None:
        self.hyper, self.theta, self.offsets = hyper, theta, offsets

    def parameters(self) -> Iterator[Tensor]:
        """theta: its dtype and device are those of the points."""
        return iter([self.theta])

    def lent(self, points: int) -> Tensor:
        """The numbers of each task, to be used at so many points in all."""
        return self.theta

    def __call__(self, x: Any) -> Any:
        """Fields (T n, c) at points (T n, d)."""
        layers, parts = self.hyper.layers, self.hyper.split(self.lent(len(x)))
        try:
            for layer, part in zip(layers, parts, strict=True):
                layer.lent = part
            return self.hyper.template(shifted(x, self.offsets))
        # Numbers are lent for one pass: left behind they would belong to the wrong tasks
        finally:
            for layer in layers:
                layer.lent = None


def emitter(
    base: nn.Module, rank: Ranks | None, cap: bool
) -> tuple[Iterable[str], Callable[[str, nn.Linear], nn.Module]]:
    """Which layers of the base have their weights emitted, and what stands for each.

    Raises:
        ValueError: for ranks that do not fit, and for a layer that is complex.
    """
    layers = linear_layers(base)
    ranks = dict.fromkeys(layers, 0) if rank is None else ranks_for(base, rank, cap)
    if wrong := [name for name in ranks if layers[name].weight.is_complex()]:
        real = {name: 4 for name, layer in layers.items() if not layer.weight.is_complex()}
        raise ValueError(
            f"layer {wrong[0]!r} is complex, and a hypernetwork emits real numbers: name the ranks "
            f"of the others, rank={real}"
        )
    if rank is None:
        return ranks, lambda name, linear: TaskLinear(Whole(frozen(linear)))
    return ranks, lambda name, linear: TaskLinear(LowRank(frozen(linear), ranks[name]))
