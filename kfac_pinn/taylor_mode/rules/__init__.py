"""How each torch function acts on jets: one table, `kfac_pinn.taylor_mode.jets.RULES`, filled here.

`series` holds the mathematics (Leibniz, Faa di Bruno, their adjoints), `kinds` the decorators,
`elementary` the functions given by their derivatives, `arithmetic`, `shapes` and `layers` the rest.
A function of your own joins by one decorated function:

    @elementwise(torch.special.bessel_j0)
    def derivatives(v, y, order):
        ...
"""

from kfac_pinn.taylor_mode.jets import RULES, rule
from kfac_pinn.taylor_mode.rules import arithmetic, elementary, layers, shapes
from kfac_pinn.taylor_mode.rules.registration import elementwise, linear

__all__ = ["RULES", "arithmetic", "elementary", "elementwise", "layers", "linear", "rule", "shapes"]
