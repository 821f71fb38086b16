"""Value and derivatives of a network in one pass.

jets        a value and its derivatives along directions, carried together
rules       how each torch function acts on jets
operators   gradient, Laplacian and all other operators, from one pass
stochastic  unbiased estimators of operators in high dimension
"""
