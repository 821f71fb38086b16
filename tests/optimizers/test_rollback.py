"""A step that fails leaves parameters, groups and state as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from steepest import Steepest
from torch import Tensor, nn

X = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Count:
    """What it remembers."""

    count: int = 0


class Changing(Steepest):
    """Writes to everything that it has before it goes nowhere: raises, or steps to infinity."""

    fails = False
    finite = True
    memory = Count()

    def direction(self, linearization: Any) -> Tensor:
        first, second = self.param_groups
        first["lr"] *= 0.5
        second["note"] = first.pop("note", "") + "x"
        second["new"] = "setting"
        self.memory = Count(self.memory.count + 1)
        for p in self.parameters:
            self.state[p]["mean"] = self.state[p].get("mean", 0.0) + torch.ones_like(p)
        if self.fails:
            raise ZeroDivisionError
        return super().direction(linearization) * (1.0 if self.finite else torch.inf)


def start() -> tuple[nn.Module, Changing]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    groups = [
        {"params": model[0].parameters(), "lr": 0.1, "note": "first"},
        {"params": model[2].parameters(), "lr": 0.2},
    ]
    return model, Changing(groups)


def everything(model: nn.Module, optimizer: Changing) -> Any:
    state = optimizer.state_dict()
    state.pop("precision", None)  # that of the parameters it saw
    return copy.deepcopy((model.state_dict(), state))


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, nested."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def fail(optimizer: Changing, closure: Callable[[], Tensor]) -> None:
    optimizer.fails = True
    with pytest.raises(ZeroDivisionError):
        optimizer.step(closure)


def go_nowhere(optimizer: Changing, closure: Callable[[], Tensor]) -> None:
    optimizer.finite = False
    optimizer.step(closure)


@pytest.mark.parametrize("way", [fail, go_nowhere])
@pytest.mark.parametrize("before", [0, 2])
def test_a_failed_step_changes_nothing(way: Callable[..., None], before: int) -> None:
    model, optimizer = start()
    closure = lambda: model(X) - 1  # noqa: E731
    for _ in range(before):
        optimizer.step(closure)
    expected = everything(model, optimizer)
    way(optimizer, closure)
    assert same(everything(model, optimizer), expected)
    optimizer.fails, optimizer.finite = False, True
    optimizer.step(closure)
    again, other = start()
    for _ in range(before + 1):
        other.step(lambda: again(X) - 1)
    assert same(everything(model, optimizer), everything(again, other))
