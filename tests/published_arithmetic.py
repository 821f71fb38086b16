"""The published way to an ENGD direction, rounding included: to tell what its last digits are.

One point at a time by nested autograd, the Gramian of each term by one product of its rows, and the
damped normal equations by a singular value decomposition of the Gramian (LAPACK's gelsd).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap

Function = Callable[..., Tensor]  # of one point x (d,) and the parameters


def direction(
    problem: str, model: nn.Module, data: dict[str, np.ndarray], blocks: Sequence[slice]
) -> Tensor:
    """-(G_b + 1e-6 I)^-1 grad_b L block by block, shape (P,)."""
    x, y, xb, yb = (torch.from_numpy(data[key]) for key in ("X", "y", "Xb", "yb"))
    u, residual = network(model), EQUATIONS[problem](network(model))
    parameters = [p.detach() for p in model.parameters()]
    inside, edge = rows(residual, x, parameters), rows(u, xb, parameters)
    r = vmap(lambda point: residual(point, *parameters))(x)
    r = r + y[:, 0] if problem == "poisson2d" else r
    gradient = inside.T @ r / len(x) + edge.T @ (model(xb) - yb).detach()[:, 0] / len(xb)
    out = torch.zeros_like(gradient)
    for block in blocks:
        gramian = product(inside[:, block]) + product(edge[:, block])
        damped = gramian + 1e-6 * torch.eye(len(gramian), dtype=gramian.dtype)
        solved = torch.linalg.lstsq(damped, gradient[block, None], driver="gelsd")
        out[block] = -solved.solution[:, 0]
    return out


def product(rows: Tensor) -> Tensor:
    """1/N sum_n J_n^T J_n."""
    return torch.einsum("ni,nj->ij", rows, rows) / len(rows)


def rows(f: Function, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """d f(x_n) / d theta, shape (N, P)."""
    repeated = [p.unsqueeze(0).expand(len(x), *p.shape) for p in parameters]
    found = vmap(grad(f, argnums=tuple(range(1, len(parameters) + 1))))(x, *repeated)
    return torch.cat([g.flatten(1) for g in found], dim=1)


def network(model: nn.Module) -> Function:
    names = [name for name, _ in model.named_parameters()]
    return lambda x, *parameters: functional_call(
        model, dict(zip(names, parameters, strict=True)), x
    ).squeeze()


def poisson(u: Function) -> Function:
    return lambda x, *p: torch.einsum("ii->", hessian(u)(x, *p))


def heat(u: Function) -> Function:
    def residual(x: Tensor, *p: Tensor) -> Tensor:
        second = torch.einsum("ii->", hessian(u)(x, *p)[1:, 1:])
        return jacrev(u)(x, *p)[0] - second / 4

    return residual


def log_fokker_planck(u: Function) -> Function:
    """In its general form: drift mu = -x/2 and diffusion sigma = sqrt(2) I are multiplied out."""

    def residual(x: Tensor, *p: Tensor) -> Tensor:
        slope, second = jacrev(u)(x, *p), hessian(u)(x, *p)[1:, 1:]
        sigma = 2**0.5 * torch.eye(len(x) - 1, dtype=x.dtype)
        transport = torch.einsum("i,i->", slope[1:], -x[1:] / 2)
        norm = (torch.einsum("ij,i->j", sigma, slope[1:]) ** 2).sum()
        diffusion = torch.einsum("ij,kj,ki->", sigma, sigma, second)
        return slope[0] - 1.5 + transport - 0.5 * norm - 0.5 * diffusion

    return residual


EQUATIONS: dict[str, Callable[[Function], Function]] = {
    "poisson2d": poisson,
    "heat1d": heat,
    "logfokkerplanck3d": log_fokker_planck,
}
