"""What a closure may return: residuals, or outputs with a convex loss of their own.

Every term gives the same three things to the rest of the package: its loss, the *tangents*
(tensors whose Jacobian rows make up the Gauss-Newton matrix) and the residual values that stand
before those rows in the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from kfac_pinn.settings import FUNCTION, TENSOR, TEXT, many

__all__ = [
    "BROADCAST",
    "ConvexLoss",
    "LeastSquares",
    "Residuals",
    "Reweighted",
    "Rho",
    "Sloped",
    "Term",
]

Rho: TypeAlias = Callable[[Tensor], Tensor]


class LeastSquares:
    """One residual term with the loss L = 1/2 mean_n r_n^2.

    Args:
        residual: r, shape (N,) or (N, 1).
        name: how errors call the term.

    Attributes:
        rounded: what the loss may have been rounded against, beside itself.
    """

    rounded = 0.0

    def __init__(self, residual: Tensor, name: str = "residual") -> None:
        self.name = name
        self.residual = as_column(residual, name)

    @property
    def points(self) -> int:
        """N."""
        return len(self.residual)

    def loss(self) -> Tensor:
        """L = 1/2 mean_n r_n^2, a scalar."""
        return 0.5 * self.residual.square().mean()

    def tangents(self) -> list[tuple[Tensor, Tensor]]:
        """The one pair (r, value of r)."""
        return [(self.residual, self.residual.detach())]

    def linear_term(self) -> Tensor | None:
        """The part of the loss whose gradient is not J^T r: none."""
        return None


class ConvexLoss:
    """A term whose loss is L = mean_n l(y_n), l convex in the outputs y_n of one point, eq. (33).

    The Gauss-Newton matrix is mean_n J_n^T H_n J_n with H_n the Hessian of l at y_n. With
    H = U U^T it is the Gramian of the tangents U^T y (U held constant), so every optimizer runs
    on it unchanged. What of the gradient J^T l'(y) is not in the range of J^T U (a term linear in
    u, say) is kept apart as the *linear term* (docs/mathematics.md, "General convex losses").

    Args:
        outputs: C tensors y_c of shape (N,) or (N, 1), values of operators at the N points.
        density: l, maps C tensors of shape (N,) to the N values of the loss, point by point.
        name: how errors call the term.

    Example: the deep Ritz energy of -Laplace u = f (E & Yu, 2018)

        u, du = taylor(model, x, order=1)
        ConvexLoss((u, *du), lambda u, *du: sum(p**2 for p in du) / 2 - f * u)
    """

    def __init__(
        self,
        outputs: Tensor | Sequence[Tensor],
        density: Callable[..., Tensor],
        name: str = "convex loss",
    ) -> None:
        FUNCTION("ConvexLoss: density", density)
        TEXT("ConvexLoss: name", name)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        many(TENSOR)("ConvexLoss: outputs", outputs)
        self.name = name
        self.outputs = tuple(as_column(y, name) for y in outputs)
        self.density = density

    @property
    def points(self) -> int:
        """N."""
        return len(self.outputs[0])

    def loss(self) -> Tensor:
        """L = mean_n l(y_n), a scalar."""
        return self._values(self.outputs).mean()

    def tangents(self) -> list[tuple[Tensor, Tensor]]:
        """C pairs (U^T y with U constant, U^+ l'(y))."""
        slope, hessian = self._derivatives()
        root, pseudo_inverse = square_root(hessian)
        values = (pseudo_inverse @ slope[..., None])[..., 0]
        y = torch.stack(self.outputs, dim=-1)
        # U is constant: its derivative would bring third derivatives of the density
        tangent = (root.mT @ y[..., None])[..., 0]
        return list(zip(tangent.unbind(-1), values.unbind(-1), strict=True))

    def linear_term(self) -> Tensor | None:
        """mean_n e_n . y_n with e = l' - U U^+ l' held constant, or None where e vanishes.

        Eq. (34) of docs/mathematics.md.
        """
        slope, hessian = self._derivatives()
        root, pseudo_inverse = square_root(hessian)
        rest = slope - (root @ (pseudo_inverse @ slope[..., None]))[..., 0]
        # A thousand roundings: of an eigendecomposition and two products, C entries each
        if rest.abs().max() <= 1e3 * torch.finfo(rest.dtype).eps * slope.abs().max():
            return None
        return (rest * torch.stack(self.outputs, dim=-1)).sum(-1).mean()

    def _values(self, outputs: Sequence[Tensor]) -> Tensor:
        values = self.density(*outputs)
        if not isinstance(values, Tensor) or values.shape != outputs[0].shape:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{self.name}: the density must return one loss per point, shape "
                f"{tuple(outputs[0].shape)}, but returned {found}"
            )
        return values

    def _derivatives(self) -> tuple[Tensor, Tensor]:
        """l'(y) of shape (N, C) and l''(y) of shape (N, C, C), by autograd on the density alone."""
        with torch.enable_grad():
            y = [output.detach().requires_grad_() for output in self.outputs]
            values = self._values(y).sum()
            slope = torch.autograd.grad(values, y, create_graph=True, materialize_grads=True)
            rows = [
                torch.autograd.grad(s.sum(), y, retain_graph=True, materialize_grads=True)
                if s.requires_grad
                else [torch.zeros_like(s)] * len(y)
                for s in slope
            ]
        hessian = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
        return torch.stack(slope, dim=-1).detach(), hessian.detach()


Term: TypeAlias = LeastSquares | ConvexLoss
Residuals: TypeAlias = (
    Tensor | ConvexLoss | Sequence["Tensor | ConvexLoss"] | Mapping[str, "Tensor | ConvexLoss"]
)


BROADCAST = (
    "{name} has shape {shape}: two tensors, of shapes ({N}, 1) and ({M},), were broadcast against "
    "each other, so that every point is compared with all data. Write y[:, None] for data y of "
    "shape ({N},): both sides have the shape ({N}, 1) then"
)


def as_column(residual: Tensor, name: str) -> Tensor:
    """The residual as a real vector (N,); anything but (N,) or (N, 1) is an error."""
    if residual.is_complex():
        raise ValueError(
            f"{name} is complex; return its two parts as two residuals, r.real and r.imag"
        )
    shape = tuple(residual.shape)
    if residual.numel() == 0:
        raise ValueError(
            f"{name} has shape {shape}: there are no points in it. Look at the sampler or the mask "
            "that chose them, or leave the term out of what the closure returns"
        )
    if not shape:
        raise ValueError(
            f"{name} has shape (): a residual is a vector. Write r.reshape(1) for one number, a "
            "prior on a coefficient say, and do not average over the points"
        )
    if residual.ndim == 2 and shape[0] == shape[1] > 1:
        raise ValueError(BROADCAST.format(name=name, shape=shape, N=shape[0], M=shape[1]))
    if residual.ndim == 2 and shape[1] == 1:
        residual = residual[:, 0]
    if residual.ndim != 1:
        raise ValueError(
            f"{name} has shape {shape}; a residual is one number per point, "
            "shape (N,) or (N, 1). Return one tensor per equation, e.g. "
            "`return tuple(r.unbind(-1))`, and do not average over the points."
        )
    return residual


def square_root(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """U with U U^T = H and its pseudo-inverse, for positive semi-definite H (N, C, C)."""
    values, vectors = torch.linalg.eigh(hessian)
    largest = values.abs().amax(-1, keepdim=True)
    floor = hessian.shape[-1] * torch.finfo(hessian.dtype).eps * largest
    # Where l'' vanishes rounding makes it negative: a density is refused only far beyond that
    if (values < -1e3 * floor).any():
        raise ValueError(
            "the density is not convex: its Hessian has the eigenvalue "
            f"{values.min().item():.3g}. Gauss-Newton needs a convex loss of the outputs."
        )
    # The pseudo-inverse of what is left: a direction without curvature is the linear term's
    kept = values > floor
    root = torch.where(kept, values, 0).sqrt()
    # 1 in place of 0 before the reciprocal: where() would keep the nan of a product with inf
    inverse = torch.where(kept, root, 1).reciprocal() * kept
    return vectors * root[..., None, :], inverse[..., :, None] * vectors.mT


class Sloped(LeastSquares):
    """Squares under a root, a logarithm, ...: L = f(sum_e r_e^2, ...), by its slopes in them.

    With w_e = dL / d(r_e^2) held constant, the residuals sqrt(2 w) r have the gradient of L and the
    part J^T 2w J of its Hessian. L itself is not a sum over them.
    """

    def loss(self) -> Tensor:
        """Unknown.

        Raises:
            ValueError: a part of the points has no part of the loss.
        """
        raise ValueError(
            f"{self.name} stands under a root, a logarithm or another function of sums over all "
            "points, which batches and processes cannot share out. Return the sum of squares itself"
        )


class Reweighted(LeastSquares):
    """A robust loss L = sum_e w_e rho(r_e), as least squares with the weights w rho'(r) / r.

    Args:
        residual: r, shape (N,).
        weights: w, shape (N,).
        rho: even, increasing in |r|, entry by entry.
        name: how errors call the term.

    Source: Holland & Welsch (1977).
    """

    def __init__(self, residual: Tensor, weights: Tensor, rho: Rho, name: str) -> None:
        value = residual.detach()
        with torch.enable_grad():
            r = value.clone().requires_grad_()
            (slope,) = torch.autograd.grad((weights * rho(r)).sum(), r)
        self.value = (weights * rho(value)).sum()
        # As if rho were computed from numbers of the size of 1: log(cosh(r)), sqrt(1 + r^2) - 1
        self.rounded = float(weights.sum())
        tiny = torch.finfo(value.dtype).tiny
        ratio = torch.where(value.abs() > tiny, slope / value, 0)
        # The limit at 0, rho''(0), is the largest ratio of a rho that grows slower than r^2
        ratio = torch.where(value.abs() > tiny, ratio, ratio.max())
        # w rho'(r) / r is held constant: the parabola that touches rho from above
        super().__init__((ratio * len(value)).sqrt() * residual, name)

    def loss(self) -> Tensor:
        """L, a scalar without a graph."""
        return self.value
