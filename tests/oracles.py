"""Independent ways to the same numbers: nested autograd, row by row, curvlinops, backpack.

Nothing here uses jets or captured layers. The one module that touches curvlinops and backpack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor, nn

Residuals = Callable[[], Sequence[Tensor]]


def derivatives(u: Callable[[Tensor], Tensor], x: Tensor, order: int) -> list[Tensor]:
    """u (N, C) and d^k u_c / dx_i^k, shape (d, N, C), for k = 1, ..., order, by nested autograd."""
    x = x.detach().requires_grad_()
    with mock.patch("torch.nn.functional.layer_norm", layer_norm):
        value = u(x)
    found = [value]
    pure = [[value[:, c] for c in range(value.shape[1])]] * x.shape[1]
    for _ in range(order):
        pure = [[partial(each, x, i) for each in row] for i, row in enumerate(pure)]
        found.append(torch.stack([torch.stack(row, dim=-1) for row in pure]))
    return found


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5
) -> Tensor:
    """Written out: third derivatives of torch's own are wrong, as differences show (torch 2.13)."""
    dims = tuple(range(-len(shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def partial(values: Tensor, x: Tensor, i: int) -> Tensor:
    """d values_n / d x_ni, zero where autograd finds no path."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    (g,) = torch.autograd.grad(
        values.sum(), x, create_graph=True, allow_unused=True, materialize_grads=True
    )
    return g[:, i]


def stacked(residuals: Sequence[Tensor]) -> Tensor:
    """cat_k r_k / sqrt(N_k), shape (R,)."""
    return torch.cat([r.reshape(-1) / len(r) ** 0.5 for r in residuals])


def flat_gradient(scalar: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Its gradient, shape (P,)."""
    gradients = torch.autograd.grad(
        scalar, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.reshape(-1) for g in gradients])


def jacobian(residuals: Residuals, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """r (R,) and J (R, P), one backward pass a row."""
    with torch.enable_grad():
        r = stacked(residuals())
        return r.detach(), torch.stack([flat_gradient(entry, parameters) for entry in r])


class LaplaceResidual(nn.Module):
    """x -> Laplace u - f(x), by torch.func."""

    def __init__(self, model: nn.Module, source: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.source = model, source

    def forward(self, x: Tensor) -> Tensor:
        def trace(point: Tensor) -> Tensor:
            return torch.func.hessian(lambda p: self.model(p).sum())(point).trace()

        return (torch.vmap(trace)(x) - self.source(x)).unsqueeze(1)


def curvlinops_gramian(module: nn.Module, x: Tensor) -> Tensor:
    """1/N sum_n J_n^T J_n of a module (N, d) -> (N, 1): half the GGN of the mean square."""
    from curvlinops import GGNLinearOperator  # type: ignore[import-untyped]

    parameters = [p for p in module.parameters() if p.requires_grad]
    data = [(x, torch.zeros(len(x), 1, dtype=x.dtype))]
    ggn = GGNLinearOperator(module, nn.MSELoss(), parameters, data, check_deterministic=False)
    eye = torch.eye(sum(p.numel() for p in parameters), dtype=x.dtype)
    return 0.5 * (ggn @ eye)


def backpack_rows(network: nn.Sequential, x: Tensor) -> Tensor:
    """d u(x_n) / d theta, shape (N, P), of a network of Linear layers and activations."""
    from backpack import backpack, extend  # type: ignore[import-untyped]
    from backpack.extensions import BatchGrad  # type: ignore[import-untyped]

    extended = extend(network)
    with backpack(BatchGrad()):
        extended(x).sum().backward()
    gradients = [getattr(p, "grad_batch") for p in network.parameters()]  # noqa: B009
    return torch.cat([g.flatten(1) for g in gradients], dim=1)


def backpack_factors(network: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each Linear layer A = mean_n z z^T and B = mean_n g g^T for the loss 1/2 mean u^2."""
    from backpack import backpack, extend
    from backpack.extensions import KFLR

    extended, loss = extend(network), extend(nn.MSELoss())
    with backpack(KFLR()):
        loss(extended(x), torch.zeros(len(x), 1, dtype=x.dtype)).backward()
    weights = [module.weight for module in network if isinstance(module, nn.Linear)]
    pairs = [getattr(weight, "kflr") for weight in weights]  # noqa: B009
    return [(A, 0.5 * B) for B, A in pairs]
