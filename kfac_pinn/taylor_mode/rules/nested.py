"""Rules for functions of which nothing is known but that autograd differentiates them.

Along a curve x(t) = sum_k x_k t^k / k! the derivatives of y(t) = f(x(t)) at t = 0 are those of
nested reverse-mode autograd: with a dummy c, d/dt <c, y> is linear in c, and its derivative in c is
y'(t). The top order x_K enters y_K linearly, as Df(x_0) x_K, so that it may stay summed over
directions while the rest of y_K is found along one direction after the other.

Exact to any order that autograd has, but each direction costs 2^K evaluations or so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.jets import Jet, jets_among
from kfac_pinn.taylor_mode.rule_table import name_of, register
from kfac_pinn.taylor_mode.rules.registration import is_floating

__all__ = ["by_autograd"]

Curve = Sequence[Tensor]  # x_0, x_1, ...


def by_autograd(*functions: Any) -> None:
    """Register functions that autograd differentiates as often as the jets' order."""
    register(lambda function: partial(differentiated, function), *functions)


def differentiated(function: Any, *args: Any, **kwargs: Any) -> Any:
    """The function on jets that stand anywhere among its arguments; floating outputs are jets."""
    leaves, structure = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet)]
    jets = jets_among(leaves)
    shape: list[Any] = []  # of the outputs, known after the first call

    def evaluate(points: Sequence[Tensor]) -> list[Any]:
        given = list(leaves)
        for i, point in zip(places, points, strict=True):
            given[i] = point
        args, kwargs = tree_unflatten(given, structure)
        outputs, spec = tree_flatten(function(*args, **kwargs))
        shape[:] = [spec]
        return outputs

    try:
        with torch.enable_grad():
            outputs = orders_of(evaluate, jets)
    except RuntimeError as error:
        if "derivative" not in str(error) and "differentiable" not in str(error):
            raise
        raise NotImplementedError(
            f"{name_of(function)} on jets of order {jets[0].basis.order}: autograd does not "
            f"differentiate it so often ({error}). Write it in other functions, or give it a rule"
        ) from error
    return tree_unflatten(outputs, shape[0])


def orders_of(evaluate: Callable[[Sequence[Tensor]], list[Any]], jets: Sequence[Jet]) -> list[Any]:
    """What is evaluated, as jets."""
    basis, rows = jets[0].basis, [jet.coefficients() for jet in jets]
    K, top = basis.order, basis.sizes[-1]
    slopes = [along(evaluate, [(x[0], x[K][c]) for x in rows], 1) for c in range(top)]
    lower = range(basis.count if K > 1 else 0)
    curves = ([(x[0], *(x[k][d] for k in range(1, K))) for x in rows] for d in lower)
    bent = [along(evaluate, curve, K) for curve in curves]
    return [
        assembled([each[i] for each in bent], [each[i] for each in slopes], basis)
        for i in range(len(slopes[0]))
    ]


def assembled(bent: Sequence[Any], slopes: Sequence[Any], basis: Basis) -> Any:
    """One output: orders 0 .. K-1, and in the top order the linear part and the rest."""
    if not isinstance(slopes[0], list):
        return slopes[0]
    top = torch.stack([slope for _, slope in slopes])
    if bent:
        top = top + basis.collapse(torch.stack([each[-1] for each in bent]))
    middle = [torch.stack([each[k] for each in bent]) for k in range(1, basis.order)]
    jet = Jet(torch.cat([slopes[0][0].unsqueeze(0), *middle, top]), basis)
    return jet if basis.differentiable else jet.like(jet.rows.detach())


def along(
    evaluate: Callable[[Sequence[Tensor]], list[Any]], curves: Sequence[Curve], order: int
) -> list[Any]:
    """Of each output [y, y', ..., y^(order)] at t = 0; as it is where it has no derivatives."""
    t = torch.zeros((), dtype=torch.float64, device=curves[0][0].device, requires_grad=True)
    points = [
        torch.stack([x * (t**k / math.factorial(k)).to(x) for k, x in enumerate(curve)]).sum(0)
        for curve in curves
    ]
    return [derivatives(y, t, order) if is_floating(y) else y for y in evaluate(points)]


def derivatives(y: Tensor, t: Tensor, order: int) -> list[Tensor]:
    """d^k y / dt^k for k = 0 .. order."""
    if y.is_complex():
        return [*map(torch.view_as_complex, derivatives(torch.view_as_real(y), t, order))]
    c = torch.ones_like(y).requires_grad_()
    scalar, found = (c * y).sum(), [y]
    for _ in range(order):
        scalar = derivative(scalar, t)
        found.append(derivative(scalar, c))
    return found


def derivative(scalar: Tensor, argument: Tensor) -> Tensor:
    """d scalar / d argument, with its graph; zero where it does not enter."""
    if not scalar.requires_grad:
        return torch.zeros_like(argument)
    (found,) = torch.autograd.grad(
        scalar, argument, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return found


# Linear algebra.
by_autograd(
    torch.det, torch.logdet, torch.slogdet, torch.inverse, torch.linalg.inv, torch.linalg.solve,
    torch.linalg.lstsq, torch.linalg.pinv, torch.pinverse, torch.linalg.solve_triangular,
    torch.linalg.cholesky, torch.cholesky, torch.cholesky_inverse, torch.cholesky_solve,
    torch.linalg.eigh, torch.linalg.eigvalsh, torch.linalg.svd, torch.linalg.svdvals, torch.svd,
    torch.linalg.qr, torch.qr, torch.linalg.lu, torch.linalg.lu_factor, torch.linalg.lu_solve,
    torch.matrix_exp, torch.linalg.tensorinv, torch.linalg.tensorsolve, torch.linalg.matrix_norm,
    torch.linalg.cond, torch.triangular_solve, torch.linalg.vander, torch.linalg.inv_ex,
    torch.linalg.solve_ex, torch.linalg.cholesky_ex, torch.linalg.lu_factor_ex, torch.index_reduce,
)  # fmt: skip

# Entries written into a tensor, or collected in other orders.
by_autograd(
    torch.scatter, torch.scatter_add, torch.scatter_reduce, torch.index_add, torch.index_copy,
    torch.index_fill, torch.index_put, torch.masked_scatter, torch.select_scatter,
    torch.slice_scatter, torch.diagonal_scatter, torch.as_strided, torch.take, torch.Tensor.put,
    torch.renorm,
)  # fmt: skip

# Statistics, and reductions over entries.
by_autograd(
    torch.quantile, torch.nanquantile, torch.nanmean, torch.nansum, torch.cov, torch.corrcoef,
    torch.cumprod, torch.mvlgamma,
)  # fmt: skip

# Bessel functions and their kind; those that torch does not differentiate have no rule.
by_autograd(torch.special.i0, torch.special.i0e, torch.special.i1, torch.special.i1e)

# Pooling, resampling, losses.
by_autograd(
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
    F.adaptive_max_pool3d, F.grid_sample, F.local_response_norm, F.lp_pool1d, F.lp_pool2d,
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.cross_entropy, F.nll_loss, F.kl_div, F.poisson_nll_loss,
    F.gaussian_nll_loss, F.soft_margin_loss, F.hinge_embedding_loss, F.margin_ranking_loss,
    F.cosine_embedding_loss, F.triplet_margin_loss, F.embedding,
)  # fmt: skip
