"""Second-order optimizers for physics-informed neural networks.

    from kfac_pinn import KFACPINN, laplacian
    optimizer = KFACPINN(model.parameters())

    def residuals():
        return laplacian(model, x) + f, model(xb) - g

    loss = optimizer.step(residuals)

Shape letters, the same everywhere: N points of a term, D directions, S shared positions (the Taylor
coefficients pushed through a layer), d_in and d_out widths of a layer, P parameters, R stacked
residuals of all terms, C outputs or summed operators. Equations are numbered in
docs/mathematics.md. The folders are the stages: linalg, taylor_mode, jacobian, curvature, search,
optimizers, pinn; each imports only those before it.
"""

from kfac_pinn.jacobian.closure import Linearization, SelfLinearizing, linearize
from kfac_pinn.jacobian.losses import ConvexLoss, total_loss
from kfac_pinn.optimizers.engd import ENGD
from kfac_pinn.optimizers.gauss_newton import GaussNewton
from kfac_pinn.optimizers.hessian_free import HessianFree
from kfac_pinn.optimizers.kfac import KFAC, KFACStar
from kfac_pinn.optimizers.kfac_pinn import KFACPINN
from kfac_pinn.optimizers.spring import SPRING
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.networks import MLP, HardConstraint, PeriodicFeatures
from kfac_pinn.pinn.problem import Problem, Term, relative_l2
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.taylor_mode.jets import Jet, rule
from kfac_pinn.taylor_mode.operators import (
    bilaplacian,
    divergence,
    gradient,
    hessian,
    laplacian,
    partial,
    taylor,
)
from kfac_pinn.taylor_mode.stochastic import (
    hutchinson_laplacian,
    stochastic_bilaplacian,
    subsampled_laplacian,
)

__version__ = "0.1.0"

__all__ = [
    "ENGD",
    "KFAC",
    "KFACPINN",
    "MLP",
    "SPRING",
    "Box",
    "ConvexLoss",
    "GaussNewton",
    "HardConstraint",
    "HessianFree",
    "Jet",
    "KFACStar",
    "Linearization",
    "OneEvaluation",
    "PeriodicFeatures",
    "Problem",
    "SelfLinearizing",
    "Term",
    "TimeSpace",
    "bilaplacian",
    "divergence",
    "gradient",
    "hessian",
    "hutchinson_laplacian",
    "laplacian",
    "linearize",
    "partial",
    "relative_l2",
    "rule",
    "stochastic_bilaplacian",
    "subsampled_laplacian",
    "taylor",
    "total_loss",
]
