"""Curvature read off a linearisation: everything between J and a direction.

kronecker_factors  Kronecker factors: averaged, damped, inverted
sample_space       the solve with J J^T: exact, Nystroem, sketched
decomposition      the quadratic model in the singular basis of J
compression        a Jacobian made small enough to be decomposed
preconditioners    diagonal, Kronecker and Nystroem preconditioners
"""

from kfac_pinn.curvature.compression import Exact, Sketch
from kfac_pinn.curvature.kronecker_factors import (
    Average,
    Empirical,
    EqualDamping,
    Expand,
    Factors,
    ForwardOnly,
    MonteCarlo,
    Reduce,
    TraceNormDamping,
    Type2,
)
from kfac_pinn.curvature.preconditioners import (
    DiagonalPreconditioner,
    KroneckerPreconditioner,
    NystromPreconditioner,
)
from kfac_pinn.curvature.sample_space import ExactKernel, NystromKernel, SketchedKernel

__all__ = [
    "Average",
    "DiagonalPreconditioner",
    "Empirical",
    "EqualDamping",
    "Exact",
    "ExactKernel",
    "Expand",
    "Factors",
    "ForwardOnly",
    "KroneckerPreconditioner",
    "MonteCarlo",
    "NystromKernel",
    "NystromPreconditioner",
    "Reduce",
    "Sketch",
    "SketchedKernel",
    "TraceNormDamping",
    "Type2",
]
