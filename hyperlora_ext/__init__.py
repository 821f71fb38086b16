"""HyperLoRA for PDEs: one PINN, adapted to a family of problems by low-rank updates.

    v = adapt(u, rank=4)                          # adapters on a trained PINN u
    LevenbergSchedule()(v, family.problem(task), steps=25)

    h = HyperLoRA(u, family.space, rank=4)        # or one network for all tasks
    LevenbergSchedule()(h, task_problem(family, tasks), steps=40)
    solve(h, family, task, tolerance=1e-8)        # predict, certify, polish

Shape letters: those of kfac_pinn, and T tasks of p numbers, n points a task, r rank.

family, task_spaces, problems   tasks, points, residuals, references
lora, serialization             adapters; their factors alone, saved and loaded
emitted_layers, hyper           weights that a network emits, for many tasks at once
generated                       emitted weights in the linearisation that every optimizer reads
task_problem                    what a hypernetwork is trained on
levenberg, schedules            the optimizer for few parameters or few rows; schedules
certified, rank                 predict-certify-polish; rank by growth
task_inputs                     the plain alternative: the task as a further input
symmetry                        each task in a frame of its own
"""

from hyperlora_ext.certified import Solved, held_out_loss, solve
from hyperlora_ext.family import Condition, Errors, Family, Splits, uniform_points
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.levenberg import LevenbergMarquardt
from hyperlora_ext.lora import adapt, adapters, count, merge
from hyperlora_ext.rank import aimed, common_ranks, direction, grow
from hyperlora_ext.schedules import LevenbergSchedule, StochasticSchedule
from hyperlora_ext.serialization import load, state
from hyperlora_ext.task_inputs import AtTask, parametric
from hyperlora_ext.task_problem import Data, TaskProblem, task_problem
from hyperlora_ext.task_residuals import TaskResiduals
from hyperlora_ext.task_spaces import GaussianField, Interval, Intervals, TaskSpace

__all__ = [
    "AtTask",
    "Condition",
    "Data",
    "Errors",
    "Family",
    "GaussianField",
    "HyperLoRA",
    "Interval",
    "Intervals",
    "LevenbergMarquardt",
    "LevenbergSchedule",
    "Solved",
    "Splits",
    "StochasticSchedule",
    "TaskProblem",
    "TaskResiduals",
    "TaskSpace",
    "adapt",
    "adapters",
    "aimed",
    "common_ranks",
    "count",
    "direction",
    "grow",
    "held_out_loss",
    "load",
    "merge",
    "parametric",
    "solve",
    "state",
    "task_problem",
    "uniform_points",
]
