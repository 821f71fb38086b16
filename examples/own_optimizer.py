"""An optimizer of your own, Levenberg-Marquardt: p(lambda) = -(J^T J + lambda I)^-1 grad L."""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save

import kfac_pinn as kp


class OwnLevenbergMarquardt(kp.DampedOptimizer):
    """Says its damped steps; a `kp.DirectionOptimizer` would say its `direction`."""

    def __init__(self, params: kp.Parameters, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr}, kp.Marquardt(), kp.Armijo())

    def model(self, linearization: kp.Linearization, objective: kp.Objective) -> kp.DampedModel:
        G, g = linearization.gramian(), linearization.gradient
        identity = torch.eye(len(g))
        solve = lambda damping: -torch.linalg.solve(G + damping * identity, g)  # noqa: E731
        return kp.DampedModel(linearization, solve)


def main(steps: int = 200, out: Out = Path("figures/own_optimizer.png")) -> None:
    """Poisson's equation on the square."""
    torch.set_default_dtype(torch.float64)
    model, bar = kp.MLP((2, 16, 16, 1)), [kp.Progress()]
    optimizer = OwnLevenbergMarquardt(model.parameters())
    history = kp.fit(model, kp.poisson_2d(), optimizer, steps=steps, every=10, callbacks=bar)
    found = {"loss": history.column("loss"), "relative_l2": history.column("relative_l2")}
    save(out, curves("training", "steps", history.column("step"), **found))
    print(f"relative L2 error {found['relative_l2'][-1]:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
