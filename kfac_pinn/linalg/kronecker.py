"""Sums of Kronecker products acting on weight-shaped matrices, and their inverses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kfac_pinn.linalg.krylov import RelativeResidual, Solution, Stop, conjugate_gradients
from kfac_pinn.notices import outside

__all__ = ["KroneckerInverse", "KroneckerSum"]

# Up to so many entries of V one Cholesky decomposition of the whole matrix (420: 9 ms, and 0.3 ms a
# solve) costs less than ten solves by conjugate gradients, a step of `KFACPINN` (3 ms each).
SMALL = 450


class KroneckerSum:
    """F = sum_k A_k (x) B_k, which takes V of shape (d_out, d_in) to sum_k B_k V A_k.

    Args:
        pairs: K pairs (A_k, B_k), symmetric positive semi-definite, of shapes (d_in, d_in) and
            (d_out, d_out). Damping is the caller's: add it to the factors.

    Raises:
        ValueError: if there is no pair or the shapes disagree.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if not pairs:
            raise ValueError("KroneckerSum was given no pairs (A, B); give at least one")
        shapes = {(tuple(a.shape), tuple(b.shape)) for a, b in pairs}
        if len(shapes) > 1:
            raise ValueError(f"the pairs (A, B) of a KroneckerSum differ in shape: {shapes}")
        self.A = torch.stack([a for a, _ in pairs])  # (K, d_in, d_in)
        self.B = torch.stack([b for _, b in pairs])  # (K, d_out, d_out)

    def product(self, V: Tensor) -> Tensor:
        """sum_k B_k V A_k for V of shape (..., d_out, d_in)."""
        return _product(self.A, self.B, V)

    def dense(self) -> Tensor:
        """The matrix of F on V.flatten(), shape (d_out d_in, d_out d_in)."""
        return sum(torch.kron(b, a) for a, b in zip(self.A, self.B, strict=True))  # type: ignore[return-value]

    def inverse(self) -> KroneckerInverse:
        """F^-1, factored once.

        One or two pairs: exact, by simultaneous diagonalisation *against the sums*. With
        T_A^T (A_1 + A_2) T_A = I and T_A^T A_1 T_A = diag(s), so T_A^T A_2 T_A = diag(1 - s),
        and the same for B with eigenvalues t,

            F^-1 V = T_B [ (T_B^T V T_A) / (t s^T + (1 - t)(1 - s)^T) ] T_A^T.

        All eigenvalues lie in [0, 1]: whitening by one of the pairs instead loses up to six
        digits at condition 1e11 and depends on their order.

        More pairs: all but one are merged into the nearest single Kronecker product, the two that
        remain are inverted likewise, and that preconditions conjugate gradients to the tolerance
        of `KroneckerInverse.solve` (about ten iterations on the curvature of trained networks). A
        small F is decomposed as a whole instead.
        """
        if len(self.A) <= 2:
            return KroneckerInverse(*_diagonalise(self.A, self.B), self.A, self.B)
        parts = _diagonalise(*_merge(self.A, self.B))
        return KroneckerInverse(*parts, self.A, self.B, self._cholesky())

    def blank(self) -> KroneckerInverse:
        """Zeros in the shape of the inverse of one or two pairs, which another process computes."""
        d_in, d_out = self.A.shape[1], self.B.shape[1]
        left, right = self.A.new_zeros(d_out, d_out), self.A.new_zeros(d_in, d_in)
        return KroneckerInverse(left, right, self.A.new_zeros(d_out, d_in), self.A, self.B)

    def _cholesky(self) -> Tensor | None:
        """L of F = L L^T in float64, None where F is large or not positive definite."""
        if self.A.shape[1] * self.B.shape[1] > SMALL:
            return None
        # float64 for parameters of any dtype: F has the squared condition number of J
        lower, failed = torch.linalg.cholesky_ex(self.dense().double())
        return None if failed else lower


@dataclass  # not frozen: it stands in the state of optimizers, see curvature.kronecker_factors
class KroneckerInverse:
    """The inverse of a `KroneckerSum`: five tensors, or six.

    Attributes:
        left: T_B, shape (d_out, d_out).
        right: T_A, shape (d_in, d_in).
        eigenvalues: of T_B^T ... T_A, shape (d_out, d_in).
        A, B: the factors it inverts, shapes (K, d_in, d_in) and (K, d_out, d_out).
        lower: L of F = L L^T, shape (d_out d_in, d_out d_in), if it was decomposed as a whole.
    """

    left: Tensor
    right: Tensor
    eigenvalues: Tensor
    A: Tensor
    B: Tensor
    lower: Tensor | None = None

    def diagonal_solve(self, V: Tensor) -> Tensor:
        """T_B [(T_B^T V T_A) / eigenvalues] T_A^T: F^-1 V up to two pairs, close to it beyond.

        Eq. (18) of docs/mathematics.md.
        """
        return self.left @ (self.left.mT @ V @ self.right / self.eigenvalues) @ self.right.mT

    def solve(self, V: Tensor, tolerance: float | None = None, iterations: int = 500) -> Tensor:
        """F^-1 V for V of shape (..., d_out, d_in).

        The tolerance, on ||F X - V|| / ||V|| and eps^(2/3) by default, and the iteration limit
        matter beyond two pairs of large factors only; a warning says when the limit was met first.
        """
        if len(self.A) <= 2:
            return self.diagonal_solve(V)
        if self.lower is not None:
            columns = V.flatten(-2).unsqueeze(-1).to(self.lower)
            return torch.cholesky_solve(columns, self.lower).squeeze(-1).to(V).view_as(V)
        # eps^(2/3), 4e-11 in float64: more digits than a step needs, fewer than the recurrence has
        found = self.iterate(V, tolerance or torch.finfo(V.dtype).eps ** (2 / 3), iterations)
        if found.stop not in (Stop.RELATIVE_RESIDUAL, Stop.SOLVED):
            text = "" if found.stop is None else found.stop.value
            warnings.warn(
                f"the solve with {len(self.A)} Kronecker pairs stopped at relative residual "
                f"{found.residual_norms[-1]:.1e} ({text}); add damping to the factors, "
                "allow more iterations, or use at most two pairs, which are solved exactly",
                stacklevel=outside(),
            )
        return found.x

    def iterate(self, V: Tensor, tolerance: float, iterations: int) -> Solution:
        """F^-1 V by conjugate gradients preconditioned with `diagonal_solve`, and how it went."""
        return conjugate_gradients(
            lambda X: _product(self.A, self.B, X),
            V,
            (RelativeResidual(tolerance),),
            preconditioner=self.diagonal_solve,
            iterations=iterations,
        )


def whitener(matrix: Tensor) -> Tensor:
    """T with T^T M T = I: L^-T of M = L L^T, or Q lambda^-1/2 where rounding made M indefinite."""
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        values, vectors = torch.linalg.eigh(matrix)
        # below the error of eigh an eigenvalue says nothing, and 1 / sqrt of it would rule T
        floor = len(matrix) * torch.finfo(matrix.dtype).eps * values[-1].abs()
        return vectors / values.clamp_min(floor).sqrt()
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(lower.mT, identity, upper=True)


def _product(A: Tensor, B: Tensor, V: Tensor) -> Tensor:
    """sum_k B_k V A_k."""
    return (B @ V.unsqueeze(-3) @ A).sum(-3)


def _diagonalise(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """T_B, T_A and t s^T + (1 - t)(1 - s)^T of one or two pairs (with one, A_2 = B_2 = 0)."""
    right, s = _against_sum(A)
    left, t = _against_sum(B)
    eigenvalues = torch.outer(t, s) + torch.outer(1 - t, 1 - s)
    # The sum vanishes where t = 0 and s = 1: there F is singular but for what eigh rounds off.
    return left, right, eigenvalues.clamp_min(torch.finfo(s.dtype).eps)


def _against_sum(M: Tensor) -> tuple[Tensor, Tensor]:
    """T and s with T^T (sum_k M_k) T = I and T^T M_1 T = diag(s), eq. (17)."""
    white = whitener(M.sum(0))
    if len(M) == 1:
        return white, white.new_ones(len(white))
    # T_1 = white already makes the sum I; what is left to do is rotate to where M_1 is diagonal.
    s, vectors = torch.linalg.eigh(white.mT @ M[0] @ white)
    # M_1 and the sum less M_1 are both semi-definite: beyond [0, 1] there is only rounding
    return white @ vectors, s.clamp(0, 1)


def _merge(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Two pairs, one kept and the rest merged: of all choices the one with the least error."""
    K = len(A)
    rests = [[j for j in range(K) if j != kept] for kept in range(K)]
    merged = [_nearest_product(A[rest], B[rest]) for rest in rests]
    # All K choices are tried: which pair is unlike the others is not known beforehand
    kept = min(range(K), key=lambda k: merged[k][2])
    return torch.stack([A[kept], merged[kept][0]]), torch.stack([B[kept], merged[kept][1]])


def _nearest_product(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, float]:
    """The P (x) Q nearest to sum_k A_k (x) B_k, and its Frobenius error.

    The leading term of the SVD of sum_k vec(A_k) vec(B_k)^T; positive semi-definite like the
    A_k and B_k, being non-negative combinations of them. Source: Van Loan & Pitsianis (1993).
    """
    # K columns only: QR brings the matrices down to (K, K) before the decomposition.
    basis_a, R_a = torch.linalg.qr(A.flatten(1).mT)
    basis_b, R_b = torch.linalg.qr(B.flatten(1).mT)
    U, S, Vh = torch.linalg.svd(R_a @ R_b.mT)
    P, Q = (basis_a @ U[:, 0]).reshape(A.shape[1:]), (basis_b @ Vh[0]).reshape(B.shape[1:])
    sign = P.trace().sign()  # singular vectors come in pairs of either sign
    return sign * S[0] * P, sign * Q, float(S[1:].norm())
