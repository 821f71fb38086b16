"""Problems as data, one PDE a file; each function returns a `kfac_pinn.pinn.problem.Problem`."""

from kfac_pinn.pinn.problems.burgers import burgers, cole_hopf
from kfac_pinn.pinn.problems.fokker_planck import fokker_planck
from kfac_pinn.pinn.problems.heat import WithDiffusivity, heat, heat_1d, heat_4d, inverse_heat
from kfac_pinn.pinn.problems.poisson import (
    poisson,
    poisson_2d,
    poisson_5d,
    poisson_10d,
    poisson_100d,
)
from kfac_pinn.pinn.problems.ritz import poisson_ritz

__all__ = [
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
]
