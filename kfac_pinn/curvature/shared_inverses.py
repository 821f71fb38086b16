"""Inverses of Kronecker sums, each computed by one of the processes and handed to the others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from kfac_pinn.linalg import KroneckerInverse, KroneckerSum
from kfac_pinn.processes import Alone, Group

__all__ = ["dealt", "inverses"]

Key = TypeVar("Key", bound=Hashable)


def inverses(sums: Mapping[Key, KroneckerSum], processes: Group) -> dict[Key, KroneckerInverse]:
    """Of sums of any number of pairs.

    Those of one or two pairs are three matrices, and shared out; what the others do not compute is
    zero with them, so that a sum over the processes hands everything round, exactly.
    """
    if isinstance(processes, Alone):
        return {key: each.inverse() for key, each in sums.items()}
    shared = [key for key, each in sums.items() if len(each.A) <= 2]
    owners = dealt([work(sums[key]) for key in shared], processes.count)
    mine = {key for key, owner in zip(shared, owners, strict=True) if owner == processes.rank}
    with processes.together():  # one may be singular
        found = {
            key: each.inverse() if key in mine or key not in shared else each.blank()
            for key, each in sums.items()
        }
    handed = processes.sum(*(matrix for key in shared for matrix in matrices(found[key])))
    for number, key in enumerate(shared):
        left, right, eigenvalues = handed[3 * number : 3 * number + 3]
        found[key] = replace(found[key], left=left, right=right, eigenvalues=eigenvalues)
    return found


def matrices(inverse: KroneckerInverse) -> list[Tensor]:
    """What is computed of an inverse."""
    return [inverse.left, inverse.right, inverse.eigenvalues]


def work(each: KroneckerSum) -> int:
    """d_in^3 + d_out^3, in units of an eigenvalue decomposition."""
    return each.A.shape[-1] ** 3 + each.B.shape[-1] ** 3


def dealt(costs: Sequence[int], count: int) -> list[int]:
    """Who does what: the most expensive first, each to whoever has least to do."""
    load, owners = [0] * count, [0] * len(costs)
    for job in sorted(range(len(costs)), key=lambda job: -costs[job]):
        owners[job] = min(range(count), key=load.__getitem__)
        load[owners[job]] += costs[job]
    return owners
