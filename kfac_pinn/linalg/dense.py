"""Dense symmetric solves and the reduction of a tall least-squares problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

__all__ = [
    "aligned",
    "damped_inverse",
    "damped_solve",
    "normal_equations",
    "pinv_solve",
    "reduce_rows",
    "sum_of_squares",
]


def damped_solve(matrix: Tensor, rhs: Tensor, damping: float | Tensor = 0.0) -> Tensor:
    """(M + damping I)^-1 b for symmetric positive semi-definite M; see `damped_inverse`.

    Args:
        matrix: M, shape (n, n).
        rhs: b, shape (n,) or (n, m).
        damping: a number, or one for each unknown (n,).
    """
    return damped_inverse(matrix, damping)(rhs)


def damped_inverse(
    matrix: Tensor, damping: float | Tensor = 0.0, rtol: float | None = None
) -> Callable[[Tensor], Tensor]:
    """b -> (M + damping I)^-1 b, factored once, for symmetric positive semi-definite M.

    Cholesky; `pinv_solve` where an entry of the damping is zero, since M alone may be singular
    and Cholesky would divide by rounding errors, and where rounding made M + damping I indefinite.
    Both in double precision: single precision factors a matrix eps ||M|| away, which is more than
    the damping of a long run, and hides it behind an M that is then indefinite.

    Args:
        matrix: M, shape (n, n); b has shape (n,) or (n, m).
        damping: a number, or one for each unknown (n,).
        rtol: of `pinv_solve`.
    """
    damped = matrix.to(double(matrix), copy=True)
    shift = torch.as_tensor(damping, dtype=damped.dtype, device=damped.device)
    damped.diagonal().add_(shift)
    # Cholesky finds out whether M + damping I is positive definite, which eigenvalues would, too,
    # at several times the cost
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed or not shift.all():
        # What M's own precision left of zero, not what double precision would
        rtol = len(matrix) * torch.finfo(matrix.dtype).eps if rtol is None else rtol
        return lambda rhs: pinv_solve(damped, rhs.to(damped), rtol).to(rhs)

    def solve(rhs: Tensor) -> Tensor:
        columns = rhs.to(damped).reshape(len(rhs), -1)
        return torch.cholesky_solve(columns, factor).reshape(rhs.shape).to(rhs)

    return solve


def double(like: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return like.dtype if like.device.type == "mps" else torch.float64


def pinv_solve(matrix: Tensor, rhs: Tensor, rtol: float | None = None) -> Tensor:
    """M^+ b for symmetric M; eigenvalues |lambda| <= rtol max|lambda| count as zero.

    Args:
        matrix: M, shape (n, n).
        rhs: b, shape (n,) or (n, m).
        rtol: n eps by default.
    """
    values, vectors = torch.linalg.eigh(matrix)
    # eigh is exact for a matrix n eps ||M|| away: eigenvalues below that may as well be zero.
    rtol = len(matrix) * torch.finfo(matrix.dtype).eps if rtol is None else rtol
    # Of both signs: what rounding made negative is as far from the truth as its size says
    kept = values.abs() > rtol * values.abs().max()
    vectors, columns = vectors[:, kept], rhs.reshape(len(rhs), -1)
    return (vectors @ ((vectors.mT @ columns) / values[kept, None])).reshape(rhs.shape)


def reduce_rows(blocks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """R and Q^T r of J = Q R, from blocks of rows of (J, r), one block in memory at a time.

    min_p ||J p + r|| and min_p ||R p + Q^T r|| have the same minimiser and the same decrease; R
    has the singular values of J (no squared condition number, unlike J^T J). r's component
    outside the range of J is dropped.

    Args:
        blocks: pairs of rows (n, P) and residuals (n,).

    Returns:
        R of shape (min(N, P), P) and Q^T r of shape (min(N, P),).

    Raises:
        ValueError: if there is no block.

    Source: Demmel, Grigori, Hoemmen & Langou (2012), sequential TSQR.
    """
    triangle: Tensor | None = None
    for rows, residual in blocks:
        # With r as one more column, Q^T r falls out as the last column of R: Q is never formed.
        block = torch.cat([rows, residual[:, None]], dim=1)
        # R of the rows so far stands for them, since Q drops out of every J^T J.
        tall = block if triangle is None else torch.cat([triangle, block])
        triangle = torch.linalg.qr(tall, mode="r").R
    if triangle is None:
        raise ValueError("reduce_rows was given no blocks; give at least one pair (rows, residual)")
    parameters = triangle.shape[1] - 1
    # Row P of a tall problem holds the norm of r's part outside the range, which no step changes.
    return triangle[:parameters, :parameters], triangle[:parameters, parameters]


def aligned(blocks: Iterable[Tensor], *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each block of rows with its rows of other tensors, which hold all of them in one piece."""
    start = 0
    for rows in blocks:
        stop = start + len(rows)
        yield rows, *(other[start:stop] for other in others)
        start = stop


def normal_equations(blocks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """J^T J (P, P) and J^T r (P,) from blocks of rows of (J, r), one block in memory at a time.

    A third of the work of `reduce_rows`, and half of the digits: the condition number is squared.

    Args:
        blocks: pairs of rows (n, P) and residuals (n,).

    Raises:
        ValueError: if there is no block.
    """
    # With r as one more column J^T r comes out of the same products
    both = sum_of_squares(torch.cat([J, r[:, None]], dim=1) for J, r in blocks)
    return both[:-1, :-1].contiguous(), both[-1, :-1].contiguous()


def sum_of_squares(blocks: Iterable[Tensor]) -> Tensor:
    """J^T J, shape (P, P), from blocks of rows of J, one block in memory at a time.

    Raises:
        ValueError: if there is no block.
    """
    total: Tensor | None = None
    for rows in _columns_together(blocks):
        if total is None:
            total = rows.new_zeros(rows.shape[1], rows.shape[1])
        _add_upper_square(rows, total)
    if total is None:
        raise ValueError("J^T J was asked of no rows; give at least one block")
    return _mirrored(total)


WIDE = 192  # from here on the copy below pays
PIECE = 512  # rows; with a thousand columns 4 MiB


def _columns_together(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same rows in pieces whose columns are contiguous, where that is faster on a CPU.

    Halves of a row-major matrix lie a power of two apart in memory, so that their columns compete
    for the same lines of the cache: the square of 256 columns takes a third less from a copy.
    A piece is good until the next one is asked for.
    """
    copy: Tensor | None = None
    for rows in blocks:
        if rows.device.type != "cpu" or rows.shape[1] < WIDE or rows.stride(0) == 1:
            yield rows
            continue
        for piece in rows.split(PIECE):
            if copy is None:
                copy = piece.new_empty(piece.shape[1], PIECE)
            yield copy[:, : len(piece)].copy_(piece.mT).mT


# Blocks of this width are multiplied whole: narrower ones lose in speed what symmetry saves.
NARROW = 64


def _add_upper_square(rows: Tensor, out: Tensor) -> None:
    """out += rows^T rows in the upper triangle, by halves: about half of the multiplications."""
    width = rows.shape[1]
    if width <= NARROW:
        out.addmm_(rows.mT, rows)
        return
    half = width // 2
    left, right = rows[:, :half], rows[:, half:]
    _add_upper_square(left, out[:half, :half])
    _add_upper_square(right, out[half:, half:])
    out[:half, half:].addmm_(left.mT, right)


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix with this upper triangle."""
    # Not upper + upper^T: the blocks on the diagonal are whole already
    lower = torch.ones_like(upper, dtype=torch.bool).tril_(-1)
    return torch.where(lower, upper.mT, upper)
