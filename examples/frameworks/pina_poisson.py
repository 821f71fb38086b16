"""Poisson's equation in PINA, and the same with an unknown strength of its source.

python examples/frameworks/pina_poisson.py
"""

from typing import Any

import lightning
import torch
from pina import Condition, LabelTensor, Trainer
from pina.domain import CartesianDomain
from pina.equation import Equation, FixedValue
from pina.model import FeedForward
from pina.operator import laplacian
from pina.optim import TorchOptimizer
from pina.problem import InverseProblem, SpatialProblem
from pina.solver import PINN

from kfac_pinn import KFACPINN

SQUARE = CartesianDomain({"x": [0, 1], "y": [0, 1]})
SIDES = {
    "left": CartesianDomain({"x": 0, "y": [0, 1]}),
    "right": CartesianDomain({"x": 1, "y": [0, 1]}),
    "bottom": CartesianDomain({"x": [0, 1], "y": 0}),
    "top": CartesianDomain({"x": [0, 1], "y": 1}),
}
ON_SIDES = {side: Condition(domain=side, equation=FixedValue(0.0)) for side in SIDES}


def exact(points: LabelTensor) -> torch.Tensor:
    """u = sin(pi x) sin(pi y) / (2 pi^2)."""
    x, y = (points.extract([name]).as_subclass(torch.Tensor) for name in "xy")
    return torch.sin(torch.pi * x) * torch.sin(torch.pi * y) / (2 * torch.pi**2)


def source(points: LabelTensor) -> LabelTensor:
    """-Laplace u of the solution."""
    return torch.sin(torch.pi * points.extract(["x"])) * torch.sin(torch.pi * points.extract(["y"]))


class Poisson(SpatialProblem):
    """-Laplace u = f on the unit square, u = 0 on its sides."""

    output_variables = ["u"]
    spatial_domain = SQUARE
    domains = {"inside": SQUARE, **SIDES}
    conditions = {
        "inside": Condition(
            domain="inside", equation=Equation(lambda x, u: laplacian(u, x) + source(x))
        ),
        **ON_SIDES,
    }


SENSORS = LabelTensor(torch.cartesian_prod(*2 * [torch.linspace(0.1, 0.9, 5)]), ["x", "y"])


class UnknownSource(SpatialProblem, InverseProblem):
    """-Laplace u = mu f with mu unknown (its value is 1), from 25 sensors."""

    output_variables = ["u"]
    spatial_domain = SQUARE
    unknown_parameter_domain = CartesianDomain({"mu": [-5, 5]})
    domains = {"inside": SQUARE, **SIDES}
    conditions = {
        "inside": Condition(
            domain="inside",
            equation=Equation(lambda x, u, unknown: laplacian(u, x) + unknown["mu"] * source(x)),
        ),
        "sensors": Condition(input=SENSORS, target=LabelTensor(exact(SENSORS), ["u"])),
        **ON_SIDES,
    }


def solver(problem: Any, optimizer: type[torch.optim.Optimizer], **settings: Any) -> PINN:
    """A solver of the problem on 400 points inside and 4 x 40 on the sides."""
    problem.discretise_domain(400, "random", domains=["inside"])
    problem.discretise_domain(40, "random", domains=list(SIDES))
    model = FeedForward(input_dimensions=2, output_dimensions=1, layers=[20, 20])
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
        found = pinn.forward(points).as_subclass(torch.Tensor)
    return float((found - exact(points)).norm() / exact(points).norm())


def solve(optimizer: type[torch.optim.Optimizer], steps: int, **settings: Any) -> float:
    """The error after so many steps."""
    lightning.seed_everything(0)
    pinn = solver(Poisson(), optimizer, **settings)
    train(pinn, steps).train()
    return error(pinn)


def identify(optimizer: type[torch.optim.Optimizer], steps: int, **settings: Any) -> float:
    """|mu - 1| after so many steps; PINA hands mu to the optimizer as a late group."""
    lightning.seed_everything(0)
    problem = UnknownSource()
    train(solver(problem, optimizer, **settings), steps).train()
    return abs(float(problem.unknown_parameters["mu"].detach()) - 1)


if __name__ == "__main__":
    # instead of TorchOptimizer(torch.optim.Adam, lr=1e-3)
    print(f"relative L2 error {solve(KFACPINN, 100):.1e}, of mu {identify(KFACPINN, 100):.1e}")
