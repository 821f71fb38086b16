"""Curvature read off a linearisation: everything between J and a direction.

kronecker_factors  Kronecker factors: averaged, damped, inverted
sample_space       the solve with J J^T: exact, Nystroem, sketched
decomposition      the quadratic model in the singular basis of J
compression        a Jacobian made small enough to be decomposed
preconditioners    diagonal, Kronecker and Nystroem preconditioners
"""
