"""A converged reference for convection, diffusion and reaction: extrapolated Strang splitting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hyperlora_ext.problems.spectral import Trajectory
from kfac_pinn.settings import FUNCTION, TENSOR, takes, whole

__all__ = ["solve_transport"]


@takes(start=FUNCTION, coefficients=TENSOR, modes=whole(1), steps=whole(1))
def solve_transport(
    start: Callable[[Tensor], Tensor], coefficients: Tensor, modes: int = 512, steps: int = 400
) -> Trajectory:
    """All u with u_t + beta u_x - nu u_xx = rho u (1 - u) up to t = 1, of period 2 pi in x.

    Each half is exact: the linear flow mode by mode, the logistic equation point by point. Strang's
    splitting errs by even powers of the step, so (4 u_{h/2} - u_h) / 3 is of fourth order.

    Args:
        start: x (M,) -> u(0, x).
        coefficients: rows (beta, nu, rho), (T, 3).

    Returns:
        A trajectory of x / 2 pi, which has the period 1.
    """
    coarse = _strang(start, coefficients, modes, steps)
    fine = _strang(start, coefficients, modes, 2 * steps)[:, ::2]
    return Trajectory((4 * fine - coarse) / 3, 1.0)


def _strang(
    start: Callable[[Tensor], Tensor], coefficients: Tensor, modes: int, steps: int
) -> Tensor:
    """Coefficients of rfft over the grid size, (T, steps + 1, modes // 2 + 1)."""
    rows = coefficients.double()
    beta, nu, rho = rows.split(1, dim=1)
    k = torch.arange(modes // 2 + 1, dtype=torch.float64, device=rows.device)
    linear = torch.exp(torch.complex(-nu * k**2, -beta * k) / steps)
    growth = torch.exp(-rho / (2 * steps))
    x = 2 * math.pi * torch.arange(modes, dtype=torch.float64, device=rows.device) / modes
    u = start(x).expand(len(rows), -1)
    found = [torch.fft.rfft(u, norm="forward")]
    for _ in range(steps):
        half = u / (u + (1 - u) * growth)
        flown = torch.fft.irfft(linear * torch.fft.rfft(half), n=modes)
        u = flown / (flown + (1 - flown) * growth)
        found.append(torch.fft.rfft(u, norm="forward"))
    return torch.stack(found, dim=1)
