"""Training: `fit` and what it can be given.

loop        fit, and the history it returns
run         the state of a run, its step and measurements, when points are drawn
clock       what a second is
adaptive    points where the residual is large, or early
callbacks   learning rate schedules, ends of a run, a progress bar
checkpoint  a run stored, and continued bit for bit
identity    what run a checkpoint belongs to
storage     files that are whole or refused
checks      what `fit` was given by mistake
"""

from kfac_pinn.pinn.training.adaptive import R3, RAD, Causal, by_residual
from kfac_pinn.pinn.training.callbacks import Patience, Progress, Schedule, StopAtError, StopAtLoss
from kfac_pinn.pinn.training.checkpoint import Checkpoint
from kfac_pinn.pinn.training.loop import History, fit
from kfac_pinn.pinn.training.run import Callback, Every, Fixed, Row, Run, Sampling

__all__ = [
    "R3",
    "RAD",
    "Callback",
    "Causal",
    "Checkpoint",
    "Every",
    "Fixed",
    "History",
    "Patience",
    "Progress",
    "Row",
    "Run",
    "Sampling",
    "Schedule",
    "StopAtError",
    "StopAtLoss",
    "by_residual",
    "fit",
]
