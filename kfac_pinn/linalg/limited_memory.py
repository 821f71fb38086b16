"""Preconditioners that learn from the products a solver has spent before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_pinn.linalg.krylov import Operator

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """Known products y_i = G s_i of a symmetric positive semi-definite G, rows of S and Y (m, n).
    Eq. (22) of docs/mathematics.md.

    They correct an approximate inverse H_0 of A = G + damping I by one BFGS update each:

        H = (I - S^T R^-T Y) H_0 (I - Y^T R^-1 S) + S^T R^-T D R^-1 S,
        Y <- Y + damping S,   R = upper triangle of S Y^T,   D = its diagonal.

    H is positive definite and inverts A on the span of the s_i if they are conjugate. Pairs of a
    slowly changing G go on being useful: conjugate gradients resume where they stopped.

    Source: Morales & Nocedal (2000), "Automatic preconditioning by limited memory quasi-Newton
    updating"; the compact form: Byrd, Nocedal & Schnabel (1994), equation 2.6.
    """

    S: Tensor
    Y: Tensor
    # The upper triangles of S Y^T and S S^T (m, m): new pairs add columns, and the products among
    # the old ones, 2 m^2 n operations, need not be made again.
    SY: Tensor
    SS: Tensor

    @classmethod
    def none(cls, like: Tensor) -> Pairs:
        """No pairs yet, for vectors like this one (n,)."""
        none, square = like.new_empty(0, len(like)), like.new_empty(0, 0)
        return cls(none, none, square, square)

    def join(self, new: Sequence[tuple[Tensor, Tensor]], limit: int) -> Pairs:
        """The newest `limit` pairs, with one or more (s, y) appended and brought to unit length.

        Pairs without positive curvature s.y would make H indefinite and are left out.
        """
        S, Y = (torch.stack(vectors) for vectors in zip(*new, strict=True))
        length = S.norm(dim=1, keepdim=True)
        # The rounding of s.y: below it the sign says nothing
        floor = torch.finfo(S.dtype).eps * length * Y.norm(dim=1, keepdim=True)
        kept = ((S * Y).sum(1, keepdim=True) > floor)[:, 0]
        # H does not depend on the lengths of pairs; the digits of R's inverse do
        S, Y = ((V[kept] / length[kept])[max(0, int(kept.sum()) - limit) :] for V in (S, Y))
        old = slice(max(0, len(self.S) + len(S) - limit), None)
        joined = torch.cat([self.S[old], S])
        return Pairs(
            joined,
            torch.cat([self.Y[old], Y]),
            _bordered(self.SY[old, old], joined @ Y.T),
            _bordered(self.SS[old, old], joined @ S.T),
        )

    def correct(self, base: Operator, damping: float = 0.0) -> Operator:
        """v -> H v, given v -> H_0 v."""
        if len(self.S) == 0:
            return base
        S, Y = self.S, self.Y
        R = torch.triu(self.SY + damping * self.SS)
        D = R.diagonal()

        def inverse(v: Tensor) -> Tensor:
            a = torch.linalg.solve_triangular(R, (S @ v)[:, None], upper=True)[:, 0]
            # The damping as it comes: Y + damping S would be m n numbers more in memory
            z = base(v - a @ Y - (damping * a) @ S)
            right = D * a - Y @ z - damping * (S @ z)
            return z + torch.linalg.solve_triangular(R.T, right[:, None], upper=False)[:, 0] @ S

        return inverse


def _bordered(square: Tensor, columns: Tensor) -> Tensor:
    """[[square, upper part of columns], [0, the rest of them]], shape (m, m)."""
    below = square.new_zeros(len(columns) - len(square), len(square))
    return torch.cat([torch.cat([square, below]), columns], dim=1)
