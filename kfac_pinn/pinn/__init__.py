"""What surrounds an optimizer, to take or to leave.

domains   where points are drawn: boxes, balls, time x space
networks  the usual networks of PINNs, plain modules
integrals quadratures and other fixed linear maps of a network's values
problem   a PDE problem as data, and errors against its solution
problems  Poisson, heat, Burgers, Fokker-Planck, inverse heat: one PDE a file
training  the one training loop, with checkpoints that resume exactly
windows   long times, one network a window
"""

from kfac_pinn.pinn.domains import (
    Ball,
    Box,
    Domain,
    Sampler,
    TimeSpace,
    grid,
    sobol,
    together,
    uniform,
)
from kfac_pinn.pinn.integrals import LinearMap, Quadrature, gauss_legendre, periodic_trapezoid
from kfac_pinn.pinn.networks import (
    MLP,
    SIREN,
    FourierFeatures,
    HardConstraint,
    ModifiedMLP,
    Normalized,
    PeriodicFeatures,
    PirateNet,
    wall_distance,
)
from kfac_pinn.pinn.problem import Batch, Problem, Term, relative_l2, root_mean_square_error
from kfac_pinn.pinn.problems import (
    WithDiffusivity,
    burgers,
    cole_hopf,
    fokker_planck,
    heat,
    heat_1d,
    heat_4d,
    inverse_heat,
    poisson,
    poisson_2d,
    poisson_5d,
    poisson_10d,
    poisson_100d,
    poisson_ritz,
)
from kfac_pinn.pinn.training import (
    Callback,
    Checkpoint,
    Every,
    Fixed,
    History,
    Patience,
    Progress,
    Run,
    Schedule,
    StopAtError,
    fit,
)
from kfac_pinn.pinn.windows import Windows, march, window

__all__ = [
    "MLP",
    "SIREN",
    "Ball",
    "Batch",
    "Box",
    "Callback",
    "Checkpoint",
    "Domain",
    "Every",
    "Fixed",
    "FourierFeatures",
    "HardConstraint",
    "History",
    "LinearMap",
    "ModifiedMLP",
    "Normalized",
    "Patience",
    "PeriodicFeatures",
    "PirateNet",
    "Problem",
    "Progress",
    "Quadrature",
    "Run",
    "Sampler",
    "Schedule",
    "StopAtError",
    "Term",
    "TimeSpace",
    "Windows",
    "WithDiffusivity",
    "burgers",
    "cole_hopf",
    "fit",
    "fokker_planck",
    "gauss_legendre",
    "grid",
    "heat",
    "heat_1d",
    "heat_4d",
    "inverse_heat",
    "march",
    "periodic_trapezoid",
    "poisson",
    "poisson_2d",
    "poisson_5d",
    "poisson_10d",
    "poisson_100d",
    "poisson_ritz",
    "relative_l2",
    "root_mean_square_error",
    "sobol",
    "together",
    "uniform",
    "wall_distance",
    "window",
]
