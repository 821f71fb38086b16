"""Curvature read off a linearisation: everything between J and a direction.

kronecker_factors  Kronecker factors: averaged, damped, inverted
fisher             what is sent backwards for them; weight_sharing: expand or reduce
factor_damping     how damping enters a pair
sample_space       the solve with J J^T: exact, Nystroem or by pivots
decomposition      the quadratic model in the singular basis of J
compression        a Jacobian made small enough to be decomposed
preconditioners    Nystroem preconditioner of conjugate gradients
"""

from kfac_pinn.curvature.compression import Exact, Sketch
from kfac_pinn.curvature.factor_damping import EqualDamping, TraceNormDamping
from kfac_pinn.curvature.fisher import Empirical, ForwardOnly, MonteCarlo, Type2
from kfac_pinn.curvature.kronecker_factors import Average, Factors
from kfac_pinn.curvature.preconditioners import (
    NystromPreconditioner,
)
from kfac_pinn.curvature.sample_space import ExactKernel, NystromKernel, PivotedKernel
from kfac_pinn.curvature.weight_sharing import Expand, Reduce

__all__ = [
    "Average",
    "Empirical",
    "EqualDamping",
    "Exact",
    "ExactKernel",
    "Expand",
    "Factors",
    "ForwardOnly",
    "MonteCarlo",
    "NystromKernel",
    "NystromPreconditioner",
    "PivotedKernel",
    "Reduce",
    "Sketch",
    "TraceNormDamping",
    "Type2",
]
