"""The oracle of the graph's Jacobians: one backward pass a residual, by autograd alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kfac_pinn import Linearization, linearize
from kfac_pinn.jacobian.terms import as_terms


def derivative(y: Tensor, z: Tensor) -> Tensor:
    """dy_n / dz_n as everybody writes it."""
    return torch.autograd.grad(y, z, torch.ones_like(y), create_graph=True)[0]


def rows_by_autograd(closure: Callable[[], Any], parameters: Sequence[Tensor]) -> Tensor:
    """J (R, P) of the stacked and scaled residuals, row by row."""
    residuals = [
        t.residual / len(t.residual) ** 0.5  # type: ignore[union-attr]
        for t in as_terms(closure(), parameters)
    ]
    rows = []
    for r in torch.cat(residuals):
        slopes = torch.autograd.grad(
            r, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([coordinates(slope) for slope in slopes]))
    return torch.stack(rows)


def coordinates(t: Tensor) -> Tensor:
    """Flat; of a complex tensor real and imaginary part of each entry."""
    return (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1)


def assert_exact(
    closure: Callable[[], Any], parameters: Sequence[Tensor], tolerance: float = 1e-12
) -> Linearization:
    """Every product and row of the linearisation is autograd's, relative to the largest entry."""
    truth = rows_by_autograd(closure, parameters)
    found = linearize(closure, parameters)
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(len(truth), dtype=truth.dtype, generator=generator)
    V = torch.rand(truth.shape[1], 2, dtype=truth.dtype, generator=generator)
    allowed = tolerance * float(truth.abs().max())
    sizes = float(len(truth) + truth.shape[1])
    for _ in range(2):  # before any row was asked for, and after
        assert (found.vjp(u) - truth.T @ u).abs().max() <= allowed * sizes
        assert (found @ V[:, 0] - truth @ V[:, 0]).abs().max() <= allowed * sizes
        assert (found @ V - truth @ V).abs().max() <= allowed * sizes
        assert (found.rows() - truth).abs().max() <= allowed
    assert (found.gramian() - truth.T @ truth).abs().max() <= allowed * sizes * truth.abs().max()
    assert (found.kernel() - truth @ truth.T).abs().max() <= allowed * sizes * truth.abs().max()
    return found
