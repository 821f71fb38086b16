"""How far to go, how much to damp, and what was promised.

step          what an optimizer proposes
model         the quadratic model: predicted decrease, decrease ratio, damped steps
damping       laws by which the damping follows the ratio
line          lengths along a direction; wolfe: one that looks at slopes too
trust_region  steps whose damping is chosen by the ratio they achieve
geodesic      a step that bends with the residual
one_evaluation  a step that the next loss judges
"""

from kfac_pinn.search.damping import DampingLaw, KeepDamping, Marquardt
from kfac_pinn.search.geodesic import Geodesic
from kfac_pinn.search.line import (
    Armijo,
    ExhaustiveGrid,
    FixedStep,
    GridSearch,
    NormConstraint,
    Search,
)
from kfac_pinn.search.model import DampedModel
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.search.trust_region import RatioControl, TargetSchedule
from kfac_pinn.search.wolfe import StrongWolfe

__all__ = [
    "Armijo",
    "DampedModel",
    "DampingLaw",
    "ExhaustiveGrid",
    "FixedStep",
    "Geodesic",
    "GridSearch",
    "KeepDamping",
    "Marquardt",
    "NormConstraint",
    "OneEvaluation",
    "Outcome",
    "RatioControl",
    "Search",
    "Step",
    "StrongWolfe",
    "TargetSchedule",
]
