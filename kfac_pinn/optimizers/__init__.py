"""Each optimizer is a direction and a search; the step loop they share is in `base`."""

from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.optimizers.engd import ENGD, Diagonal, Full, PerLayer, SampleSpace
from kfac_pinn.optimizers.gauss_newton import GaussNewton
from kfac_pinn.optimizers.hessian_free import GGN, Hessian, HessianFree, TruncatedCG
from kfac_pinn.optimizers.kfac import KFAC, KFACStar
from kfac_pinn.optimizers.kfac_pinn import KFACPINN
from kfac_pinn.optimizers.spring import SPRING

__all__ = [
    "ENGD",
    "GGN",
    "KFAC",
    "KFACPINN",
    "SPRING",
    "Diagonal",
    "Full",
    "GaussNewton",
    "Hessian",
    "HessianFree",
    "KFACStar",
    "LeastSquaresOptimizer",
    "Parameters",
    "PerLayer",
    "SampleSpace",
    "TruncatedCG",
]
