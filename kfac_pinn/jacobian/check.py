"""The Jacobian against autograd's: exact, parameter by parameter, or another way is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kfac_pinn.jacobian.dense_rows import probe, tolerance
from kfac_pinn.jacobian.linearization import Linearization

__all__ = ["autograd_of", "mismatch"]


def mismatch(
    result: Linearization, outputs: list[Tensor], names: Mapping[Tensor, str]
) -> str | None:
    """J^T u against autograd's for a random u: the first parameter that differs, and how."""
    u = probe(result.residual)
    truth = autograd_product(result, outputs, u)
    error = result.vjp(u) - truth
    errors, sizes = norms(result, error), norms(result, truth)
    allowed = tolerance(truth) * (sizes + 1e-3 * truth.norm() / math.sqrt(len(names)))
    if (errors <= allowed).all():
        return None
    for scale in (3, 5, 7):  # what autograd differs from itself, on an ill-conditioned problem
        rounding = autograd_product(result, outputs, scale * u) / scale - truth
        allowed = torch.maximum(allowed, 100 * norms(result, rounding))
    for name, error, most, size in zip(names.values(), errors, allowed, sizes, strict=True):
        if not error <= most:
            return MISMATCH.format(name=name, error=float(error / size))
    return None


def norms(result: Linearization, flat: Tensor) -> Tensor:
    """Of the parts of a flat vector, one a parameter."""
    return torch.stack([part.norm() for part in result.unflatten(flat)])


def autograd_product(result: Linearization, outputs: list[Tensor], u: Tensor) -> Tensor:
    """J^T u (P,) by autograd alone."""
    parts = zip(result.terms, outputs, result.split(u), strict=True)
    scalars = [t.scale * (output @ part) for t, output, part in parts]
    return autograd_of(torch.stack(scalars).sum(), result.parameters)


def autograd_of(scalar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Its gradient as a flat vector (P,)."""
    gradients = torch.autograd.grad(
        scalar, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


MISMATCH = (
    "the Jacobian of parameter {name} does not match autograd's (relative difference {error:.1e})"
)
