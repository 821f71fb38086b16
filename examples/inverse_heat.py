"""An inverse problem: find the diffusivity of a rod, and its temperature, from 100 sensors.

    python examples/inverse_heat.py

The coefficient is one more trained parameter, in a group of its own; the optimizer treats it
exactly (a dense 1 x 1 block), whatever it does with the network.
"""

import torch
import typer

from kfac_pinn import KFACPINN
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import relative_l2
from kfac_pinn.pinn.problems import WithDiffusivity, inverse_heat


def main(steps: int = 300, sensors: int = 100, guess: float = 1.0) -> None:
    """Train network and coefficient together; the true diffusivity is 0.25."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    problem = inverse_heat(sensors)
    model = WithDiffusivity(MLP((2, 24, 24, 1)), start=guess)
    residuals = problem.sample().residuals(model)
    optimizer = KFACPINN(
        [{"params": model.network.parameters()}, {"params": [model.log_kappa]}],
    )
    places = problem.held_out(n=2000)
    for step in range(steps):
        loss = optimizer.step(residuals)
        if step % 50 == 0 or step == steps - 1:
            error = relative_l2(model, problem.solution, places)
            kappa = model.diffusivity.item()
            print(f"step {step:4d}  loss {loss:.1e}  diffusivity {kappa:.8f}  error {error:.1e}")


if __name__ == "__main__":
    typer.run(main)
