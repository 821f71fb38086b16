"""Problems as data, one group a file; each function returns a `kfac_pinn.pinn.problem.Problem`.

    PROBLEMS["allen_cahn"]()          # all of them by name

A new one needs a file here, and `@problem` in front of its function.
"""

from importlib import import_module
from pkgutil import iter_modules

from kfac_pinn.pinn.problems.burgers_equation import burgers, cole_hopf
from kfac_pinn.pinn.problems.fokker_planck_equation import fokker_planck
from kfac_pinn.pinn.problems.heat_equation import (
    WithDiffusivity,
    heat,
    heat_1d,
    heat_4d,
    inverse_heat,
)
from kfac_pinn.pinn.problems.poisson_equation import (
    poisson,
    poisson_2d,
    poisson_5d,
    poisson_10d,
    poisson_100d,
)
from kfac_pinn.pinn.problems.registry import PROBLEMS, problem
from kfac_pinn.pinn.problems.ritz import poisson_ritz

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")  # each enters its problems

__all__ = [
    "PROBLEMS",
    "WithDiffusivity",
    "burgers",
    "cole_hopf",
    "fokker_planck",
    "heat",
    "heat_1d",
    "heat_4d",
    "inverse_heat",
    "poisson",
    "poisson_2d",
    "poisson_5d",
    "poisson_10d",
    "poisson_100d",
    "poisson_ritz",
    "problem",
]
