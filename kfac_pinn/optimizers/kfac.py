"""K-FAC for PINNs as published: Kronecker-factored Gauss-Newton directions.

Source: Dangel, Mueller & Zeinhofer (2024), "Kronecker-factored approximate curvature for
physics-informed neural networks" (NeurIPS); formulas in docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_pinn.curvature.kronecker_factors import BlockCurvature, Factors, KroneckerCurvature
from kfac_pinn.jacobian.layers import Block
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.search.line import GridSearch, Search
from kfac_pinn.search.model import QuadraticModel
from kfac_pinn.search.step import Step

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KFAC", "STORED", "KFACStar", "refreshed"]

STORED = {"curvature": BlockCurvature}  # with the first parameter of each block


def refreshed(
    optimizer: LeastSquaresOptimizer,
    factors: Factors,
    linearization: Linearization,
    damping: Callable[[Block], float] | None = None,
) -> KroneckerCurvature:
    """F at this step, kept in the optimizer's state.

    lambda, and the ridge beside it, are the groups' unless one number for both is given.
    """
    state = optimizer.state
    owners = {block: state[block.parameters[0]] for block in linearization.blocks}
    stored = {block: owner.get("curvature") for block, owner in owners.items()}
    known = {block: curvature for block, curvature in stored.items() if curvature is not None}
    level = damping or (lambda block: damping_of(optimizer, block))
    # A damping that is handed over has the ridge in it already
    ridge = linearization.ridge if damping is None else None
    curvature = factors.refresh(known, linearization, optimizer.steps, level, ridge)
    for block, kept in curvature.blocks.items():
        owners[block]["curvature"] = kept
    return curvature


def damping_of(optimizer: LeastSquaresOptimizer, block: Block) -> float:
    """lambda of a block: that of its first parameter's group."""
    owner = block.parameters[0]
    groups = (g for g in optimizer.param_groups if any(p is owner for p in g["params"]))
    return float(next(groups)["damping"])


class KFAC(DirectionOptimizer):
    """Kronecker-factored Gauss-Newton steps with momentum and a line search.

        d_t = -F^-1 grad L + momentum d_(t-1),      theta <- theta + length * lr * d_t

    Args:
        params: parameters, named parameters or groups; the three numbers may differ by group.
        lr: multiplies the direction before the search.
        damping: lambda >= 0, enters F as `factors.rule` says (of a layer: that of its weight).
        momentum: in [0, 1).
        factors: Fisher type, weight sharing, averages, damping rule, periods.
        search: the step length; by default the best of a grid, `FixedStep()` for a fixed lr.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Dangel et al. (2024), algorithm 1.
    """

    kinds = STORED

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        damping: float = 1e-8,
        momentum: float = 0.0,
        factors: Factors | None = None,
        search: Search | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "damping": damping, "momentum": momentum}
        super().__init__(params, defaults, GridSearch() if search is None else search, **common)
        self.factors = Factors() if factors is None else factors
        check_parts(self, "factors")

    def direction(self, linearization: Linearization) -> Tensor:
        """-F^-1 grad L + momentum d_(t-1)."""
        curvature = refreshed(self, self.factors, linearization)
        # lr scales what is added, not what is remembered: it may change between the steps
        newton = curvature.inverse(-linearization.gradient)
        direction = newton + self.expand("momentum") * self.gather("direction")
        self.scatter("direction", direction)
        return direction


class KFACStar(LeastSquaresOptimizer):
    """K-FAC*: step length and momentum from the exact damped quadratic model.

        theta <- theta + alpha d + mu delta,        d = -F^-1 grad L,   delta the step before,
        (alpha, mu) = argmin  grad L.p + 1/2 p.(J^T J + lambda I) p,    p = alpha d + mu delta.

    Args:
        params: parameters, named parameters or groups; the damping may differ by group.
        lr: alpha of the first step, which has no step before it; that of the published runs by
            default, which hardly moves.
        damping: lambda >= 0, of the factors and of the model.
        factors: Fisher type, weight sharing, averages, damping rule, periods.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Dangel et al. (2024), section 3.4; Martens & Grosse (2015), section 7.
    """

    kinds = STORED

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-6,
        damping: float = 1e-8,  # among the source's tuned ones, 8e-11 to 1.2e-7
        factors: Factors | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "damping": damping}
        super().__init__(params, defaults, **common)
        self.factors = Factors() if factors is None else factors
        check_parts(self, "factors")

    @property
    def evaluates(self) -> bool:
        """Never."""
        return False

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The minimum of the model on the plane of d and delta; never evaluates the loss."""
        curvature = refreshed(self, self.factors, linearization)
        direction, previous = curvature.inverse(-linearization.gradient), self.gather("step")
        # No plane yet: the published runs began with lr d
        if not previous.any():
            step = self.expand("lr") * direction
            self.scatter("step", step)
            return Step(step)
        plane = torch.stack([direction, previous])
        # Two products with J, exact: F itself is too rough to say how far to go
        model = QuadraticModel(linearization, plane, self.expand("damping"))
        c = model.minimiser()
        alpha, mu = c.tolist()
        step = alpha * direction + mu * previous
        self.scatter("step", step)
        return Step(step, length=alpha, predicted=model.decrease(c), info={"momentum": mu})
