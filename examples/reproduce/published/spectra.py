"""Spectra of the Gramian, of its Kronecker approximation, and of what that leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Generator, Tensor

from kfac_pinn import Linearization
from kfac_pinn.curvature.kronecker_factors import Factors
from kfac_pinn.jacobian.closure import linearize
from kfac_pinn.linalg import KroneckerSum
from kfac_pinn.pinn.networks import MLP
from published.figures import write
from published.recipes import PROBLEMS, kfac_star

__all__ = ["draw", "measure", "quantiles", "spectra_of"]

DAMPING = 1e-8  # of the factors


def measure(
    problem: str = "poisson_2d",
    network: tuple[int, ...] = (2, 16, 16, 1),
    steps: tuple[int, ...] = (0, 100, 1000),
) -> pd.DataFrame:
    """A row an eigenvalue, largest first, at some steps of K-FAC* on one batch."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = MLP(network)
    residuals = PROBLEMS[problem]().sample(Generator().manual_seed(0)).residuals(model)
    optimizer = kfac_star(model.parameters(), damping=DAMPING, lr=0.1)
    frames = []
    for step in range(max(steps) + 1):
        if step in steps:
            linearization = linearize(residuals, list(model.parameters()))
            spectra = {k: v.tolist() for k, v in spectra_of(linearization).items()}
            frames.append(pd.DataFrame({"step": step, "loss": linearization.loss, **spectra}))
        optimizer.step(residuals)
    return pd.concat(frames).rename_axis("index").reset_index()


def spectra_of(linearization: Linearization) -> dict[str, Tensor]:
    """Eigenvalues (P,) of G, of its diagonal blocks, of F, and of both after F^-1.

    G = J^T J; F = blocks of sum_k A_k (x) B_k, the factors of this batch alone, damped by lambda.
    Preconditioned: of L^-1 G L^-T with F = L L^T; a perfect F leaves ones.
    """
    G = linearization.gramian()
    blocks, F = block_diagonal(linearization, exact), block_diagonal(linearization, kronecker())
    L = torch.linalg.cholesky(F)

    def preconditioned(M: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(L, M, upper=False)
        return torch.linalg.solve_triangular(L, half.T, upper=False)

    matrices = {
        "gramian": G,
        "blocks": blocks,
        "kronecker": F,
        "preconditioned gramian": preconditioned(G),
        "preconditioned blocks": preconditioned(blocks),
    }
    return {name: torch.linalg.eigvalsh(M).flip(0).clamp_min(0) for name, M in matrices.items()}


Dense = Callable[[Linearization, object], Tensor]


def exact(linearization: Linearization, block: object) -> Tensor:
    """A diagonal block of G."""
    return linearization.gramian(block)


def kronecker() -> Dense:
    """Damped sums of Kronecker products, as matrices on flattened [W | b]."""
    factors = Factors()

    def dense(linearization: Linearization, block: object) -> Tensor:
        found = factors.measure(linearization, 0)[block]
        pairs = [factors.rule(pair.A, pair.B, DAMPING) for pair in found.pairs.values()]
        order = block.matrix(torch.arange(linearization.size)).flatten()
        sorted_order = order.argsort()
        return KroneckerSum(pairs).dense()[sorted_order][:, sorted_order]

    return dense


def block_diagonal(linearization: Linearization, dense: Dense) -> Tensor:
    """One matrix of all blocks, in the order of the flat vector."""
    out = torch.zeros(linearization.size, linearization.size)
    places = torch.arange(linearization.size)
    for block in linearization.blocks:
        places_of = torch.cat([places[s] for s in sorted(block.slices, key=lambda s: s.start)])
        out[places_of[:, None], places_of] = dense(linearization, block)
    return out


#: The columns of the table, as a legend has them.
WORDS = {
    "gramian": "Gramian $G$",
    "blocks": "blocks of $G$",
    "kronecker": "Kronecker approximation $F$",
    "preconditioned gramian": "$F^{-1/2}\\,G\\,F^{-1/2}$",
    "preconditioned blocks": "the same of the blocks",
}


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel a step: above the three matrices, below what preconditioning leaves."""
    groups = list(rows.groupby(["step", "loss"]))
    size = (3.6 * len(groups) + 0.4, 6.4)
    figure, axes = plt.subplots(2, len(groups), figsize=size, squeeze=False, layout="constrained")
    for (above, below), ((step, loss), runs) in zip(axes.T, groups, strict=True):
        for name in ("gramian", "blocks", "kronecker"):
            above.plot(runs["index"], runs[name], label=WORDS[name])
        for name in ("preconditioned gramian", "preconditioned blocks"):
            below.plot(runs["index"], runs[name], label=WORDS[name])
        above.set(title=f"step {step}, loss {loss:.1e}", yscale="log", ylim=(1e-22, 1e5))
        below.set(yscale="log", xlabel="index", ylim=(1e-16, 1e3))
        for axis in (above, below):
            axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("eigenvalue")
        row[-1].legend()
    write(figure, path)


def quantiles(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each spectrum: the 1st, 10th, 50th and 100th eigenvalue, and how many exceed 0.1."""
    lines = []
    for (step, _), part in rows.groupby(["step", "loss"]):
        for name in part.columns[3:]:
            values = part[name].to_numpy()
            places = (k for k in (1, 10, 50, 100) if k <= len(values))
            chosen = {f"no. {k}": f"{values[k - 1]:.1e}" for k in places}
            lines.append({"step": step, "matrix": name, **chosen, "over 0.1": (values > 0.1).sum()})
    return pd.DataFrame(lines)
