"""A boundary integral equation: Laplace's equation in an ellipse, solved on its boundary alone.

    python examples/integral_boundary.py

    u(x) = integral of k(x, y) s(y) over the boundary,   k = (x - y) . n_y / (2 pi |x - y|^2),

is harmonic inside for any density s, a double layer. It takes the boundary values g where

    -s/2 + integral of k s = g    on the boundary:

a fixed matrix times the values of the network. The solution inside is one more quadrature.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, deviation, field, save, square
from torch import Tensor
from tqdm.auto import trange

from kfac_pinn import MLP, GaussNewton, periodic_trapezoid

AXES = torch.tensor([2.0, 1.0], dtype=torch.float64)


def curve(angle: Tensor) -> Tensor:
    """Points (M, 2) of the ellipse."""
    return AXES * torch.cat([angle.cos(), angle.sin()], 1)


def kernel(x: Tensor, angle: Tensor) -> Tensor:
    """k(x, y) |dy / d angle|, shape (N, M); its limit where the points coincide."""
    y, normal = curve(angle), AXES.flip(0) * torch.cat([angle.cos(), angle.sin()], 1)
    distance = (x[:, None] - y).square().sum(2)
    limit = -AXES.prod() / (2 * normal.square().sum(1))
    along = ((x[:, None] - y) * normal).sum(2) / distance
    return torch.where(distance > 0, along, limit) / (2 * torch.pi)


def harmonic(x: Tensor) -> Tensor:
    """e^x cos y."""
    return torch.exp(x[:, 0]) * torch.cos(x[:, 1])


def main(
    steps: int = 60, nodes: int = 120, out: Out = Path("figures/integral_boundary.png")
) -> None:
    """Train the density on the boundary."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    network = MLP((2, 20, 20, 1))
    rule = periodic_trapezoid(nodes, 2 * torch.pi)
    angle = rule.points[0]

    def density(a: Tensor) -> Tensor:
        return network(torch.cat([a.cos(), a.sin()], 1))  # type: ignore[no-any-return]

    layer, g = rule.times(kernel(curve(angle), angle)), harmonic(curve(angle))
    radius, turn = square((0, 0), (0.8, 2 * torch.pi), 40).split(1, dim=1)
    inside = radius * curve(turn)
    u, exact = rule.times(kernel(inside, angle)), harmonic(inside)

    def residuals() -> Tensor:
        return layer(density) - density(angle)[:, 0] / 2 - g

    optimizer, errors = GaussNewton(network.parameters()), []
    for _ in (bar := trange(steps)):
        loss = float(optimizer.step(residuals))
        with torch.no_grad():
            errors.append(float((u(density) - exact).norm() / exact.norm()))
        bar.set_postfix_str(f"loss {loss:.1e}, error {errors[-1]:.1e}")

    with torch.no_grad():
        solution, error = u(density)[:, None], (u(density) - exact)[:, None]
    training = curves("training", "steps", range(steps), relative_L2_error=errors)
    save(out, field("u", inside, solution), deviation("error u - u*", inside, error), training)
    print(f"{nodes} nodes on the boundary, relative L2 error {errors[-1]:.1e} inside")


if __name__ == "__main__":
    typer.run(main)
