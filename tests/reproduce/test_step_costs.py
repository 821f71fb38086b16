"""The costs of a step are those of its parts, each of which runs."""

from __future__ import annotations

import torch
from step_costs import parts

from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.task_problem import TaskProblem
from kfac_pinn import MLP


def test_every_part_of_a_step_takes_its_time() -> None:
    family = kovasznay()
    hyper = HyperLoRA(MLP((2, 6, 6, 3)).double(), family.space, 2, hidden=(8,))
    problem = TaskProblem(family, 3, sizes={"interior": 4, "boundary": 2})
    found = dict(parts(problem.sample(dtype=torch.float64).residuals(hyper)))
    assert len(found) == 6 and all(seconds >= 0 for seconds in found.values())
