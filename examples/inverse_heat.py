"""An inverse problem: find the diffusivity of a rod, and its temperature, from 100 sensors.

    python examples/inverse_heat.py

The coefficient is one more trained parameter, in a group of its own; the optimizer treats it
exactly (a dense 1 x 1 block), whatever it does with the network.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, field, save, square
from tqdm.auto import trange

from kfac_pinn import KFACPINN, MLP, WithDiffusivity, inverse_heat, relative_l2

TRUE = 0.25


def main(
    steps: int = 300,
    sensors: int = 100,
    guess: float = 1.0,
    out: Out = Path("figures/inverse_heat.png"),
) -> None:
    """Train network and coefficient together; the true diffusivity is 0.25."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    problem = inverse_heat(sensors)
    model = WithDiffusivity(MLP((2, 24, 24, 1)), start=guess)
    residuals = problem.sample().residuals(model)
    groups = [{"params": model.network.parameters()}, {"params": [model.log_kappa]}]
    optimizer = KFACPINN(groups)
    held_out, errors, offs = problem.held_out(n=2000), [], []
    for _ in (bar := trange(steps)):
        loss = float(optimizer.step(residuals))
        errors.append(relative_l2(model, problem.solution, held_out))
        offs.append(abs(model.diffusivity.item() - TRUE))
        bar.set_postfix_str(f"loss {loss:.1e}, error {errors[-1]:.1e}")

    grid = square((0, 0), (1, 1))
    temperature = field("temperature", grid, model(grid), "tx")
    lines = {"error_of_the_diffusivity": offs, "relative_L2_error": errors}
    save(out, temperature, curves("training", "steps", range(steps), **lines))
    kappa = model.diffusivity.item()
    print(f"diffusivity {kappa:.8f} (true: {TRUE}), relative L2 error {errors[-1]:.1e}")


if __name__ == "__main__":
    typer.run(main)
