"""Poisson's equation -Laplace u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its edge.

python examples/poisson.py
"""

from pathlib import Path

import matplotlib
import torch
import typer
from torch import Tensor, nn

from kfac_pinn import KFACPINN
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import poisson_2d
from kfac_pinn.pinn.training import History, Progress, StopAtError, fit

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "poisson.png"


def main(seconds: float = 60.0, target: float = 1e-5, seed: int = 0, figure: Path = FIGURE) -> None:
    """Train to a relative L2 error, print it, and draw the solution, the error and the run."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    problem = poisson_2d()
    model = MLP((2, 64, 64, 48, 48, 1))
    history = fit(
        model,
        problem,
        KFACPINN(model.parameters()),
        seconds=seconds,
        every=5,
        seed=seed,
        callbacks=[StopAtError(target), Progress()],
    )
    last = history.last
    print(
        f"relative L2 error {last['relative_l2']:.1e} on held-out points "
        f"after {last['step']} steps, {last['seconds']:.0f} s ({history.reason})"
    )
    draw(model, problem.solution, history, figure)
    print(f"picture: {figure}")


def draw(model: nn.Module, solution, history: History, path: Path) -> None:
    """Three panels: u, u - u*, and the errors over the seconds."""
    axis = torch.linspace(0, 1, 101)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        u, error = image(model(grid)), image(model(grid) - solution(grid))
    panels, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    options = {"origin": "lower", "extent": (0, 1, 0, 1)}
    panels.colorbar(left.imshow(u, **options), ax=left)
    panels.colorbar(middle.imshow(error, cmap="coolwarm", **options), ax=middle)
    right.semilogy(history.column("seconds"), history.column("relative_l2"), label="error")
    right.semilogy(history.column("seconds"), history.column("loss"), label="loss")
    right.legend()
    left.set(title="solution u", xlabel="x", ylabel="y")
    middle.set(title="error u - u*", xlabel="x", ylabel="y")
    right.set(title="relative L2 error, loss", xlabel="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    panels.savefig(path, dpi=120)
    plt.close(panels)


def image(values: Tensor) -> Tensor:
    """Values on the grid (x, y) as rows y, columns x."""
    return values.reshape(101, 101).T


if __name__ == "__main__":
    typer.run(main)
