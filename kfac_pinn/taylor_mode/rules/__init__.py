"""How each torch function acts on jets: fills the one table, `taylor_mode.rule_table.RULES`.

`series` holds the mathematics (Leibniz, Faa di Bruno, their adjoints), `registration` and `nested`
the kinds of rules, `elementary` and `special` the functions given by their derivatives, the others
what their names say.
A function of your own joins by one decorated function:

    @elementwise(torch.special.bessel_j0)
    def derivatives(v, y, order):
        ...
"""

from kfac_pinn.taylor_mode.rule_table import RULES, rule
from kfac_pinn.taylor_mode.rules import (
    arithmetic,
    attention,
    choices,
    complex_numbers,
    distances,
    elementary,
    indexing,
    joining,
    layers,
    nested,
    normalisation,
    recurrent,
    shapes,
    special,
    tensor_products,
    values,
)
from kfac_pinn.taylor_mode.rules.nested import by_autograd
from kfac_pinn.taylor_mode.rules.registration import elementwise, linear

__all__ = [
    "RULES",
    "arithmetic",
    "attention",
    "by_autograd",
    "choices",
    "complex_numbers",
    "distances",
    "elementary",
    "elementwise",
    "indexing",
    "joining",
    "layers",
    "linear",
    "nested",
    "normalisation",
    "recurrent",
    "rule",
    "shapes",
    "special",
    "tensor_products",
    "values",
]
