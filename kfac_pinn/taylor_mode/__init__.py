"""Value and derivatives of a network in one pass.

detached    what has lost its derivatives, and must not come back
jets        a value and its derivatives along directions, carried together; basis: which ones
rules       how each torch function acts on jets; rule_table: where they stand
operators   gradient, Laplacian and all other operators, from one pass
polarisation  which directions and weights make up an operator
arguments   what can be wrong with the arguments of an operator
stochastic  unbiased estimators of operators in high dimension
"""

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.operators import (
    bilaplacian,
    divergence,
    gradient,
    hessian,
    homogeneous,
    laplacian,
    partial,
    taylor,
)
from kfac_pinn.taylor_mode.rules import by_autograd, elementwise, linear, rule
from kfac_pinn.taylor_mode.stochastic import (
    hutchinson_laplacian,
    stochastic_bilaplacian,
    subsampled_laplacian,
)

__all__ = [
    "Jet",
    "bilaplacian",
    "by_autograd",
    "divergence",
    "elementwise",
    "gradient",
    "hessian",
    "homogeneous",
    "hutchinson_laplacian",
    "laplacian",
    "linear",
    "partial",
    "rule",
    "stochastic_bilaplacian",
    "subsampled_laplacian",
    "taylor",
]
