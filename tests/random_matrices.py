"""Random matrices with known spectra, for tests of linear algebra."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 12)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=Generator().manual_seed(seed))


def psd(seed: int, size: int, digits: float) -> Tensor:
    """A random symmetric matrix with eigenvalues 1 ... 10^-digits."""
    Q = torch.linalg.qr(normal(seed, size, size)).Q
    M = Q @ torch.diag(torch.logspace(0, -digits, size, dtype=torch.float64)) @ Q.mT
    return (M + M.mT) / 2


def relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())
