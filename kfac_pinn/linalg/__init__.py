"""The linear algebra everything above stands on; knows nothing of networks or equations.

coordinates  tensors as one vector of real numbers
kronecker   sums of Kronecker products on weight-shaped matrices, and their inverses
dense       damped and pseudo-inverse solves, blocked QR reduction of tall problems
krylov      conjugate gradients with stop rules as objects
limited_memory  known products correct a preconditioner
quasi_newton  an inverse Hessian learns from the gradients before and after a step
memory      how many rows of J are held at once
sketches    CountSketch of rows, Nystrom and pivoted Cholesky approximation of an operator
"""

from kfac_pinn.linalg.coordinates import dimension, flatten, real, unflatten
from kfac_pinn.linalg.dense import (
    aligned,
    damped_inverse,
    damped_solve,
    normal_equations,
    pinv_solve,
    reduce_rows,
    sum_of_squares,
)
from kfac_pinn.linalg.kronecker import KroneckerInverse, KroneckerSum
from kfac_pinn.linalg.krylov import (
    ProgressOfSolve,
    RelativeProgress,
    RelativeResidual,
    Solution,
    Stop,
    conjugate_gradients,
    geometric_indices,
)
from kfac_pinn.linalg.limited_memory import Pairs
from kfac_pinn.linalg.memory import batches_of_rows, rows_at_once
from kfac_pinn.linalg.quasi_newton import BFGS, SSBFGS, SSBroyden, Update, updated
from kfac_pinn.linalg.sketches import CountSketch, Nystrom, generator_for, nystrom, pivoted

__all__ = [
    "BFGS",
    "SSBFGS",
    "CountSketch",
    "KroneckerInverse",
    "KroneckerSum",
    "Nystrom",
    "Pairs",
    "ProgressOfSolve",
    "RelativeProgress",
    "RelativeResidual",
    "SSBroyden",
    "Solution",
    "Stop",
    "Update",
    "aligned",
    "batches_of_rows",
    "conjugate_gradients",
    "damped_inverse",
    "damped_solve",
    "dimension",
    "flatten",
    "generator_for",
    "geometric_indices",
    "normal_equations",
    "nystrom",
    "pinv_solve",
    "pivoted",
    "real",
    "reduce_rows",
    "rows_at_once",
    "sum_of_squares",
    "unflatten",
    "updated",
]
