"""How the numbers that a hypernetwork emits become the weights of one linear layer, for T tasks.

Shape letters: T tasks, n points a task, r rank, theta the numbers of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from hyperlora_ext.lora import LoRALinear, linear_of, start_of
from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.rule_table import rule

__all__ = ["EmittedLayer", "LowRank", "TaskLinear", "Whole", "task_linear"]


def task_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_tn = W_t x_tn + b_t: to every task its own matrix, in one batched product.

    Args:
        x: the points of task after task, (T n, d_in); a jet of them, too.
        weight: (T, d_out, d_in).
        bias: (d_out,), or (T, d_out).

    Raises:
        ValueError: if the points do not divide among the tasks.
    """
    if has_torch_function((x,)):
        return handle_torch_function(task_linear, (x,), x, weight, bias)
    if len(x) % len(weight):
        raise ValueError(
            f"{len(x)} points for {len(weight)} tasks: give the same number to every task, one "
            "task after the other"
        )
    # One batched product: a loop over tasks would be many small ones
    product = torch.bmm(x.unflatten(0, (len(weight), -1)), weight.mT)
    return (product if bias is None else product + bias.reshape(-1, 1, bias.shape[-1])).flatten(
        0, 1
    )


@rule(task_linear)
def task_linear_of_jets(x: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    """Linear in x: every coefficient alike, the bias on the value only."""
    # All coefficients of a task's points beside each other: one product a task
    rows = x.rows.unflatten(1, (len(weight), -1)).transpose(0, 1).flatten(1, 2)
    product = torch.bmm(rows, weight.mT).unflatten(1, (len(x.rows), -1)).transpose(0, 1)
    if bias is not None:
        value = product[:1] + bias.reshape(-1, 1, bias.shape[-1])
        product = torch.cat([value, product[1:]])
    return Jet(product.flatten(1, 2), x.basis)


class TaskLinear(nn.Module):
    """Stands where the base had a linear layer; its numbers are lent to it for one pass.

    Args:
        emitted: how numbers become weights.
    """

    def __init__(self, emitted: EmittedLayer) -> None:
        super().__init__()
        self.emitted = emitted
        self.frozen = emitted.linear
        self.lent: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.lent is None:
            raise RuntimeError("this layer has no weights of its own: call hyper.fields(tasks)(x)")
        return self.emitted(x, self.lent)

    @property
    def weight(self) -> NoReturn:
        """There is none: each task has its own."""
        raise RuntimeError(BYPASSED.format(what="weight"))

    @property
    def bias(self) -> NoReturn:
        """There is none: each task may have its own."""
        raise RuntimeError(BYPASSED.format(what="bias"))


BYPASSED = (
    "the base reads the {what} of a linear layer itself, but each task has a weight of its own, "
    "emitted by the hypernetwork: call the layer as a module, self.layer(x) instead of "
    "F.linear(x, self.layer.weight), or leave it out by naming the ranks of the others"
)


class EmittedLayer(Protocol):
    """The part of the emitted numbers that belongs to one layer."""

    @property
    def linear(self) -> nn.Linear:
        """The layer of the base."""

    @property
    def size(self) -> int:
        """How many numbers the layer takes."""

    def start(self) -> Tensor:
        """The numbers that leave the base as it is, (size,)."""

    def __call__(self, x: Any, theta: Tensor) -> Any:
        """The layer at points (T n, d_in), or a jet of them, with numbers (T, size)."""

    def module(self, theta: Tensor) -> nn.Module:
        """The layer of one task, numbers (size,), ready to be trained on."""

    def numbers(self, module: nn.Module) -> Tensor:
        """The reverse of `module`, (size,).

        Raises:
            ValueError: for a layer that `module` does not make.
        """


@dataclass(frozen=True)
class LowRank:
    """W = W0 + B A with theta = [A : B]; W0 and the bias stay the base's.

    Attributes:
        linear: of the base.
        rank: r.
    """

    linear: nn.Linear
    rank: int

    @property
    def size(self) -> int:
        return self.rank * sum(self.linear.weight.shape)

    def start(self) -> Tensor:
        """A random and B = 0: with A = B = 0 no factor would move the other."""
        A = start_of(self.linear, self.rank)
        return torch.cat([A.reshape(-1), A.new_zeros(self.size - A.numel())])

    def factors(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """A (T, r, d_in) and B (T, d_out, r)."""
        d_out, d_in = self.linear.weight.shape
        A, B = theta.split([self.rank * d_in, d_out * self.rank], dim=-1)
        return A.unflatten(-1, (self.rank, d_in)), B.unflatten(-1, (d_out, self.rank))

    def __call__(self, x: Any, theta: Tensor) -> Any:
        (A, B), W0, bias = self.factors(theta), self.linear.weight, self.linear.bias
        if len(x) > self.rank * len(theta):  # n > r: cheaper than two thin products
            return task_linear(x, torch.baddbmm(W0.expand(len(A), -1, -1), B, A), bias)
        return F.linear(x, W0, bias) + task_linear(task_linear(x, A), B)

    def module(self, theta: Tensor) -> nn.Module:
        A, B = self.factors(theta)
        return LoRALinear(self.linear, A.clone(), B.clone())

    def numbers(self, module: nn.Module) -> Tensor:
        if not isinstance(module, LoRALinear):
            raise unlike(module, self.size)
        return flat(self.size, module.A, module.B)


@dataclass(frozen=True)
class Whole:
    """theta = [W : b], the paper's starred rows: the base gives the shapes and the start only.

    Attributes:
        linear: of the base.
    """

    linear: nn.Linear

    @property
    def size(self) -> int:
        d_out, d_in = self.linear.weight.shape
        return d_out * (d_in + (self.linear.bias is not None))

    def start(self) -> Tensor:
        return self.numbers(self.linear)

    def weights(self, theta: Tensor) -> tuple[Tensor, Tensor | None]:
        """W (T, d_out, d_in) and b (T, d_out)."""
        W, b = theta.tensor_split([self.linear.weight.numel()], dim=-1)
        return W.unflatten(-1, self.linear.weight.shape), b if b.shape[-1] else None

    def __call__(self, x: Any, theta: Tensor) -> Any:
        return task_linear(x, *self.weights(theta))

    def module(self, theta: Tensor) -> nn.Module:
        W, b = self.weights(theta[None])
        return linear_of(W[0].clone(), None if b is None else b[0].clone())

    def numbers(self, module: nn.Module) -> Tensor:
        if not isinstance(module, nn.Linear):
            raise unlike(module, self.size)
        return flat(self.size, module.weight, *([] if module.bias is None else [module.bias]))


def flat(size: int, *parts: Tensor) -> Tensor:
    """The parts as one vector of the size expected, or an error."""
    found = torch.cat([part.detach().reshape(-1) for part in parts])
    if len(found) != size:
        raise unlike(parts, size)
    return found


def unlike(found: object, size: int) -> ValueError:
    """The error for a layer that the hypernetwork does not emit."""
    shapes = [tuple(p.shape) for p in found] if isinstance(found, tuple) else type(found).__name__
    return ValueError(
        f"a layer ({shapes}) is not of the kind or rank for which {size} numbers are emitted: "
        "networks to learn from are those that start from hyper.pinn(task)"
    )
