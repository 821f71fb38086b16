"""A Volterra equation: every point has an integral of its own, from 0 to t.

    python examples/integral_volterra.py

    u(t) = 1 - integral from 0 to t of (t - s) u(s) ds,   0 <= t <= 6,   solution cos t.

The network is evaluated at the quadrature nodes of all points at once: (N, M) of them.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save
from torch import Tensor
from tqdm.auto import trange

from kfac_pinn import KFACPINN, MLP, gauss_legendre, relative_l2

END = 6.0


def main(
    steps: int = 150,
    points: int = 60,
    nodes: int = 16,
    out: Out = Path("figures/integral_volterra.png"),
) -> None:
    """Train u."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = MLP((1, 20, 20, 1))
    t = torch.linspace(0, END, points)[:, None]
    rule = gauss_legendre(nodes, torch.zeros(points), t[:, 0])
    memory = rule.times(t - rule.points[..., 0])

    def residuals() -> Tensor:
        return model(t)[:, 0] - 1 + memory(model)

    optimizer = KFACPINN(model.parameters())
    held_out, errors = torch.linspace(0, END, 501)[:, None], []
    for _ in (bar := trange(steps)):
        loss = float(optimizer.step(residuals))
        errors.append(relative_l2(model, torch.cos, held_out))
        bar.set_postfix_str(f"loss {loss:.1e}, error {errors[-1]:.1e}")

    with torch.no_grad():
        error = (model(held_out) - held_out.cos()).abs()[:, 0]
    where = curves("error", "t", held_out[:, 0].tolist(), error=error.tolist())
    save(out, where, curves("training", "steps", range(steps), relative_L2_error=errors))
    print(f"{points} points of {nodes} nodes, relative L2 error {errors[-1]:.1e}")


if __name__ == "__main__":
    typer.run(main)
