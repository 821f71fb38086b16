"""HyperLoRA for PDEs: one PINN, adapted to a family of problems by low-rank updates.

    v = adapt(u, rank=4)                          # adapters on a trained PINN u
    Levenberg()(v, family.problem(task), steps=25)

    h = HyperLoRA(u, family.space, rank=4)        # or one network for all tasks
    by_physics(h, family, tasks, Levenberg(), steps=40)
    solve(h, family, task, tolerance=1e-8)        # predict, certify, polish

Shape letters: those of kfac_pinn, and T tasks of p numbers, n points a task, r rank.

family, spaces, problems   tasks, points, residuals, references
lora, saved                adapters; their factors alone, saved and loaded
emission, hyper            weights that a network emits, for many tasks at once
generated                  emitted weights in the linearisation that every optimizer reads
objectives                 what a hypernetwork is trained on
levenberg, training        the optimizer for few parameters or few rows; schedules
regimes, solve, rank       the seven regimes; predict-certify-polish; rank by growth
parametric                 the plain alternative: the task as a further input
frames, windows            symmetries of the equation; long times in pieces
setups, bench, archive     each family as it is measured, continued where it was interrupted
tables, plots, paper       the paper's tables and figures, and its numbers
"""

from hyperlora_ext.family import Condition, Errors, Family, Splits, uniform_points
from hyperlora_ext.generated import TaskResiduals
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.levenberg import LevenbergMarquardt
from hyperlora_ext.lora import adapt, adapters, count, merge
from hyperlora_ext.objectives import Data, TaskProblem, task_problem
from hyperlora_ext.parametric import AtTask, parametric
from hyperlora_ext.rank import aimed, common_ranks, direction, grow
from hyperlora_ext.regimes import (
    by_data,
    by_physics,
    by_pinns,
    by_weights,
    f_pinn,
    l_pinn,
    pinn,
    teachers,
)
from hyperlora_ext.saved import load, state
from hyperlora_ext.solve import Solved, certificate, solve
from hyperlora_ext.spaces import GaussianField, Interval, Intervals, TaskSpace
from hyperlora_ext.training import (
    PUBLISHED_HYPER,
    PUBLISHED_PINN,
    Levenberg,
    Published,
    Stochastic,
)
from hyperlora_ext.windows import Windows, march, window

__all__ = [
    "PUBLISHED_HYPER",
    "PUBLISHED_PINN",
    "AtTask",
    "Condition",
    "Data",
    "Errors",
    "Family",
    "GaussianField",
    "HyperLoRA",
    "Interval",
    "Intervals",
    "Levenberg",
    "LevenbergMarquardt",
    "Published",
    "Solved",
    "Splits",
    "Stochastic",
    "TaskProblem",
    "TaskResiduals",
    "TaskSpace",
    "Windows",
    "adapt",
    "adapters",
    "aimed",
    "by_data",
    "by_physics",
    "by_pinns",
    "by_weights",
    "certificate",
    "common_ranks",
    "count",
    "direction",
    "f_pinn",
    "grow",
    "l_pinn",
    "load",
    "march",
    "merge",
    "parametric",
    "pinn",
    "solve",
    "state",
    "task_problem",
    "teachers",
    "uniform_points",
    "window",
]
