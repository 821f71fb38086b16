"""Burgers' equation, whose solution steepens to a front; the conditions are built in.

    python examples/burgers.py

u(t, x) = -sin(pi x) + t (1 - x^2) network(t, x) has the right initial and boundary values, so that
the equation is the only residual. The loop is written out: an optimizer needs no `fit`.
"""

from math import pi
from pathlib import Path

import torch
import typer
from drawing import Out, curves, deviation, field, save, square
from torch import Tensor
from tqdm.auto import trange

from kfac_pinn import MLP, GaussNewton, HardConstraint, burgers, cole_hopf, relative_l2, taylor


def build() -> HardConstraint:
    """The network with its initial and boundary values."""
    return HardConstraint(
        MLP((2, 16, 16, 16, 1)),
        lambda x: -torch.sin(pi * x[:, 1:2]),
        lambda x: x[:, 0:1] * (1 - x[:, 1:2] ** 2),
    )


def main(
    steps: int = 100,
    points: int = 6000,
    viscosity: float = 0.01,
    out: Out = Path("figures/burgers.png"),
) -> None:
    """Train with Gauss-Newton and compare with the exact solution of Cole and Hopf."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    domain, model = burgers(viscosity).domain, build()
    x = domain.interior(points)

    def residual() -> Tensor:
        u, (u_t, u_x), u_xx = taylor(model, x, weights=[0.0, 1.0])
        return u_t + u * u_x - viscosity * u_xx

    optimizer = GaussNewton(model.parameters())
    held_out, losses, errors = domain.interior(5000), [], []
    exact = cole_hopf(held_out, viscosity)
    for _ in (bar := trange(steps)):
        losses.append(float(optimizer.step(residual)))
        errors.append(relative_l2(model, lambda _: exact, held_out))
        bar.set_postfix_str(f"loss {losses[-1]:.1e}, error {errors[-1]:.1e}")

    grid = square((0, -1), (1, 1))
    u = model(grid)
    save(
        out,
        field("u", grid, u, "tx"),
        deviation("error u - u*", grid, u - cole_hopf(grid, viscosity), "tx"),
        curves("training", "steps", range(steps), loss=losses, relative_L2_error=errors),
    )
    print(f"relative L2 error {errors[-1]:.1e} on held-out points, loss {losses[-1]:.1e}")


if __name__ == "__main__":
    typer.run(main)
