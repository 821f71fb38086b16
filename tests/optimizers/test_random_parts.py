"""What is random in a step is new in every step, and the same when a run is resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_problems import small_case

from kfac_pinn import ENGD, KFAC, KFACPINN, SPRING, ExactKernel, GaussNewton, KFACStar
from kfac_pinn.curvature.compression import Exact, Last
from kfac_pinn.curvature.fisher import Type2
from kfac_pinn.curvature.kronecker_factors import Average, Factors
from kfac_pinn.optimizers.engd import SampleSpace


class Kernel(ExactKernel):
    """Writes down the number of the step that it was given."""

    def __init__(self) -> None:
        object.__setattr__(self, "seen", [])

    def factor(self, linearization: Any, damping: float, step: int) -> Any:
        self.seen.append(step)  # type: ignore[attr-defined]
        return super().factor(linearization, damping, step)


class Fisher(Type2):
    """The same."""

    def __init__(self) -> None:
        object.__setattr__(self, "seen", [])

    def cotangents(self, linearization: Any, step: int) -> Any:
        self.seen.append(step)  # type: ignore[attr-defined]
        return super().cotangents(linearization, step)


class Compression:
    """The same, by the seed of the generator."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, linearization: Any, generator: torch.Generator, last: Last) -> Any:
        self.seen.append(generator.initial_seed())
        return Exact()(linearization, generator, last)


def factors(fisher: Any) -> Factors:
    return Factors(fisher=fisher, average=Average(start=None))


# What is told the number of the step, and the optimizer that tells it.
RANDOM: dict[str, tuple[type, Callable[[Any, Any], Any]]] = {
    "ENGD": (Kernel, lambda p, part: ENGD(p, damping=1e-3, gramian=SampleSpace(part))),
    "SPRING": (Kernel, lambda p, part: SPRING(p, kernel=part)),
    "GaussNewton": (Compression, lambda p, part: GaussNewton(p, compression=part)),
    "KFAC": (Fisher, lambda p, part: KFAC(p, factors=factors(part))),
    "KFACStar": (Fisher, lambda p, part: KFACStar(p, factors=factors(part))),
    "KFACPINN": (Fisher, lambda p, part: KFACPINN(p, factors=factors(part))),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_random_numbers_follow_the_count_of_steps(name: str) -> None:
    kind, make = RANDOM[name]
    model, closure = small_case()
    part, again = kind(), kind()
    optimizer = make(model.parameters(), part)
    for _ in range(3):
        optimizer.step(closure)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.step(closure)
    assert len(set(part.seen)) == 4, "four steps, four seeds"
    resumed = make(model.parameters(), again)
    resumed.load_state_dict(state)
    resumed.step(closure)
    assert again.seen == part.seen[3:]
