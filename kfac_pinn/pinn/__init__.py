"""What surrounds an optimizer, to take or to leave.

domains   where points are drawn: boxes, balls, polygons, what they combine to, time x space
networks  the usual networks of PINNs, plain modules; wrappers: what goes around them
integrals quadratures and other fixed linear maps of a network's values
problem   a PDE problem as data, and errors against its solution
conditions Neumann, Robin, interfaces, periodicity, in one line each
problems  those people know, by name: PROBLEMS
training  the one training loop, with checkpoints that resume exactly
windows   long times, one network a window
stages    a second network for the error of the first
"""

from kfac_pinn.pinn.conditions import dirichlet, interface, neumann, periodic, robin
from kfac_pinn.pinn.corner_layers import CornerLayers, early
from kfac_pinn.pinn.domains import (
    Ball,
    Box,
    Domain,
    Polygon,
    Sampler,
    Shape,
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
    ModifiedMLP,
    PeriodicFeatures,
    PirateNet,
)
from kfac_pinn.pinn.problem import (
    Batch,
    InverseProblem,
    Problem,
    Term,
    Unknown,
    relative_l2,
    root_mean_square_error,
)
from kfac_pinn.pinn.problems import (
    PROBLEMS,
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
from kfac_pinn.pinn.stages import Corrected, corrected
from kfac_pinn.pinn.training import (
    R3,
    RAD,
    Callback,
    Causal,
    Checkpoint,
    Every,
    Fixed,
    History,
    Patience,
    Progress,
    Run,
    Schedule,
    StopAtError,
    StopAtLoss,
    by_residual,
    fit,
)
from kfac_pinn.pinn.windows import Windows, march, window
from kfac_pinn.pinn.wrappers import (
    HardConstraint,
    Normalized,
    SideBySide,
    WithUnknowns,
    wall_distance,
)

__all__ = [
    "MLP",
    "PROBLEMS",
    "R3",
    "RAD",
    "SIREN",
    "Ball",
    "Batch",
    "Box",
    "Callback",
    "Causal",
    "Checkpoint",
    "CornerLayers",
    "Corrected",
    "Domain",
    "Every",
    "Fixed",
    "FourierFeatures",
    "HardConstraint",
    "History",
    "InverseProblem",
    "LinearMap",
    "ModifiedMLP",
    "Normalized",
    "Patience",
    "PeriodicFeatures",
    "PirateNet",
    "Polygon",
    "Problem",
    "Progress",
    "Quadrature",
    "Run",
    "Sampler",
    "Schedule",
    "Shape",
    "SideBySide",
    "StopAtError",
    "StopAtLoss",
    "Term",
    "TimeSpace",
    "Unknown",
    "Windows",
    "WithDiffusivity",
    "WithUnknowns",
    "burgers",
    "by_residual",
    "cole_hopf",
    "corrected",
    "dirichlet",
    "early",
    "fit",
    "fokker_planck",
    "gauss_legendre",
    "grid",
    "heat",
    "heat_1d",
    "heat_4d",
    "interface",
    "inverse_heat",
    "march",
    "neumann",
    "periodic",
    "periodic_trapezoid",
    "poisson",
    "poisson_2d",
    "poisson_5d",
    "poisson_10d",
    "poisson_100d",
    "poisson_ritz",
    "relative_l2",
    "robin",
    "root_mean_square_error",
    "sobol",
    "together",
    "uniform",
    "wall_distance",
    "window",
]
