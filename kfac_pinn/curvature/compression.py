"""Making a linearised problem small enough for its singular value decomposition.

Rows of J are reduced exactly, by a blocked QR decomposition, or sketched. J is assembled from its
factors in batches of bounded memory, so that a sketched problem of any number of points fits into
memory. Everything here is in float64, whatever the parameters are: the decomposition is where
digits are lost.

While the damping is large, eigenvalues of the smaller of J^T J and J J^T serve as well as singular
values of J, at half the cost or less: their error, eps sigma_1^2, must stay far below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from kfac_pinn import settings
from kfac_pinn.curvature.decomposition import (
    Decomposition,
    GramianDecomposition,
    KernelDecomposition,
    Units,
)
from kfac_pinn.jacobian.closure import Linearization
from kfac_pinn.jacobian.layers import Leaf
from kfac_pinn.linalg import (
    CountSketch,
    flatten,
    normal_equations,
    reduce_rows,
    rows_at_once,
)
from kfac_pinn.processes import ALONE, Group
from kfac_pinn.settings import at_least, optional, whole

__all__ = ["Compression", "Exact", "Last", "Sketch"]

# Relative to sigma_1^2, where J^T J has an error of eps = 2e-16: seven digits of lambda are left,
# and within a step the damping may still fall by five hundred before `rounding` stops it.
LARGE_DAMPING = 1e-9

# Up to here a singular value decomposition takes a second or less of a core.
CHEAP = 1000
# A few random rows for each dimension keep a subspace; four were enough on all that was tried.
ROWS_A_PARAMETER = 4
# Roundings of a column of J that cancels: of the length that weight_norm divides out, say
RESOLVED = 100
FEWEST = 150  # a decomposition of so few costs nothing beside one evaluation


@dataclass(frozen=True)
class Last:
    """What the last step tells the model of the next one.

    Attributes:
        damping: lambda / sigma_1^2.
        free: how many parameters it fitted freely; inf if nobody knows.
    """

    damping: float = 0.0
    free: float = math.inf


class Compression(Protocol):
    """From a linearisation to the decomposed model of one step."""

    def __call__(
        self, linearization: Linearization, generator: Generator, last: Last
    ) -> Decomposition:
        """The model.

        Args:
            generator: the source of whatever is random, on the CPU.
            last: by which to choose how many digits and rows are needed.
        """


@dataclass(frozen=True)
class Exact:
    """All of J: R and Q^T r of a blocked QR decomposition where it has more rows than columns.

    Time O(R P min(R, P)), memory O(min(R, P) P) numbers.
    """

    def __call__(
        self, linearization: Linearization, generator: Generator, last: Last
    ) -> Decomposition:
        tall = row_count(linearization) > linearization.size
        rows, processes = batches(linearization), linearization.processes
        return decomposed(rows, tall, linearization, last.damping, processes)


@dataclass(frozen=True)
class Sketch:
    """S J and S r, random sums of the rows of J (`CountSketch`), eq. (30).

    New ones every step, so that in the long run nothing is missed. With rows to spare J stays as
    it is.

    Args:
        rows: of S; None: as many as the last step asks for (`needed`).
        hashes: how many sums each row of J enters.
    """

    rows: int | None = None
    hashes: int = 1  # S J costs a pass over J for each

    def __post_init__(self) -> None:
        settings.check(self, hashes=whole(1), rows=optional(whole(1)))
        settings.check(self, rows=optional(at_least(self.hashes)))  # each in its part of the rows

    def __call__(
        self, linearization: Linearization, generator: Generator, last: Last
    ) -> Decomposition:
        total, columns = row_count(linearization), linearization.size
        rows = needed(total, columns, last.free) if self.rows is None else self.rows
        if rows >= total:
            return Exact()(linearization, generator, last)
        found = linearization.sketched(rows, generator, self.hashes)
        # Sums of few rows need no more digits than the rows have; the decomposition does
        J, r = (part.double() for part in found)
        if linearization.ridge is not None:
            add_ridge(J, linearization.ridge.double().sqrt(), generator)
        tall = len(J) > columns
        result = decomposed([(J, r)], tall, linearization, last.damping)
        result.sketched = True
        return result


def needed(rows: int, columns: int, free: float) -> int:
    """How many sums of rows the next step needs, if the last one fitted `free` parameters freely.

    A sketch keeps a subspace of that dimension with a few rows for each. All rows, where it would
    come to a quarter of a J whose decomposition is cheap; never more than are affordable.
    """
    least, asked = min(rows, columns), ROWS_A_PARAMETER * free
    few = max(FEWEST, asked)
    # From a quarter of the rows on: the noise of a sketch holds the damping up, and with it the
    # number of rows that are asked for, where all of J would let both go on
    if least <= CHEAP:
        return rows if asked >= least / 4 or few >= least / 2 else int(few)
    return int(min(few, affordable(rows, columns)))


def affordable(rows: int, columns: int) -> int:
    """The number of sketched rows m whose decomposition costs about what the rest of a step does.

    A linearisation and seven trials take about 100 passes of 2 R P operations; the kernel of the
    sketched rows takes m^2 P and its eigenvectors 10 m^3. Up to twice as many is worth the digits.
    """
    passes = 200 * rows * columns
    # m^2 P = passes, and 10 m^3 = 3 passes: half as many rows again as at equal cost
    return min(rows, int((passes / columns) ** 0.5), int((0.3 * passes) ** (1 / 3)))


def operations(rows: int, columns: int) -> float:
    """Of one step with `Sketch()`, at most, eq. (35): 200 R P + 2 k m P + 10 m^3.

    J is R x P, k of its rows, or of their sums, are decomposed, and have m singular values.
    """
    least = min(rows, columns)
    # As `needed` decides; the steps that ask for fewer rows cost less
    kept, m = (rows, least) if least <= CHEAP else (affordable(rows, columns),) * 2
    return 200.0 * rows * columns + 2.0 * kept * m * columns + 10.0 * m**3


def add_ridge(J: Tensor, roots: Tensor, generator: Generator) -> None:
    """J += S diag(roots), the sketched rows of a ridge; roots of shape (P,)."""
    sketch = CountSketch(len(roots), len(J), generator)
    place = sketch.bucket[:, 0].to(J.device), torch.arange(len(roots), device=J.device)
    J.index_put_(place, sketch.sign[:, 0].to(J) * roots, accumulate=True)


def decomposed(
    blocks: Iterable[tuple[Tensor, Tensor]],
    tall: bool,
    linearization: Linearization,
    damping: float,
    processes: Group = ALONE,
) -> Decomposition:
    """From blocks of rows of (J, r): reduced first if J is tall, by a product if that is enough.

    Rows that several processes hold, J = [J_0; J_1; ...], are reduced by each: J_q = Q_q R_q, and
    J has the singular values of [R_0; R_1; ...]; J^T J is the sum of J_q^T J_q.
    """
    large = damping > LARGE_DAMPING
    linear_term, scale = linear_term_of(linearization), units_of(linearization)
    if not tall:
        J, r = map(processes.gather, stacked(blocks))
        return (KernelDecomposition if large else Decomposition)(J, r, linear_term, scale)
    if large:
        # J tall: its rows span all of R^P, and the linear term has no part outside of them
        gramian, gradient = processes.sum(*normal_equations(blocks))
        whole = gradient if linear_term is None else gradient + linear_term
        return GramianDecomposition(gramian, whole, scale)
    J, r = map(processes.gather, reduce_rows(blocks))
    rows = (J, r) if processes.count == 1 else reduce_rows([(J, r)])
    return Decomposition(*rows, linear_term, scale)


def stacked(blocks: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All rows together; J is not copied where it comes as one block."""
    parts = list(blocks)
    if len(parts) == 1:
        return parts[0]
    J, r = (torch.cat(each) for each in zip(*parts, strict=True))
    return J, r


def batches(linearization: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of J, and of the ridge, and entries of r in float64, a bounded number at once."""
    for J, r in linearization.batches():
        yield J.double(), r.double()
    if linearization.processes.rank == 0:  # once in all
        yield from ridge_rows(linearization)


def row_count(linearization: Linearization) -> int:
    """How many rows `batches` yields."""
    return len(linearization.residual) + (0 if linearization.ridge is None else linearization.size)


def ridge_rows(linearization: Linearization) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows sqrt(w_i) e_i of a ridge, with zeros: its gradient is in the linear term."""
    if linearization.ridge is None:
        return
    roots = linearization.ridge.double().sqrt()
    start = 0
    for part in roots.split(rows_at_once(len(roots))):
        # In batches as J's rows: all of them are a matrix (P, P)
        rows = part.new_zeros(len(part), len(roots)).diagonal_scatter(part, offset=start)
        yield rows, torch.zeros_like(part)
        start += len(part)


def linear_term_of(linearization: Linearization) -> Tensor | None:
    """The gradient of the linear term in float64."""
    return None if linearization.linear_term is None else linearization.linear_term.double()


def units_of(linearization: Linearization) -> Units | None:
    """The units of the parameters that J tells of; None where there is nothing to tell.

    Layers have none: their inputs and their initial weights are of order one. A tensor of its own
    (a coefficient of the equation, k = 400) has one, by which the size of its columns changes. So

        D = rms of the tensor's columns / rms of the layers' columns,    1 for layers,

    and no step depends on whether k is counted in N/m or kN/m. D = 1, too, where the columns are no
    more than rounding. See docs/mathematics.md.
    """
    leaves = [block.place for block in linearization.blocks if isinstance(block, Leaf)]
    if not leaves:
        return None
    layers = [part for b in linearization.blocks if not isinstance(b, Leaf) for part in b.slices]
    theta = flatten(p.detach() for p in linearization.parameters).double()
    rounding = RESOLVED * torch.finfo(linearization.residual.dtype).eps

    def scale(squares: Tensor) -> Tensor:
        # Without layers the tensors are compared with each other
        others = layers or leaves
        columns = rms(squares.sqrt(), others)
        moved = columns * rms(theta, others)  # by a change of the others as large as they are
        units = torch.ones_like(squares)
        for place in leaves:
            mine = rms(squares.sqrt(), [place])
            # One that nothing depends on yet, or by rounding only, keeps its unit
            told = mine * (rms(theta, [place]) or 1.0) > rounding * moved
            units[place] = mine / columns if told and 0 < columns < torch.inf else 1.0
        return units

    return scale


def rms(vector: Tensor, parts: Sequence[slice]) -> float:
    """The root of the mean square of some parts of a vector."""
    return float(torch.cat([vector[part] for part in parts]).square().mean().sqrt())
