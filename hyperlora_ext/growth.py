"""The rank of an adapter, chosen: grown along Gauss-Newton directions until it no longer pays.

The full Gauss-Newton step says where a low-rank update should act (`directions`), not how many rows
it needs; so the rank is grown, layer by layer, and judged on held-out points.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.base_check import PROBLEM
from hyperlora_ext.certified import held_out_loss
from hyperlora_ext.directions import Direction, direction
from hyperlora_ext.family import Family
from hyperlora_ext.lora import LoRALinear, adapters
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn.pinn.problem import Batch, Problem, placed_like
from kfac_pinn.settings import (
    INTEGER,
    MODULE,
    NOT_NEGATIVE,
    POSITIVE,
    instance,
    optional,
    takes,
    whole,
)

__all__ = ["Growth", "common_ranks", "grow"]

LEVENBERG = instance(LevenbergSchedule, "a LevenbergSchedule()")


@dataclass(frozen=True)
class Growth:
    """An adapter whose rank was chosen.

    Attributes:
        model: the adapted network.
        losses: on held-out points, of the base and after each rank that was tried.
        ranks: of each layer of `model`.
    """

    model: nn.Module
    losses: list[float]
    ranks: dict[str, int]


@takes(
    base=MODULE,
    problem=PROBLEM,
    train=optional(LEVENBERG),
    target=NOT_NEGATIVE,
    most=whole(1),
    gain=POSITIVE,
    steps=whole(0),
    seed=INTEGER,
)
def grow(
    base: nn.Module,
    problem: Problem,
    train: LevenbergSchedule | None = None,
    target: float = 0.0,
    *,
    most: int = 8,
    gain: float = 2.0,
    steps: int = 25,
    seed: int = 0,
) -> Growth:
    """Adapt the base to a problem by the smallest rank that does it.

    Starts at rank 1. While the held-out loss is above the target, every layer whose share of the
    full Gauss-Newton direction is worth it (at least half of the mean) gets one more pair; a rank
    that lowers the loss by less than `gain` is the last one.

    Args:
        train: the schedule of each rank; `LevenbergSchedule()` by default.
        target: a held-out loss that is good enough, that of the base on its own task, say.
        most: ranks tried.
        gain: in the held-out loss, below which growing stops.
        steps: of training a rank.
        seed: of the points.
    """
    train, generator = train or LevenbergSchedule(), Generator().manual_seed(seed)
    like = next(base.parameters())

    def draw(sizes: Mapping[str, int] | None) -> Batch:
        return problem.sample(generator, sizes, **placed_like(like))

    judges = draw(train.held_out or train.sizes)
    model, losses = base, [held_out_loss(judges.residuals(base))]
    for rank in range(1, most + 1):
        found = direction(model, draw(train.sizes), judges)
        grown = adapt(base, 1, aimed=found.rows) if rank == 1 else extended(model, found)
        train(grown, problem, steps=steps, seed=seed + rank)
        losses.append(held_out_loss(judges.residuals(grown)))
        # A further rank that made it worse is not kept
        if rank == 1 or losses[-1] < losses[-2]:
            model = grown
        if losses[-1] <= target or (rank > 1 and losses[-1] > losses[-2] / gain):
            break
    return Growth(model, losses, {name: a.rank for name, a in adapters(model).items()})


def common_ranks(
    base: nn.Module,
    family: Family,
    tasks: Tensor,
    train: LevenbergSchedule | None = None,
    **options: Any,
) -> dict[str, int]:
    """Ranks by layer that serve a whole family, as `HyperLoRA` takes them.

    The largest that `grow` needs, layer by layer, on a few tasks: the ends of the range and its
    middle, say.

    Args:
        tasks: (T, p).
        options: of `grow`.
    """
    grown = [grow(base, family.problem(task), train, **options).ranks for task in tasks]
    return {name: max(ranks[name] for ranks in grown) for name in grown[0]}


def extended(model: nn.Module, found: Direction) -> nn.Module:
    """A copy with one more pair (a right singular vector, 0) where a layer's share is worth it."""
    layers = adapters(model)
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    for name, adapter in layers.items():
        room = adapter.rank < min(adapter.frozen.weight.shape)
        # Half of the mean share: less says that the other layers do the work
        if room and found.share[name] > 0.5 / len(layers):
            memo[id(adapter)] = appended(adapter, found.rows[name][:1])
    return copy.deepcopy(model, memo)


def appended(adapter: LoRALinear, row: Tensor) -> LoRALinear:
    """The adapter with one more row of A and a zero column of B: the same function."""
    A = torch.cat([adapter.A.detach(), row.to(adapter.A)])
    # A zero column beside a new row: the function stays, and the gradient of B does not vanish
    B = torch.cat([adapter.B.detach(), adapter.B.new_zeros(len(adapter.B), 1)], dim=1)
    grown = LoRALinear(adapter.frozen, A, B, bias=adapter.shift is not None)
    if adapter.shift is not None and grown.shift is not None:
        grown.shift.data.copy_(adapter.shift)
    return grown
