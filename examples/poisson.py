"""Poisson's equation -Laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its edge.

python examples/poisson.py
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, deviation, field, save, square

from kfac_pinn import KFACPINN, MLP, Progress, StopAtError, fit, poisson_2d


def main(
    seconds: float = 60.0,
    target: float = 1e-5,
    seed: int = 0,
    out: Out = Path("figures/poisson.png"),
) -> None:
    """Train to a relative L2 error, print it, and draw the solution, the error and the run."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    problem, model = poisson_2d(), MLP((2, 32, 32, 1))
    optimizer = KFACPINN(model.parameters())
    callbacks = [StopAtError(target), Progress()]
    history = fit(
        model, problem, optimizer, seconds=seconds, every=5, seed=seed, callbacks=callbacks
    )
    x = square((0, 0), (1, 1))
    u = model(x)
    times = history.column("seconds")
    errors, losses = history.column("relative_l2"), history.column("loss")
    save(
        out,
        field("solution u", x, u),
        deviation("error u - u*", x, u - problem.solution(x)),
        curves("on held-out points", "seconds", times, relative_L2_error=errors, loss=losses),
    )
    last = history.last
    verdict = "solved" if last["relative_l2"] <= target else f"not solved to {target:.0e}"
    print(
        f"{verdict}: relative L2 error {last['relative_l2']:.1e} on held-out points "
        f"after {last['step']} steps, {last['seconds']:.0f} s"
    )


if __name__ == "__main__":
    typer.run(main)
