"""Poisson's equation in PINA, and the same with the unknown centre of its source.

The problems, networks and points are those of PINA's tutorials 2 and 7.

python examples/frameworks/pina_poisson.py
"""

from typing import Any

import lightning
import torch
import typer
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation, FixedValue
from pina.model import FeedForward
from pina.operator import laplacian
from pina.optim import TorchOptimizer
from pina.problem import InverseProblem, SpatialProblem
from pina.solver import PINN
from torch import Tensor

from kfac_pinn import KFACPINN

Kind = type[torch.optim.Optimizer]


def sides(low: float, high: float) -> dict[str, CartesianDomain]:
    """Of the square [low, high]^2."""
    free = [low, high]
    return {
        "left": CartesianDomain({"x": low, "y": free}),
        "right": CartesianDomain({"x": high, "y": free}),
        "bottom": CartesianDomain({"x": free, "y": low}),
        "top": CartesianDomain({"x": free, "y": high}),
    }


SIDES = list(sides(0, 1))
ON_SIDES = {side: Condition(domain=side, equation=FixedValue(0.0)) for side in SIDES}


def column(points: LabelTensor, name: str) -> Tensor:
    """One coordinate (N, 1) as a plain tensor."""
    return points.extract([name]).as_subclass(Tensor)


def exact(points: LabelTensor) -> Tensor:
    """u = sin(pi x) sin(pi y) / (2 pi^2)."""
    sines = [torch.sin(torch.pi * column(points, name)) for name in "xy"]
    return sines[0] * sines[1] / (2 * torch.pi**2)


def source(points: LabelTensor) -> LabelTensor:
    """-Laplace u of the solution."""
    return torch.sin(torch.pi * points.extract(["x"])) * torch.sin(torch.pi * points.extract(["y"]))


class Poisson(SpatialProblem):
    """-Laplace u = f on the unit square, u = 0 on its sides."""

    output_variables = ["u"]
    spatial_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]})
    domains = {"inside": spatial_domain, **sides(0, 1)}
    conditions = {
        "inside": Condition(
            domain="inside", equation=Equation(lambda x, u: laplacian(u, x) + source(x))
        ),
        **ON_SIDES,
    }


CENTRE = 0.5


def bump(points: LabelTensor, centre: dict[str, Tensor]) -> LabelTensor:
    """A source that has its largest value at the centre."""
    squares = [(points.extract([name]) - centre[f"mu_{name}"]) ** 2 for name in "xy"]
    return torch.exp(-2 * (squares[0] + squares[1]))


def measured(points: LabelTensor, modes: int = 64) -> Tensor:
    """The solution of Laplace u = bump around (CENTRE, CENTRE), (N, 1), by its sine series."""
    frequencies = torch.pi / 4 * torch.arange(1, modes + 1, dtype=torch.float64)
    x = torch.linspace(-2, 2, 801, dtype=torch.float64)
    profile = torch.exp(-2 * (x - CENTRE) ** 2) * torch.sin(frequencies[:, None] * (x + 2))
    f = torch.trapezoid(profile, x) / 2
    squares = frequencies.square()
    u = -f[:, None] * f / (squares[:, None] + squares)
    sines = [torch.sin((column(points, name).double() + 2) * frequencies) for name in "xy"]
    return ((sines[0] @ u) * sines[1]).sum(1, keepdim=True).to(points.dtype)


GRID = torch.linspace(-1.8, 1.8, 10)
SENSORS = LabelTensor(torch.cartesian_prod(GRID, GRID), ["x", "y"])


class UnknownCentre(SpatialProblem, InverseProblem):
    """Laplace u = bump on [-2, 2]^2, u = 0 on its sides; the centre follows from 100 sensors."""

    output_variables = ["u"]
    spatial_domain = CartesianDomain({"x": [-2, 2], "y": [-2, 2]})
    unknown_parameter_domain = CartesianDomain({"mu_x": [-1, 1], "mu_y": [-1, 1]})
    domains = {"inside": spatial_domain, **sides(-2, 2)}
    conditions = {
        "inside": Condition(
            domain="inside",
            equation=Equation(lambda x, u, centre: laplacian(u, x) - bump(x, centre)),
        ),
        "sensors": Condition(input=SENSORS, target=LabelTensor(measured(SENSORS), ["u"])),
        **ON_SIDES,
    }


def solver(problem: Any, optimizer: Kind, **settings: Any) -> PINN:
    """A solver of the problem, with the network and the points of its tutorial."""
    inverse = isinstance(problem, InverseProblem)
    points, layers = (20, [20, 20, 20]) if inverse else (25, [10, 10])
    problem.discretise_domain(points, "grid", domains=["inside", *SIDES])
    model = FeedForward(2, 1, layers=layers, func=torch.nn.Softplus)
    return PINN(problem, model, optimizer=TorchOptimizer(optimizer, **settings))


def train(pinn: PINN, steps: int, **options: Any) -> Trainer:
    """One step an epoch, as PINA does without a batch size."""
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(pinn, max_epochs=steps, **{**defaults, **quiet, **options})


def error(pinn: PINN) -> float:
    """Relative L2 error on 2,500 points that were not trained on."""
    grid = torch.cartesian_prod(*2 * [torch.linspace(0, 1, 50)])
    points = LabelTensor(grid.to(next(pinn.model.parameters()).dtype), ["x", "y"])
    with torch.no_grad():
        found = pinn.forward(points).as_subclass(Tensor)
    return float((found - exact(points)).norm() / exact(points).norm())


def solve(optimizer: Kind, steps: int, **settings: Any) -> float:
    """The error after so many steps."""
    lightning.seed_everything(0)
    pinn = solver(Poisson(), optimizer, **settings)
    train(pinn, steps).train()
    return error(pinn)


def identify(optimizer: Kind, steps: int, **settings: Any) -> float:
    """The error of the centre after so many steps; PINA hands it to the optimizer late."""
    lightning.seed_everything(0)
    problem = UnknownCentre()
    train(solver(problem, optimizer, **settings), steps).train()
    return max(abs(float(p.detach()) - CENTRE) for p in problem.unknown_parameters.values())


def main(steps: int = 100) -> None:
    """KFACPINN instead of TorchOptimizer(torch.optim.Adam, lr=0.006)."""
    print(f"relative L2 error {solve(KFACPINN, steps):.1e}")
    print(f"error of the unknown centre {identify(KFACPINN, steps):.1e}")


if __name__ == "__main__":
    typer.run(main)
