"""Training: `fit` and what it can be given.

loop        fit, and the history it returns
run         the state of a run, its step and measurements, when points are drawn
callbacks   checkpoints, learning rate schedules, stopping at an error, a progress bar
"""

from kfac_pinn.pinn.training.callbacks import Checkpoint, Progress, Schedule, StopAtError
from kfac_pinn.pinn.training.loop import History, fit
from kfac_pinn.pinn.training.run import Callback, Every, Fixed, Row, Run, Sampling

__all__ = [
    "Callback",
    "Checkpoint",
    "Every",
    "Fixed",
    "History",
    "Progress",
    "Row",
    "Run",
    "Sampling",
    "Schedule",
    "StopAtError",
    "fit",
]
