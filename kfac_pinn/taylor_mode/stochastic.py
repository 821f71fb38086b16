"""Unbiased estimators of operators in high dimension: a few random directions in place of all.

Each is right on average over its draws, for every point; the mean square of a residual that holds
one is *not* that of the exact residual (it has the estimator's variance on top).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor

from kfac_pinn.settings import FUNCTION, GENERATOR, INTEGER, TENSOR, optional, takes, whole
from kfac_pinn.taylor_mode.arguments import Function, check_points
from kfac_pinn.taylor_mode.operators import taylor
from kfac_pinn.taylor_mode.polarisation import roots

__all__ = [
    "gaussian",
    "hutchinson_laplacian",
    "rademacher",
    "stochastic_bilaplacian",
    "subsampled_laplacian",
]

Draw: TypeAlias = Callable[[Sequence[int], Tensor, Generator | None], Tensor]


def gaussian(shape: Sequence[int], like: Tensor, generator: Generator | None = None) -> Tensor:
    """Independent standard normal numbers."""
    return torch.randn(*shape, generator=generator, dtype=like.dtype, device=like.device)


def rademacher(shape: Sequence[int], like: Tensor, generator: Generator | None = None) -> Tensor:
    """Independent signs: of all distributions the one with the least variance here."""
    bits = torch.randint(0, 2, tuple(shape), generator=generator, device=like.device)
    return (2 * bits - 1).to(like.dtype)


@takes(samples=whole(1), weights=optional(TENSOR), draw=FUNCTION, generator=optional(GENERATOR))
def hutchinson_laplacian(
    u: Function,
    x: Tensor,
    samples: int = 1,
    weights: Tensor | None = None,
    draw: Draw = rademacher,
    generator: Generator | None = None,
) -> Tensor:
    """Estimate sum_ij A_ij d_i d_j u by the mean of (z . ∇)^2 u over random z, E z z' = A.

    Args:
        u: the function.
        x: points (N, d).
        samples: draws a point, each of one direction (two where A is indefinite).
        weights: A (d, d), or w (d,) for a diagonal A; the identity by default.
        draw: independent numbers with mean zero and variance one: `rademacher` or `gaussian`.
        generator: where the draws come from.

    Returns:
        A tensor of the shape of u(x).

    Raises:
        ValueError: if the weights have another shape.

    Source: Hutchinson (1989); Hu et al. (2024), "Hutchinson trace estimation for PINNs".
    """
    z, signs = draws_of(x, samples, weights, lambda shape: draw(shape, x, generator))
    return taylor(u, x, 2, z, signs / samples)[-1]


def draws_of(
    x: Tensor, samples: int, weights: Tensor | None, draw: Callable[[Sequence[int]], Tensor]
) -> tuple[Tensor, Tensor]:
    """Directions (D, N, d) and their signs: square roots of A applied to what was drawn."""
    check_points(x)
    N, d = x.shape
    if weights is None:
        return draw((samples, N, d)), x.new_ones(samples)
    if weights.shape not in ((d,), (d, d)):
        raise ValueError(f"weights must be ({d},) or ({d}, {d}), found {tuple(weights.shape)}")
    vectors, signs = roots(torch.diag(weights) if weights.ndim == 1 else weights, diagonal=False)
    # Of each sign its own samples: under one root the estimate would have cross terms
    halves = [vectors[signs == sign] for sign in (1, -1) if (signs == sign).any()]
    z = torch.cat([draw((samples, N, len(half))) @ half for half in halves])
    return z, signs[:: len(vectors) // len(halves)].repeat_interleave(samples)


@takes(count=INTEGER, weights=optional(TENSOR), generator=optional(GENERATOR))
def subsampled_laplacian(
    u: Function,
    x: Tensor,
    count: int,
    weights: Tensor | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Estimate sum_i w_i d_i^2 u from ``count`` random axes I: d / count sum_{i in I} w_i d_i^2 u.

    Axes are drawn from the generator without replacement, the same for all points; count = d is
    exact.  The weights w (d,) are ones by default.  Returns a tensor of the shape of u(x).

    Raises:
        ValueError: unless 1 <= count <= d, or for weights of another shape.

    Source: Hu et al. (2024), "Tackling the curse of dimensionality with PINNs" (SDGD).
    """
    check_points(x)
    d = x.shape[1]
    if not 1 <= count <= d:
        raise ValueError(f"count must be 1 .. {d} axes, found {count}")
    # Without replacement: less variance, and none at count = d
    axes = torch.randperm(d, generator=generator, device=x.device)[:count]
    w = x.new_ones(d) if weights is None else weights
    if w.shape != (d,):
        raise ValueError(f"weights must be ({d},), found {tuple(w.shape)}")
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    return taylor(u, x, 2, eye[axes], w[axes] * (d / count))[-1]


@takes(samples=whole(1), generator=optional(GENERATOR))
def stochastic_bilaplacian(
    u: Function, x: Tensor, samples: int = 1, generator: Generator | None = None
) -> Tensor:
    """Estimate Δ²u by the mean of (z . ∇)^4 u / 3 over standard normal z: E z_i^2 z_j^2 = 1, 3.

    ``samples`` directions a point come from the generator.  Returns a tensor of the shape of u(x).

    Source: Shi et al. (2024), "Stochastic Taylor derivative estimator" (arXiv:2412.00088).
    """
    check_points(x)
    z = gaussian((samples, *x.shape), x, generator)
    return taylor(u, x, 4, z, x.new_full((samples,), 1 / (3 * samples)))[-1]
