"""The grid from above against the whole grid, on every published trajectory that a grid made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from test_engd_published import SETTINGS as GRAMIANS
from test_kfac import PROBLEMS, reference
from test_kfac import SETTINGS as FACTORS
from torch import Tensor

from kfac_pinn import ENGD, Linearization
from kfac_pinn.search.line import ExhaustiveGrid, FixedStep, GridSearch
from kfac_pinn.search.step import Objective, Step


@dataclass
class Both:
    """Goes along the whole grid, and compares."""

    evaluations: list[int] = field(default_factory=list)

    def __call__(
        self, objective: Objective, linearization: Linearization, direction: Tensor
    ) -> Step:
        whole = ExhaustiveGrid()(objective, linearization, direction)
        before = objective.evaluations
        found = GridSearch()(objective, linearization, direction)
        self.evaluations.append(objective.evaluations - before)
        assert (found.length, found.loss) == (whole.length, whole.loss)
        return whole


MAKERS: dict[str, Callable[..., Any]] = {
    name: make
    for name, make in FACTORS.items()
    if isinstance(getattr(make([_ := __import__("torch").zeros(1, requires_grad=True)]), "search", FixedStep()), GridSearch)
}
