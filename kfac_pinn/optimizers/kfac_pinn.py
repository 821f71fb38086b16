"""KFACPINN: exact Gauss-Newton steps where they are affordable, else truncated ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kfac_pinn.curvature.compression import Sketch
from kfac_pinn.curvature.factor_damping import TraceNormDamping
from kfac_pinn.curvature.kronecker_factors import Average, Factors
from kfac_pinn.jacobian.linearization import Linearization
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.linalg import Pairs, conjugate_gradients
from kfac_pinn.optimizers.affordable import Affordable
from kfac_pinn.optimizers.arguments import Common, check_parts
from kfac_pinn.optimizers.base import Parameters
from kfac_pinn.optimizers.damped import DampedOptimizer, Damping
from kfac_pinn.optimizers.gauss_newton import DecomposedSteps
from kfac_pinn.optimizers.gauss_newton import Memory as ExactMemory
from kfac_pinn.optimizers.kfac import STORED, refreshed
from kfac_pinn.search.damping import MARQUARDT, DampingLaw
from kfac_pinn.search.line import Armijo, Search
from kfac_pinn.search.model import DampedModel, decrease_of_solution
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.search.step import Outcome, Step
from kfac_pinn.search.trust_region import RatioControl, TargetSchedule
from kfac_pinn.settings import whole_number

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["KFACPINN"]


EXACT = DecomposedSteps(Sketch(), RatioControl(), TargetSchedule())
NEVER = Affordable(0)
UNTRODDEN = ExactMemory()


@dataclass(frozen=True)
class Choice:
    """Which kind of step is taken.

    Attributes:
        rows, columns: of the J for which it was made.
        exact: whether exact steps are.
    """

    rows: int
    columns: int
    exact: bool

    def holds(self, rows: int, columns: int) -> bool:
        """Whether J is still about that large: points are drawn anew, and their number varies."""
        return columns == self.columns and rows <= 2 * self.rows and self.rows <= 2 * rows


@dataclass(frozen=True)
class Memory(Damping):
    """lambda of truncated steps, the products that correct their preconditioner; of exact steps
    what `GaussNewton` remembers; and which of the two are taken.
    """

    pairs: Pairs | None = None
    exact: ExactMemory = UNTRODDEN
    choice: Choice | None = None

    def chosen(self, linearization: Linearization, exact: Affordable) -> Memory:
        """With the choice for this J; made anew where J has another size."""
        size = len(linearization.residual), linearization.size
        if self.choice is not None and self.choice.holds(*size):
            return self
        choice = Choice(*size, exact(linearization))
        # What one kind knows of its last steps is of no use after steps of the other
        kept = self.choice is not None and self.choice.exact == choice.exact
        return replace(self if kept else Memory(), choice=choice)


class KFACPINN(DampedOptimizer):
    """Damped Gauss-Newton steps: exact where they are affordable, else by conjugate gradients.

    Take `KFACPINN`, in float64: it takes the exact steps of `GaussNewton` where one costs about a
    second or less, conjugate gradients preconditioned by K-FAC elsewhere, and has nothing to tune.

        (J^T J + lambda I) d = -grad L,    J (R, P)

    is solved from the singular values of J where such a step takes few operations (`Affordable`):
    these are the steps of `GaussNewton`. Elsewhere, and where no trial of the loss can be made
    (`OneEvaluation`), by a few conjugate gradients from d = 0. Their preconditioner is the K-FAC
    inverse F^-1, corrected by the last products with J^T J that earlier steps computed (`Pairs`):
    as J changes slowly, the iterations continue where they stopped. lambda then follows the ratio
    of actual to predicted decrease, and a step that does not decrease the loss is shortened. Cost:
    a step of KFAC, `products` products with J and J^T, one or a few evaluations of the loss;
    memory: 2 `memory` vectors of length P.

    Exact steps end more accurate by orders of magnitude, given a minute or more. In the first ten
    seconds truncated ones are ahead beyond a few hundred parameters: `exact=Affordable(0)`.

    Args:
        params: parameters, named parameters or groups; lr may differ by group.
        lr: multiplies the step.
        products: of truncated steps: conjugate gradient iterations a step, at most; 10.
        memory: products that they remember; 100.
        factors: of their preconditioner.
        law: how their damping follows the decrease ratio.
        search: what is left of one that decreases the loss too little.
        exact: where steps are exact. None: where they are `Affordable()`; nowhere, if one of the
            five settings above says how truncated ones are to be.

    `stats` adds `exact`, 1 or 0, to `damping` and `ratio`, and for exact steps the entries of
    `GaussNewton`.

    Raises:
        TypeError, ValueError: for parameters or settings that cannot be trained with, each named.

    Source: docs/design_notes.md has what was measured; truncated Gauss-Newton: Martens (2010);
    the correction: Morales & Nocedal (2000); exact steps: as of `GaussNewton`.
    """

    kinds = STORED
    memory: Memory

    def __init__(
        self,
        params: Parameters,
        lr: float = 1.0,
        products: int | None = None,
        memory: int | None = None,
        factors: Factors | None = None,
        law: DampingLaw | None = None,
        search: Search | None = None,
        exact: Affordable | None = None,
        **common: Unpack[Common],
    ) -> None:
        shaped = any(each is not None for each in (products, memory, factors, law, search))
        # Measured (docs/design_notes.md): 5 are slower on the heat equation, 20 on both at first
        products = 10 if products is None else products
        self.products = whole_number("KFACPINN: products", products)
        self.limit = whole_number("KFACPINN: memory", 100 if memory is None else memory, least=0)
        # A tenth of the slope's promise, or a quarter of the step: a trial costs an evaluation, and
        # 4^-7 of a step is none
        search = Armijo(0.1, 0.25, 8) if search is None else search
        law = MARQUARDT if law is None else law
        super().__init__(params, {"lr": lr}, law, search, **common)
        # The first factors themselves, not averaged with the identity: F is a preconditioner from
        # the first step on, and A and B share the damping by their traces
        if factors is None:
            factors = Factors(average=Average(start=None), rule=TraceNormDamping())
        self.factors, self.memory = factors, Memory()
        # An option must not be ignored: who says how truncated steps are to be gets them
        self.exact = (NEVER if shaped else Affordable()) if exact is None else exact
        check_parts(self, "factors", "exact")
        if isinstance(search, OneEvaluation) and self.exact != NEVER:
            raise TypeError(
                "KFACPINN: exact steps are found by trials of the loss, and search=OneEvaluation() "
                "makes none: leave out exact=..., or search"
            )

    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        """Of truncated steps: a few conjugate gradients long."""
        return DampedModel(linearization, partial(self.solve, linearization))

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The exact step where it is affordable, else the truncated one."""
        if not linearization.gradient.any():
            return Step.stay(Outcome.NO_GRADIENT)
        self.memory = known = self.memory.chosen(linearization, self.exact)
        if known.choice is None or not known.choice.exact:
            return self._truncated(linearization, objective).noting(exact=0)
        step, exact = EXACT.propose(self, known.exact, linearization, objective)
        self.memory = replace(known, exact=exact)
        return step.noting(exact=1)

    def leap(self, linearization: Linearization, objective: Objective) -> Step:
        """The truncated step: what makes exact ones pay is a ratio hit by trials."""
        return super().leap(linearization, objective).noting(exact=0)

    def _truncated(self, linearization: Linearization, objective: Objective) -> Step:
        """The damped step; where none decreases the loss, K-FAC alone preconditions the next."""
        step = super().propose(linearization, objective)
        if step.outcome in (Outcome.NO_DECREASE, Outcome.ASCENT, Outcome.NOT_FINITE):
            self.memory = replace(self.memory, pairs=None)  # they may be why
        return step

    def solve(self, linearization: Linearization, damping: float) -> Step:
        """d, and the decrease L - 1/2 ||r + J d||^2 that it promises."""
        # F stands for J^T J + lambda I and the ridge, so its factors are damped by as much
        level = float(torch.as_tensor(linearization.damped(damping)).mean())
        curvature = refreshed(self, self.factors, linearization, lambda block: level)
        g = linearization.gradient
        spent: list[tuple[Tensor, Tensor]] = []

        def product(v: Tensor) -> Tensor:
            spent.append((v, linearization.curvature(v)))
            return spent[-1][1] + damping * v

        known = self._pairs(g)
        inverse = known.correct(curvature.inverse, damping)
        # Conjugate to all former directions: ten are few, and `Pairs` inverts on their span only so
        found = conjugate_gradients(
            product, -g, preconditioner=inverse, iterations=self.products, conjugate=True
        )
        # Without the damping, so that the next lambda can be added to them
        self.memory = replace(self.memory, pairs=known.join(spent, self.limit))
        value = found.model_values[-1]
        return Step(found.x, predicted=decrease_of_solution(found.x, damping, value))

    def _pairs(self, like: Tensor) -> Pairs:
        """What is remembered; forgotten when the set of parameters changes."""
        known = self.memory.pairs
        return known if known is not None and known.S.shape[1] == len(like) else Pairs.none(like)
