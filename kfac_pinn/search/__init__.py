"""How far to go: the second half of every optimizer.

line          lengths along a direction
trust_region  steps whose damping is chosen by the decrease they achieve
geodesic      a step that bends with the residual
one_evaluation  a step that the next loss judges
"""

from kfac_pinn.search.geodesic import Geodesic
from kfac_pinn.search.line import (
    Armijo,
    FixedStep,
    GridSearch,
    NormConstraint,
    Search,
)
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.search.step import Objective, Step
from kfac_pinn.search.trust_region import RatioControl, TargetSchedule

__all__ = [
    "Armijo",
    "FixedStep",
    "Geodesic",
    "GridSearch",
    "NormConstraint",
    "Objective",
    "OneEvaluation",
    "RatioControl",
    "Search",
    "Step",
    "TargetSchedule",
]
