"""Norms of vectors and distances between them."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.registration import Operand

MATRIX_NORM = (
    "the matrix norm of order {} on jets mixes the points: for that of vectors give one dim, for "
    "matrices write torch.linalg.matrix_norm(x, ord)"
)


@rule(torch.linalg.vector_norm)
def vector_norm(x: Operand, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Operand:
    if ord == 2:
        return torch.sqrt(torch.sum(torch.square(x), dim, keepdim=keepdim))
    if ord == 1:
        return torch.sum(torch.abs(x), dim, keepdim=keepdim)
    if ord == 0 or math.isinf(ord):
        raise NotImplementedError(
            f"the norm of order {ord} on jets: write torch.amax(torch.abs(x), dim) for inf, amin "
            "for -inf; that of order 0 has no derivatives"
        )
    return torch.sum(torch.abs(x) ** ord, dim, keepdim=keepdim) ** (1 / ord)


@rule(torch.norm)
def norm(
    x: Operand, p: Any = None, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Operand:
    if p == "nuc":
        raise NotImplementedError(MATRIX_NORM.format(p))
    return vector_norm(x, 2 if p in (None, "fro") else p, dim, keepdim)


@rule(torch.linalg.norm)
def vector_or_matrix_norm(
    x: Operand, ord: Any = None, dim: Any = None, keepdim: bool = False
) -> Operand:
    of_matrix = isinstance(dim, (tuple, list)) or (dim is None and x.ndim == 2)
    if of_matrix and ord not in (None, "fro"):
        raise NotImplementedError(MATRIX_NORM.format(ord))
    return norm(x, ord, dim, keepdim)


@rule(F.normalize)
def normalize(
    x: Operand, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **kwargs: Any
) -> Operand:
    return x / torch.clamp_min(vector_norm(x, p, dim, keepdim=True), eps)


@rule(torch.cdist)
def cdist(x: Operand, y: Operand, p: float = 2.0, compute_mode: Any = None) -> Operand:
    return lengths(x.unsqueeze(-2) - y.unsqueeze(-3), p)


@rule(F.pdist)
def pdist(x: Operand, p: float = 2.0) -> Operand:
    i, j = torch.triu_indices(len(x), len(x), 1)
    return lengths(x[i] - x[j], p)


@rule(F.pairwise_distance)
def pairwise_distance(
    x: Operand, y: Operand, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Operand:
    return lengths(x - y + eps, p, keepdim)


@rule(torch.dist)
def dist(x: Operand, y: Operand, p: float = 2.0) -> Operand:
    return lengths((x - y).reshape(-1), p)


def lengths(difference: Operand, p: float, keepdim: bool = False) -> Operand:
    """The p-norm of the last dimension."""
    if p == math.inf:
        return torch.amax(torch.abs(difference), -1, keepdim)
    return vector_norm(difference, p, -1, keepdim)


@rule(F.cosine_similarity)
def cosine_similarity(x: Operand, y: Operand, dim: int = 1, eps: float = 1e-8) -> Operand:
    x, y = torch.broadcast_tensors(x, y)
    scales = (torch.clamp_min(vector_norm(each, 2, dim), eps) for each in (x, y))
    return torch.sum(x * y, dim) / math.prod(scales)
