"""The damped quadratic model of a step, diagonal in the singular basis of J.

The model of the loss at theta + p is m(p) = 1/2 ||J p + r||^2 + e.p (e: the gradient of the linear
term of convex losses, zero for least squares). One singular value decomposition J = U diag(S) V^T
answers every question about its damped minimisers

    p(lambda) = -(J^T J + lambda D^2)^-1 (J^T r + e),

D being the units of the parameters: J stands for J D^-1 from here on, and D p for p.

J^T J and J J^T cost half of the digits, and serve as long as lambda is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn.linalg import sum_of_squares

__all__ = ["Decomposition", "GramianDecomposition", "KernelDecomposition", "Units"]

Units: TypeAlias = Callable[[Tensor], Tensor]  # squared norms of J's columns (P,) -> D (P,)


class Decomposition:
    """The quadratic model of one step, diagonal in the singular basis of J.

    With b = S U^T r + V^T e and e' = e - V V^T e:  p(lambda) = -V b / (S^2 + lambda) - e' / lambda.

    Args:
        J: shape (R, P); a wide one is first reduced by a QR decomposition of J^T.
        r: shape (R,).
        linear_term: e, shape (P,), or None.
        scale: from J's columns to the units of the parameters; None: D = 1.

    Attributes:
        units: D, shape (P,), or 1.
        S: singular values, descending, shape (min(R, P),).
        b: the gradient in the right singular basis, same shape.
        outside: e', the part of the gradient in the null space of J, shape (P,).
        sketched: whether J and r are random sums of the rows of the problem.
    """

    sketched = False

    # The least lambda / S_1^2 with a meaning: singular values have an error of eps S_1, and lambda
    # is compared with their squares.
    rounding = torch.finfo(torch.float64).eps ** 2

    def __init__(
        self,
        J: Tensor,
        r: Tensor,
        linear_term: Tensor | None = None,
        scale: Units | None = None,
    ) -> None:
        J, linear_term = self._in_units(J, linear_term, scale)
        self._decompose(J, r, linear_term)

    def _decompose(self, J: Tensor, r: Tensor, linear_term: Tensor | None) -> None:
        """S, b and e' of a J in units."""
        # QR first: an SVD of the square core costs R^3 where one of J^T costs R^2 P several times.
        wide = J.shape[0] < J.shape[1]
        Q, core = torch.linalg.qr(J.mT) if wide else (None, J.mT)
        W, self.S, Ut = torch.linalg.svd(core, full_matrices=False)
        self._factors = [W] if Q is None else [Q, W]  # V = Q W: their product is never needed
        self.b = self.S * (Ut @ r)
        self.outside = J.new_zeros(J.shape[1])
        if linear_term is not None:
            inside = self._lower(linear_term)
            self.b = self.b + inside
            if wide:  # else V spans everything, and the difference would be rounding / lambda
                self.outside = linear_term - self._lift(inside)

    def step(self, damping: float) -> Tensor:
        """p(lambda), shape (P,)."""
        scaled = -self._lift(self.b / (self.S.square() + damping)) - self.outside / damping
        return scaled / self.units

    def solver(self, gradient: Tensor) -> Callable[[float], Tensor]:
        """lambda -> -(J^T J + lambda D^2)^-1 g for another gradient g (P,), with this J."""
        gradient = gradient / self.units
        inside = self._lower(gradient)
        outside = gradient - self._lift(inside)

        def solve(damping: float) -> Tensor:
            scaled = -self._lift(inside / (self.S.square() + damping)) - outside / damping
            return scaled / self.units

        return solve

    def norm(self, damping: Tensor) -> Tensor:
        """||D p(lambda)|| for dampings of any shape; falls as lambda rises."""
        inside = self.b / (self.S.square() + damping[..., None])
        return (inside.square().sum(-1) + self.outside.square().sum() / damping.square()).sqrt()

    def decrease(self, damping: float) -> float:
        """m(0) - m(p(lambda)) = sum b^2 (S^2/2 + lambda) / (S^2 + lambda)^2 + ||e'||^2 / lambda.

        Eq. (28) of docs/mathematics.md.
        """
        curvature = self.S.square()
        inside = (self.b / (curvature + damping)).square() * (curvature / 2 + damping)
        return float(inside.sum() + self.outside.square().sum() / damping)

    def effective_parameters(self, damping: float) -> float:
        """sum S^2 / (S^2 + lambda), the trace of J (J^T J + lambda I)^-1 J^T.

        How many of the R residuals the step fits freely: near R the points are interpolated,
        whatever the equation. Source: Golub, Heath & Wahba (1979), generalised cross-validation.
        """
        # written so that S^2 + lambda cannot underflow to 0 / 0
        tiny = torch.finfo(self.S.dtype).tiny
        return float((1 / (1 + damping / self.S.square().clamp_min(tiny))).sum())

    def damping(self, radius: float, rounds: int = 6) -> float:
        """lambda with ||D p(lambda)|| = radius, by dividing an interval of log lambda in 64, again.

        Six rounds leave 64^-6 = 1e-11 of it, at most 1e-9 of lambda. Newton's method on 1 / ||p||
        takes as many evaluations, one after the other, and fails where the norm is flat.

        From ||p|| = radius follows lambda <= ||(b, e')|| / radius. Below `rounding` S_1^2 the
        decomposition has no digits, so that a radius beyond the step there returns that damping.
        """
        tiny = torch.finfo(torch.float64).tiny
        slope = float((self.b.square().sum() + self.outside.square().sum()).sqrt())
        low = math.log(self.rounding * float(self.S[0]) ** 2 + tiny)
        high = max(low, math.log(slope + tiny) - math.log(radius + tiny))
        for _ in range(rounds):
            grid = torch.linspace(low, high, 65, dtype=torch.float64)
            longer = int((self.norm(grid.exp().to(self.S)) > radius).sum())  # norms fall
            low, high = float(grid[max(longer - 1, 0)]), float(grid[min(longer, 64)])
        # The upper end, where ||p|| is at most the radius
        return math.exp(high)

    def _in_units(
        self, J: Tensor, linear_term: Tensor | None, scale: Units | None
    ) -> tuple[Tensor, Tensor | None]:
        """J D^-1 and D^-1 e."""
        self.units = J.new_ones(()) if scale is None else scale(J.square().sum(0))
        if scale is None:
            return J, linear_term
        return J / self.units, None if linear_term is None else linear_term / self.units

    def _lift(self, y: Tensor) -> Tensor:
        """V y."""
        for factor in reversed(self._factors):
            y = factor @ y
        return y

    def _lower(self, p: Tensor) -> Tensor:
        """V^T p."""
        for factor in self._factors:
            p = factor.mT @ p
        return p


class GramianDecomposition(Decomposition):
    """The same model from J^T J = V diag(S^2) V^T, for dampings far above eps S_1^2.

    Args:
        gramian: J^T J, shape (P, P).
        gradient: J^T r + e, shape (P,).
        scale: as above.
    """

    # Eigenvalues have an error of eps S_1^2 times a small power of P: 1e4 keeps lambda above it.
    rounding = 1e4 * torch.finfo(torch.float64).eps

    def __init__(self, gramian: Tensor, gradient: Tensor, scale: Units | None = None) -> None:
        self.units = gramian.new_ones(()) if scale is None else scale(gramian.diagonal())
        if scale is not None:
            gramian = gramian / self.units / self.units[:, None]
            gradient = gradient / self.units
        values, vectors = torch.linalg.eigh(gramian)
        # rounding makes the least eigenvalues negative
        self.S, V = values.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
        self.b, self.outside = V.mT @ gradient, torch.zeros_like(gradient)
        self._factors = [V]


class KernelDecomposition(Decomposition):
    """The same model of a wide J from J J^T = U diag(S^2) U^T, for dampings far above eps S_1^2.

    V = J^T U / S is never formed: a quarter of the operations of a QR decomposition of J^T.

    Args:
        J: shape (R, P), R <= P.
        r: shape (R,).
        linear_term: e, shape (P,), or None.
        scale: as above.
    """

    rounding = GramianDecomposition.rounding

    def _decompose(self, J: Tensor, r: Tensor, linear_term: Tensor | None) -> None:
        values, vectors = torch.linalg.eigh(sum_of_squares([J.mT]))
        # V = J^T U / S divides by S: where S is rounding, the quotient is bounded by this floor.
        noise = torch.finfo(J.dtype).eps * values[-1]
        # eigh sorts ascending, the SVD that this stands in for descending
        U, self.S = vectors.flip(1), values.flip(0).clamp_min(noise).sqrt()
        self._factors = [J.mT, U / self.S]
        self.b, self.outside = self.S * (U.mT @ r), J.new_zeros(J.shape[1])
        if linear_term is not None:
            inside = self._lower(linear_term)
            self.b, self.outside = self.b + inside, linear_term - self._lift(inside)
