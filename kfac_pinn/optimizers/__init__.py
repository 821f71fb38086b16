"""An optimizer is a direction and a search, or damped steps and a law for the damping.

base                 the step loop: linearise, propose, move, write down
direction            direction and search: kfac, engd, spring, self_scaled
damped               damped steps and a law: kfac_pinn, hessian_free; gauss_newton chooses the
                     damping by a trust region, levenberg_marquardt by trials
affordable           where kfac_pinn takes the steps of gauss_newton instead
stateful             what is remembered: saved, restored, undone; saving: to plain containers
source               where a step reads from: a closure, or losses sent backwards before it
"""

from kfac_pinn.optimizers.affordable import Affordable
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.optimizers.damped import DampedOptimizer
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.optimizers.engd import ENGD, Diagonal, Full, PerLayer, SampleSpace
from kfac_pinn.optimizers.gauss_newton import GaussNewton
from kfac_pinn.optimizers.hessian_free import GGN, Hessian, HessianFree, TruncatedCG
from kfac_pinn.optimizers.kfac import KFAC, KFACStar
from kfac_pinn.optimizers.kfac_pinn import KFACPINN
from kfac_pinn.optimizers.levenberg_marquardt import LevenbergMarquardt
from kfac_pinn.optimizers.self_scaled import SelfScaledBroyden
from kfac_pinn.optimizers.spring import SPRING

__all__ = [
    "ENGD",
    "GGN",
    "KFAC",
    "KFACPINN",
    "SPRING",
    "Affordable",
    "DampedOptimizer",
    "Diagonal",
    "DirectionOptimizer",
    "Full",
    "GaussNewton",
    "Hessian",
    "HessianFree",
    "KFACStar",
    "LeastSquaresOptimizer",
    "LevenbergMarquardt",
    "Parameters",
    "PerLayer",
    "SampleSpace",
    "SelfScaledBroyden",
    "TruncatedCG",
]
