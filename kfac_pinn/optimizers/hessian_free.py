"""Hessian-free optimization: truncated conjugate gradients on products with the curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

from kfac_pinn import settings
from kfac_pinn.curvature.preconditioners import Preconditioner
from kfac_pinn.jacobian.closure import evaluate
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.losses import Residuals
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import (
    RelativeProgress,
    Solution,
    conjugate_gradients,
    flatten,
    geometric_indices,
)
from kfac_pinn.linalg.krylov import Operator, StopRule
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.damped import LEAST, DampedOptimizer
from kfac_pinn.search.damping import MARTENS, DampingLaw
from kfac_pinn.search.line import Armijo, Search
from kfac_pinn.search.model import DampedModel, decrease_of_solution
from kfac_pinn.search.step import Step
from kfac_pinn.settings import FLAG, FUNCTION, SHARE, having, many, optional, whole

Closure: TypeAlias = Callable[[], Residuals]

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GGN", "Curvature", "Hessian", "HessianFree", "TruncatedCG"]


class Curvature(Protocol):
    """A matrix C (P, P), by its products."""

    def product(self, linearization: Linearization, closure: Closure) -> Operator:
        """v -> C v at the current parameters."""


@dataclass(frozen=True)
class GGN:
    """C = J^T J, positive semi-definite; a product reuses the captured factors of J.

    With convex losses, J contains the root of the loss's Hessian.
    """

    def product(self, linearization: Linearization, closure: Closure | None = None) -> Operator:
        return linearization.curvature


@dataclass(frozen=True)
class Hessian:
    """C = grad^2 L by double backward of the closure; may be indefinite, then CG stops early.

    Source: Pearlmutter (1994).
    """

    def product(self, linearization: Linearization, closure: Closure) -> Operator:
        parameters, processes = linearization.parameters, linearization.processes
        with processes.together(), torch.enable_grad():
            # A graph of its own: a linearisation keeps factors of J, not always a graph
            loss = evaluate(closure, processes=processes)
            slopes = torch.autograd.grad(
                loss, parameters, create_graph=True, materialize_grads=True
            )
            gradient = flatten(slopes)

        ridge = 0.0 if linearization.ridge is None else linearization.ridge

        def product(v: Tensor) -> Tensor:
            columns = torch.autograd.grad(
                gradient, parameters, v, retain_graph=True, materialize_grads=True
            )
            (whole,) = processes.sum(flatten(columns))
            return whole + ridge * v

        return product


PRECONDITIONER = optional(having("factor", "NystromPreconditioner()"))


@dataclass(frozen=True)
class TruncatedCG:
    """How (C + lambda I) p = -grad L, p (P,), is solved, and which iterate becomes the step.

    Args:
        stop: rules, the first that applies ends the iteration.
        iterations: at most.
        decay: the next solve starts from decay times the last solution.
        backtracking: among the iterates 1, 2, 3, 4, 5, 7, 9, 11, ... go back from the last as
            long as the loss itself gets smaller.
        preconditioner: None, or an object of `kfac_pinn.curvature.preconditioners`.

    Source: Martens (2010), sections 4.4 to 4.8.
    """

    stop: Sequence[StopRule] = (RelativeProgress(),)
    iterations: int = 250  # with the decay, those of the code that Martens published
    decay: float = 0.95
    backtracking: bool = True
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        settings.check(self, stop=many(FUNCTION, 0), iterations=whole(1), decay=SHARE)
        settings.check(self, backtracking=FLAG, preconditioner=PRECONDITIONER)

    def factor(self, linearization: Linearization, damping: Tensor) -> Operator | None:
        """The preconditioner at the current parameters, if there is one."""
        if self.preconditioner is None:
            return None
        return self.preconditioner.factor(linearization, damping)

    def solve(
        self, product: Operator, rhs: Tensor, start: Tensor, inverse: Operator | None
    ) -> Solution:
        """The iterates of conjugate gradients from decay * start."""
        return conjugate_gradients(
            product,
            rhs,
            self.stop,
            start=self.decay * start,
            preconditioner=inverse,
            iterations=self.iterations,
            keep=geometric_indices(self.iterations) if self.backtracking else (),
        )


GAUSS_NEWTON, CG = GGN(), TruncatedCG()
# As in the code that Martens published with the paper, like the 250 iterations and decay 0.95.
BACKTRACK = Armijo(c=1e-2, factor=0.8, trials=60)


class HessianFree(DampedOptimizer):
    """Newton or Gauss-Newton steps by truncated conjugate gradients.

        p ~ -(C + lambda I)^-1 grad L,      theta <- theta + length * lr * p

    No matrix is formed: memory is that of a few gradients, whatever the size of the network. Take
    it where kernel and Gramian are too large; the late steps of an ill-conditioned problem need
    many iterations or a good preconditioner. Measured on 5d Poisson (10,065 parameters, 1,500 fixed
    points, 90 s on one thread): relative L2 4.7e-3, against 1.7e-3 of KFACPINN, 6.5e-4 of SPRING.

    Args:
        params: parameters, named parameters or groups; lr and damping may differ by group.
        lr: multiplies the step before the search.
        damping: lambda > 0, the first one; live in the groups.
        curvature: C, `GGN()` or `Hessian()`.
        solver: stop rules, warm start, backtracking, preconditioner.
        law: how the damping follows the decrease ratio; `KeepDamping()` keeps it.
        search: by default backtracks by 0.8 to sufficient decrease.

    `stats` tells `cg_iterations`, `cg_reason` (why it stopped), `cg_taken` (the iterate), `ratio`
    and `damping`.

    Raises:
        TypeError, ValueError: for a setting of another kind or outside its range; it is named.

    Source: Martens (2010), "Deep learning via Hessian-free optimization"; Martens & Sutskever
    (2012).
    """

    positive = frozenset({"lr", "damping"})

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        damping: float = 1.0,
        curvature: Curvature = GAUSS_NEWTON,
        solver: TruncatedCG = CG,
        law: DampingLaw = MARTENS,
        search: Search = BACKTRACK,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, {"lr": lr, "damping": damping}, law, search, **common)
        self.curvature, self.solver = curvature, solver
        check_parts(self, "curvature", "solver")

    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        """C, and steps by conjugate gradients."""
        curvature = self.curvature.product(linearization, objective.closure)

        def solve(damping: Tensor) -> Step:
            solution = self._solve(linearization, curvature, damping)
            index, p = self._taken(solution, objective)
            notes = {"cg_iterations": solution.iterations, "cg_taken": index}
            # An indefinite C, or a start that is no longer of use, may lead uphill
            if not linearization.gradient @ p < 0:  # the promise of -inf: lambda rises
                step = Step(-linearization.gradient, predicted=-math.inf)
            else:
                value = solution.model_values[index]
                step = Step(p, predicted=decrease_of_solution(p, damping, value))
            return step.noting(**notes, cg_reason=solution.stop.value if solution.stop else "")

        return DampedModel(linearization, solve, curvature)

    def damping(self, linearization: Linearization) -> Tensor:
        """lambda of every parameter, (P,), live in the groups."""
        return self.expand("damping")

    def adapt(self, damping: float | Tensor, ratio: float, law: DampingLaw) -> None:
        """lambda of every group, by a law."""
        for group in self.param_groups:
            group["damping"] = max(law(group["damping"], ratio), LEAST * self.defaults["damping"])

    def _solve(
        self, linearization: Linearization, curvature: Operator, damping: Tensor
    ) -> Solution:
        """(C + lambda I) p = -grad L from the last solution, which is kept for the next."""
        solution = self.solver.solve(
            lambda v: curvature(v) + damping * v,
            -linearization.gradient,
            self.gather("solution"),
            self.solver.factor(linearization, torch.as_tensor(linearization.damped(damping))),
        )
        # A start that is not finite would spoil all later solves
        finite = torch.isfinite(solution.x).all()
        self.scatter("solution", solution.x if finite else torch.zeros_like(solution.x))
        return solution

    def _taken(self, solution: Solution, objective: Objective) -> tuple[int, Tensor]:
        """Index and iterate, going back from the last one while the loss gets smaller."""
        (index, p), *earlier = reversed(solution.kept)
        if not (self.solver.backtracking and objective.repeatable):
            return index, p
        # Backwards, and no further than the first rise: Martens (2010), section 4.6
        loss = objective(p)
        for i, candidate in earlier:
            if not (smaller := objective(candidate)) < loss:
                break
            index, p, loss = i, candidate, smaller
        return index, p
