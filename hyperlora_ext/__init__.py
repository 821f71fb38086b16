"""HyperLoRA for PDEs: one PINN, adapted to a family of problems by low-rank updates.

    v = adapt(u, rank=4)                          # adapters on a trained PINN u
    LevenbergSchedule()(v, family.problem(task), steps=25)

    h = HyperLoRA(u, family.space, rank=4)        # or one network for all tasks
    LevenbergSchedule()(h, TaskProblem(family), steps=40)
    solve(h, family, task, tolerance=1e-8)        # predict, certify, polish

Shape letters: those of kfac_pinn, and T tasks of p numbers, n points a task, r rank.

family, condition, task_spaces, problems    tasks, points, residuals, references
near_tasks                                  a part of the tasks, to begin with
lora, rewiring, ranks, adaptation           adapters: a layer, a model, ranks, `adapt`
serialization                               their factors alone, saved and loaded
directions, growth                          where a low-rank update should act; rank by growth
emitted_layers, hyper, symmetry             weights that a network emits, for many tasks at once
task_residuals, task_problem                the closure it is trained on; tasks and points for it
schedules                                   how long points are kept: by `fit` of kfac_pinn
base, base_check                            the network to adapt: its task, and whether it is solved
certified, calibration                      predict, certify, polish; what a loss means in errors
task_inputs                                 the plain alternative: the task as a further input
"""

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.base import pretrain
from hyperlora_ext.calibration import calibrate
from hyperlora_ext.certified import Calibration, Solved, solve
from hyperlora_ext.condition import Condition
from hyperlora_ext.family import Family
from hyperlora_ext.growth import grow
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import merge
from hyperlora_ext.random_fields import GaussianField
from hyperlora_ext.serialization import load, save
from hyperlora_ext.symmetry import Symmetry, averaged
from hyperlora_ext.task_inputs import AtTask, TaskFeatures, parametric
from hyperlora_ext.task_problem import TaskProblem
from hyperlora_ext.task_spaces import Interval, Intervals

__all__ = [
    "AtTask",
    "Calibration",
    "Condition",
    "Family",
    "GaussianField",
    "HyperLoRA",
    "Interval",
    "Intervals",
    "Solved",
    "Symmetry",
    "TaskFeatures",
    "TaskProblem",
    "adapt",
    "averaged",
    "calibrate",
    "grow",
    "load",
    "merge",
    "parametric",
    "pretrain",
    "save",
    "solve",
]
