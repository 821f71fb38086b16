"""A Fokker-Planck equation and the condition that makes its solution unique: it integrates to one.

    python examples/integral_fokker_planck.py

    (V' p + p')' = 0 on [-3, 3],   V' p + p' = 0 at the ends,   integral of p = 1

for the double well V = x^4 / 4 - x^2. Without the integral, p = 0 is a solution, and so is every
multiple of exp(-V). It is one more residual, of shape (1,): a quadrature of the network's values.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save
from torch import Tensor
from tqdm.auto import trange

from kfac_pinn import MLP, GaussNewton, gauss_legendre, relative_l2, taylor

ENDS = (-3.0, 3.0)


def density(x: Tensor) -> Tensor:
    """exp(-V), not yet normalised."""
    return torch.exp(x**2 - x**4 / 4)


def main(
    steps: int = 150, points: int = 200, out: Out = Path("figures/integral_fokker_planck.png")
) -> None:
    """Train a density."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = MLP((1, 24, 24, 1))
    x, ends = torch.linspace(*ENDS, points)[:, None], torch.tensor(ENDS)[:, None]
    mass = gauss_legendre(64, *ENDS)
    Z = mass(density)
    force, slope = x**3 - 2 * x, 3 * x**2 - 2

    def residuals() -> dict[str, Tensor]:
        p, (p_x,), (p_xx,) = taylor(model, x)
        q, (q_x,) = taylor(model, ends, order=1)
        flux = (ends**3 - 2 * ends) * q + q_x
        return {"equation": p_xx + force * p_x + slope * p, "ends": flux, "mass": mass(model) - 1}

    optimizer = GaussNewton(model.parameters())
    held_out, errors = torch.linspace(*ENDS, 501)[:, None], []
    for _ in (bar := trange(steps)):
        loss = float(optimizer.step(residuals))
        errors.append(relative_l2(model, lambda x: density(x) / Z, held_out))
        bar.set_postfix_str(f"loss {loss:.1e}, error {errors[-1]:.1e}")

    with torch.no_grad():
        p, exact = model(held_out)[:, 0], (density(held_out) / Z)[:, 0]
    lines = {"exact": exact.tolist(), "error": (p - exact).abs().tolist()}
    solution = curves("density", "x", held_out[:, 0].tolist(), **lines)
    save(out, solution, curves("training", "steps", range(steps), relative_L2_error=errors))
    print(f"mass {mass(model).item():.8f}, relative L2 error {errors[-1]:.1e}")


if __name__ == "__main__":
    typer.run(main)
