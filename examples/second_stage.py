"""A second network for the error that the first one left: rounding is reached in two stages.

    python examples/second_stage.py

-u'' = f on [0, 1] with u = e^x sin 2 pi x. A network of 22 parameters ends where it has nothing
more to give. What is left is smooth but small: `corrected` finds its size from the residuals, and a
second network, of that size, is trained on the same equation.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save
from torch import Tensor, nn

from kfac_pinn import (
    MLP,
    SIREN,
    Box,
    GaussNewton,
    Normalized,
    Problem,
    Progress,
    Term,
    corrected,
    dirichlet,
    fit,
    laplacian,
)

LINE = Box.cube(1)


def solution(x: Tensor) -> Tensor:
    """e^x sin 2 pi x."""
    return torch.exp(x) * torch.sin(2 * torch.pi * x)


def problem() -> Problem:
    """The equation at 600 points, with the values at the ends."""
    terms = {
        "interior": Term(LINE.interior, lambda u, x: laplacian(u, x) - laplacian(solution, x), 600),
        "ends": Term(LINE.boundary, dirichlet(solution), 20),
    }
    return Problem("Poisson on a line", LINE, terms, solution)


def main(
    first_steps: int = 160, steps: int = 120, out: Out = Path("figures/second_stage.png")
) -> None:
    """Train both stages, print the errors, and draw them over x and over the seconds."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    line, first = problem(), MLP((1, 3, 3, 1))
    second = nn.Sequential(Normalized(LINE), SIREN((1, 12, 12, 1), omega=10.0))
    callbacks = [Progress()]

    before = fit(
        first,
        line,
        GaussNewton(first.parameters()),
        steps=first_steps,
        every=5,
        callbacks=callbacks,
    )
    both = corrected(first, second, line.sample().residuals)
    after = fit(
        both, line, GaussNewton(second.parameters()), steps=steps, every=5, callbacks=callbacks
    )
    x = torch.linspace(0, 1, 401)[:, None]
    left = [(u(x) - solution(x)).detach().abs().clamp(min=1e-17)[:, 0] for u in (first, both)]
    began = before.last["seconds"]
    times = before.column("seconds") + [began + each for each in after.column("seconds")]
    errors = before.column("relative_l2") + after.column("relative_l2")
    save(
        out,
        curves("|u - u*|", "x", x[:, 0].tolist(), one_network=left[0], with_the_second=left[1]),
        curves("on held-out points", "seconds", times, relative_L2_error=errors),
    )
    print(
        f"relative L2 error {before.last['relative_l2']:.1e} after the first stage, "
        f"{after.last['relative_l2']:.1e} after the second; scale {both.scale:.1e}"
    )


if __name__ == "__main__":
    typer.run(main)
