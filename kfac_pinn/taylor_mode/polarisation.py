"""Which directions and weights make up an operator: sums of powers (v . ∇)^k."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Axes", "directions_of", "roots"]

Axes: TypeAlias = tuple[int, ...]


def roots(w: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
    """Directions v_d and signs s_d with sum_d s_d v_d v_d' = A (or the diagonal matrix of w).

    Positive and negative eigenvalues have directions of their own; parts that vanish have none.
    """
    if diagonal:
        values, vectors = w, torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    else:
        # Second derivatives are symmetric: only the symmetric part of w counts
        values, vectors = torch.linalg.eigh((w + w.mT) / 2)
    # An indefinite matrix has no real root: one for each sign, and a minus in the weights
    sides = [(values * sign).clamp(min=0).sqrt() for sign in (1, -1)]
    scaled = [(root.unsqueeze(-2) * vectors).movedim(-1, 0) for root in sides]
    # A compiler cannot branch on values: it carries both
    kept = [side for side in range(2) if torch.compiler.is_compiling() or sides[side].any()] or [0]
    signs = [values.new_full((len(scaled[side]),), 1.0 - 2.0 * side) for side in kept]
    return torch.cat([scaled[side] for side in kept]), torch.cat(signs)


def directions_of(terms: Mapping[Axes, Any], d: int) -> dict[Axes, Any]:
    """Integer directions v and weights w with sum_a c_a ξ_a1 ... ξ_ak = sum_v w_v (v . ξ)^k.
    Eq. (7) of docs/mathematics.md.

    Polarisation, ξ_1 ... ξ_k = 1 / (2^(k-1) k!) sum_{s in {1} x {±1}^(k-1)} s_1 ... s_k (s . ξ)^k;
    directions that are multiples of one another are merged.

    Source: Griewank, Utke, Walther (2000) interpolate the same sums.
    """
    weights: defaultdict[Axes, Any] = defaultdict(float)
    for axes, coefficient in terms.items():
        k = len(axes)
        # The first sign stays: s and -s give the same power up to its sign
        for signs in product((1, -1), repeat=k - 1):
            v = [0] * d
            for axis, sign in zip(axes, (1, *signs), strict=True):
                v[axis] += sign
            # (f v . xi)^k = f^k (v . xi)^k: a direction less for each multiple
            primitive, factor = reduced(v)
            scale = math.prod(signs) * factor**k / (2 ** (k - 1) * math.factorial(k))
            weights[primitive] += coefficient * scale
    # Exact zeros: whole numbers and dyadic fractions cancel without rounding. Trained ones stay
    nonzero = {v: w for v, w in weights.items() if any(v) and (isinstance(w, Tensor) or w)}
    return nonzero or {tuple([1] + [0] * (d - 1)): 0.0}


def reduced(v: list[int]) -> tuple[Axes, int]:
    """v = factor * primitive, whose entries share no divisor and whose first is positive."""
    leading = next((entry for entry in v if entry), 1)
    factor = math.gcd(*v) * (1 if leading > 0 else -1) or 1
    return tuple(entry // factor for entry in v), factor
