"""DeepXDE's demos (PyTorch backend) with any optimizer: the training is the only line that differs.

python examples/frameworks/deepxde_demos.py
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import numpy as np
import torch
import typer
from scipy.integrate import solve_ivp
from torch import Tensor

from kfac_pinn import KFACPINN
from kfac_pinn.pinn.problems import burgers as burgers_problem

jacobian, hessian = dde.grad.jacobian, dde.grad.hessian


@dataclass
class Demo:
    """A model to train, its error, and the unknown coefficients of an inverse problem."""

    model: dde.Model
    error: Callable[[], float]
    unknowns: list[Tensor] = field(default_factory=list)

    @property
    def trained(self) -> list[Tensor]:
        """What the optimizer gets: DeepXDE adds nothing to an optimizer handed in."""
        return [*self.model.net.parameters(), *self.unknowns]


def relative_l2(model: dde.Model, solution: Callable, x: np.ndarray) -> float:
    """||u - u*|| / ||u*|| over the points x."""
    found, expected = model.predict(x), solution(x)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def burgers(domain: int = 2540, boundary: int = 80, initial: int = 160, width: int = 20) -> Demo:
    """u_t + u u_x = 0.01/pi u_xx on [-1, 1] x [0, 0.99], u(x, 0) = -sin(pi x), u(+-1, t) = 0."""

    def equation(x, u):
        du_x, du_t = jacobian(u, x, i=0, j=0), jacobian(u, x, i=0, j=1)
        return du_t + u * du_x - 0.01 / np.pi * hessian(u, x, i=0, j=0)

    geometry = dde.geometry.GeometryXTime(
        dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 0.99)
    )
    edge = dde.icbc.DirichletBC(geometry, lambda x: 0, lambda _, on: on)
    start = dde.icbc.IC(geometry, lambda x: -np.sin(np.pi * x[:, :1]), lambda _, on: on)
    points = {"num_domain": domain, "num_boundary": boundary, "num_initial": initial}
    data = dde.data.TimePDE(geometry, equation, [edge, start], **points)
    net = dde.nn.FNN([2] + [width] * 3 + [1], "tanh", "Glorot normal")
    model = dde.Model(data, net)

    def solution(x: np.ndarray) -> np.ndarray:
        """By the transform of Cole and Hopf; there the first coordinate is time."""
        return burgers_problem().solution(torch.tensor(x[:, ::-1].copy()).double()).numpy()

    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 201), np.linspace(0, 0.99, 100)), -1)
    test = grid.reshape(-1, 2).astype(dde.config.real(np))
    return Demo(model, lambda: relative_l2(model, solution, test))


def kovasznay(domain: int = 2601, boundary: int = 400, width: int = 50, depth: int = 4) -> Demo:
    """Steady Navier-Stokes at Re = 20 behind a grid, with Kovasznay's exact solution."""
    reynolds = 20.0
    rate = reynolds / 2 - np.sqrt(reynolds**2 / 4 + 4 * np.pi**2)

    def equation(x, u):
        v, w = u[:, 0:1], u[:, 1:2]
        first = [[jacobian(u, x, i=i, j=j) for j in range(2)] for i in range(3)]
        second = [sum(hessian(u, x, component=i, i=j, j=j) for j in range(2)) for i in range(2)]
        momentum = [
            v * first[i][0] + w * first[i][1] + first[2][i] - second[i] / reynolds for i in range(2)
        ]
        return [*momentum, first[0][0] + first[1][1]]

    def component(i: int) -> Callable:
        return lambda x: exact(x)[:, i : i + 1]

    def exact(x: np.ndarray) -> np.ndarray:
        """Two velocities and the pressure, (N, 3)."""
        decay, angle = np.exp(rate * x[:, 0]), 2 * np.pi * x[:, 1]
        v, w = 1 - decay * np.cos(angle), rate / (2 * np.pi) * decay * np.sin(angle)
        return np.stack([v, w, (1 - decay**2) / 2], -1)

    geometry = dde.geometry.Rectangle(xmin=[-0.5, -0.5], xmax=[1, 1.5])
    conditions = [
        dde.icbc.DirichletBC(geometry, component(0), lambda _, on: on, component=0),
        dde.icbc.DirichletBC(geometry, component(1), lambda _, on: on, component=1),
        dde.icbc.DirichletBC(
            geometry, component(2), lambda x, on: on and np.isclose(x[0], 1), component=2
        ),
    ]
    points = {"num_domain": domain, "num_boundary": boundary, "num_test": 100}
    data = dde.data.PDE(geometry, equation, conditions, **points)
    net = dde.nn.FNN([2] + [width] * depth + [3], "tanh", "Glorot normal")
    model, test = dde.Model(data, net), geometry.random_points(10000)
    return Demo(model, lambda: relative_l2(model, exact, test))


def beam(domain: int = 10) -> Demo:
    """u'''' = -1 on [0, 1], clamped on the left, free on the right: fourth derivatives."""

    def second(x, u, _=None):
        return hessian(u, x)

    def equation(x, u):
        return hessian(hessian(u, x), x) + 1

    def solution(x: np.ndarray) -> np.ndarray:
        return -(x**4) / 24 + x**3 / 6 - x**2 / 4

    def left(x, on):
        return on and np.isclose(x[0], 0)

    def right(x, on):
        return on and np.isclose(x[0], 1)

    line = dde.geometry.Interval(0, 1)
    conditions = [
        dde.icbc.DirichletBC(line, lambda x: 0, left),
        dde.icbc.NeumannBC(line, lambda x: 0, left),
        dde.icbc.OperatorBC(line, second, right),
        dde.icbc.OperatorBC(line, lambda x, u, _: jacobian(second(x, u), x), right),
    ]
    points = {"num_domain": domain, "num_boundary": 2, "num_test": 100}
    data = dde.data.PDE(line, equation, conditions, solution=solution, **points)
    model = dde.Model(data, dde.nn.FNN([1] + [20] * 3 + [1], "tanh", "Glorot uniform"))
    test = np.linspace(0, 1, 101)[:, None].astype(dde.config.real(np))
    return Demo(model, lambda: relative_l2(model, solution, test))


def diffusion_points() -> tuple[dde.geometry.GeometryXTime, np.ndarray]:
    """The domain [-1, 1] x [0, 1] and points to test on."""
    geometry = dde.geometry.GeometryXTime(
        dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1)
    )
    return geometry, geometry.random_points(2000)


def diffused(x: np.ndarray) -> np.ndarray:
    """u = e^-t sin(pi x)."""
    return np.sin(np.pi * x[:, :1]) * np.exp(-x[:, 1:])


def source(x: Tensor) -> Tensor:
    """u_t - u_xx of the solution."""
    return torch.exp(-x[:, 1:]) * (np.pi**2 - 1) * torch.sin(np.pi * x[:, :1])


def diffusivity() -> Demo:
    """u_t = C u_xx + f with C unknown (its value is 1), from ten values of u at the end time."""
    unknown = dde.Variable(2.0)

    def equation(x, u):
        return jacobian(u, x, i=0, j=1) - unknown * hessian(u, x, i=0, j=0) - source(x)

    geometry, _ = diffusion_points()
    measured = np.stack([np.linspace(-1, 1, 10), np.ones(10)], -1).astype(dde.config.real(np))
    conditions = [
        dde.icbc.DirichletBC(geometry, diffused, lambda _, on: on),
        dde.icbc.IC(geometry, diffused, lambda _, on: on),
        dde.icbc.PointSetBC(measured, diffused(measured), component=0),
    ]
    points = {"num_domain": 40, "num_boundary": 20, "num_initial": 10, "anchors": measured}
    data = dde.data.TimePDE(geometry, equation, conditions, **points)
    model = dde.Model(data, dde.nn.FNN([2] + [32] * 3 + [1], "tanh", "Glorot uniform"))
    return Demo(model, lambda: abs(float(unknown.detach()) - 1), [unknown])


def hard_constraint(domain: int = 40) -> Demo:
    """u_t = u_xx + f, its initial and boundary values built into the network's output."""

    def equation(x, u):
        return jacobian(u, x, i=0, j=1) - hessian(u, x, i=0, j=0) - source(x)

    def transform(x, u):
        return x[:, 1:] * (1 - x[:, :1] ** 2) * u + torch.sin(np.pi * x[:, :1])

    geometry, test = diffusion_points()
    data = dde.data.TimePDE(geometry, equation, [], num_domain=domain)
    net = dde.nn.FNN([2] + [32] * 3 + [1], "tanh", "Glorot uniform")
    net.apply_output_transform(transform)
    model = dde.Model(data, net)
    return Demo(model, lambda: relative_l2(model, diffused, test))


def constant(value: float) -> Callable:
    """A function of x alone: DeepXDE hands auxiliary variables to one with two arguments."""
    return lambda x: value


def lorenz(domain: int = 400, width: int = 40) -> Demo:
    """Lorenz's system with all three coefficients unknown, from its values at 25 times."""
    truth, start = np.array([10.0, 15.0, 8 / 3]), [-8.0, 7.0, 27.0]
    unknowns = [dde.Variable(1.0) for _ in truth]

    def equation(t, y):
        a, b, c = y[:, 0:1], y[:, 1:2], y[:, 2:3]
        da, db, dc = (jacobian(y, t, i=i) for i in range(3))
        sigma, rho, beta = unknowns
        return [da - sigma * (b - a), db - a * (rho - c) + b, dc - a * b + beta * c]

    def slope(t: float, y: np.ndarray) -> list[float]:
        a, b, c = y
        return [truth[0] * (b - a), a * (truth[1] - c) - b, a * b - truth[2] * c]

    times = np.linspace(0, 3, 25)
    values = solve_ivp(slope, (0, 3), start, t_eval=times, rtol=1e-10, atol=1e-10).y.T
    values, times = (array.astype(dde.config.real(np)) for array in (values, times[:, None]))
    line = dde.geometry.TimeDomain(0, 3)
    conditions = [
        *(dde.icbc.IC(line, constant(y), lambda _, on: on, i) for i, y in enumerate(start)),
        *(dde.icbc.PointSetBC(times, values[:, i : i + 1], component=i) for i in range(3)),
    ]
    points = {"num_domain": domain, "num_boundary": 2, "anchors": times}
    data = dde.data.PDE(line, equation, conditions, **points)
    model = dde.Model(data, dde.nn.FNN([1] + [width] * 3 + [3], "tanh", "Glorot uniform"))

    def error() -> float:
        """The largest of the coefficients' relative errors."""
        found = np.array([float(unknown.detach()) for unknown in unknowns])
        return float(np.abs(found / truth - 1).max())

    return Demo(model, error, unknowns)


DEMOS = {
    "burgers": burgers,
    "kovasznay": kovasznay,
    "beam": beam,
    "diffusivity": diffusivity,
    "hard_constraint": hard_constraint,
    "lorenz": lorenz,
}


def main(steps: int = 100) -> None:
    """The Burgers demo: the two lines that differ are the first of the loop's body."""
    dde.config.set_random_seed(0)
    demo = burgers()
    demo.model.compile(KFACPINN(demo.trained))  # instead of compile("adam", lr=1e-3)
    demo.model.train(iterations=steps, display_every=10)
    print(f"relative L2 error {demo.error():.1e}")


if __name__ == "__main__":
    typer.run(main)
