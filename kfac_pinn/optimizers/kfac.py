"""K-FAC for PINNs as published: Kronecker-factored Gauss-Newton directions.

Source: Dangel, Mueller & Zeinhofer (2024), "Kronecker-factored approximate curvature for
physics-informed neural networks" (NeurIPS); formulas in docs/mathematics.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kfac_pinn.curvature.kronecker_factors import Factors, Stored, precondition
from kfac_pinn.jacobian.linearization import Block, Linearization
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.search.line import FixedStep, GridSearch, Objective, QuadraticModel, Search, Step

__all__ = ["KFAC", "KFACStar", "KroneckerOptimizer"]


class KroneckerOptimizer(LeastSquaresOptimizer):
    """What all K-FAC optimizers share: the curvature F, kept up to date and inverted by blocks.

    F is block diagonal: sum_k A_k (x) B_k of each layer, exact Gramians of other leaves, damped.

    Args:
        params: parameters, named parameters or groups.
        defaults: hyper-parameters of the groups, with at least "lr".
        search: the step length.
        factors: Fisher type, weight sharing, averages, damping rule, periods.
    """

    def __init__(
        self, params: Parameters, defaults: dict[str, Any], search: Search, factors: Factors
    ) -> None:
        super().__init__(params, defaults, search)
        self.factors = factors

    def refresh(self, linearization: Linearization) -> None:
        """Bring averages and inverses up to date, each where its period has passed or it is new."""
        step = self.common.get("steps", 0)
        known = {block: self._known(block) for block in linearization.blocks}
        due = step % self.factors.every == 0 or not all(known.values())
        measured = self.factors.measure(linearization, step) if due else {}
        for block, old in known.items():
            averages = old.get("factors", {})
            if step % self.factors.every == 0 or not old:
                averages = self.factors.update(averages, measured[block])
            inverse = old.get("inverse")
            if step % self.factors.invert_every == 0 or inverse is None:
                inverse = self.factors.invert(block, averages, self.damping_of(block))
            new = {"size": block.size, "factors": averages, "inverse": inverse}
            self.state[block.parameters[0]]["curvature"] = new
        self.common["steps"] = step + 1

    def precondition(self, linearization: Linearization, v: Tensor) -> Tensor:
        """F^-1 v, shape (P,); zero for parameters that no residual depends on."""
        out = torch.zeros_like(v)
        for block in linearization.blocks:
            precondition(block, self._known(block)["inverse"], v, out)
        return out

    def damping_of(self, block: Block) -> float:
        """lambda of a block: that of its first parameter's group."""
        owner = block.parameters[0]
        groups = (g for g in self.param_groups if any(p is owner for p in g["params"]))
        return float(next(groups)["damping"])

    def _known(self, block: Block) -> Stored:
        """What is stored of a block, with its first parameter; nothing if the block is another."""
        stored: Stored = self.state[block.parameters[0]].get("curvature", {})
        return stored if stored.get("size") == block.size else {}


class KFAC(KroneckerOptimizer):
    """Kronecker-factored Gauss-Newton steps with momentum and a line search.

        d_t = -F^-1 grad L + momentum d_(t-1),      theta <- theta + length * lr * d_t

    Args:
        params: parameters, named parameters or groups; the three numbers may differ by group.
        lr: multiplies the direction before the search.
        damping: lambda >= 0, enters F as `factors.rule` says (of a layer: that of its weight).
        momentum: in [0, 1).
        factors: Fisher type, weight sharing, averages, damping rule, periods.
        search: the step length; by default the best of a grid, `FixedStep()` for a fixed lr.

    Source: Dangel et al. (2024), algorithm 1.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        damping: float = 1e-8,
        momentum: float = 0.0,
        factors: Factors | None = None,
        search: Search | None = None,
    ) -> None:
        refuse_negative(damping)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), found {momentum}")
        defaults = {"lr": lr, "damping": damping, "momentum": momentum}
        super().__init__(params, defaults, search or GridSearch(), factors or Factors())

    def direction(self, linearization: Linearization) -> Tensor:
        """-F^-1 grad L + momentum d_(t-1)."""
        self.refresh(linearization)
        newton = self.precondition(linearization, -linearization.gradient)
        direction = newton + self.expand("momentum") * self.gather("direction")
        self.scatter("direction", direction)
        return direction


class KFACStar(KroneckerOptimizer):
    """K-FAC*: step length and momentum from the exact damped quadratic model.

        theta <- theta + alpha d + mu delta,        d = -F^-1 grad L,   delta the step before,
        (alpha, mu) = argmin  grad L.p + 1/2 p.(J^T J + lambda I) p,    p = alpha d + mu delta.

    Args:
        params: parameters, named parameters or groups; the damping may differ by group.
        lr: alpha of the first step, which has no step before it; that of the published runs by
            default, which hardly moves.
        damping: lambda >= 0, of the factors and of the model.
        factors: Fisher type, weight sharing, averages, damping rule, periods.

    Source: Dangel et al. (2024), section 3.4; Martens & Grosse (2015), section 7.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-6,
        damping: float = 1e-8,
        factors: Factors | None = None,
    ) -> None:
        refuse_negative(damping)
        defaults = {"lr": lr, "damping": damping}
        super().__init__(params, defaults, FixedStep(), factors or Factors())

    def direction(self, linearization: Linearization) -> Tensor:
        """-F^-1 grad L."""
        self.refresh(linearization)
        return self.precondition(linearization, -linearization.gradient)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """Never evaluates the loss."""
        direction, previous = self.direction(linearization), self.gather("step")
        info = {}
        if previous.any():
            directions = torch.stack([direction, previous])
            model = QuadraticModel(linearization, directions, self.expand("damping"))
            alpha, mu = model.minimiser().tolist()
            step, info = alpha * direction + mu * previous, {"step_length": alpha, "momentum": mu}
        else:
            step = self.expand("lr") * direction
        self.scatter("step", step)
        return Step(step, info=info)


def refuse_negative(damping: float) -> None:
    """F + lambda I must be positive."""
    if not damping >= 0:
        raise ValueError(f"damping must not be negative, found {damping}")
