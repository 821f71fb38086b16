"""How each torch function acts on jets: one table, `kfac_pinn.taylor_mode.jets.RULES`, filled here.

`series` holds the mathematics (Leibniz, Faa di Bruno, their adjoints), `registration` and `nested`
the kinds of rules, `elementary` and `special` the functions given by their derivatives, the others
what their names say.
A function of your own joins by one decorated function:

    @elementwise(torch.special.bessel_j0)
    def derivatives(v, y, order):
        ...
"""

from kfac_pinn.taylor_mode.jets import RULES, rule
from kfac_pinn.taylor_mode.rules import (
    arithmetic,
    attention,
    choices,
    distances,
    elementary,
    layers,
    nested,
    normalisation,
    recurrent,
    shapes,
    special,
)
from kfac_pinn.taylor_mode.rules.nested import by_autograd
from kfac_pinn.taylor_mode.rules.registration import elementwise, linear

__all__ = [
    "RULES",
    "arithmetic",
    "attention",
    "by_autograd",
    "choices",
    "distances",
    "elementary",
    "elementwise",
    "layers",
    "linear",
    "nested",
    "normalisation",
    "recurrent",
    "rule",
    "shapes",
    "special",
]
