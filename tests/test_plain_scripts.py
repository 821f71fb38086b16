"""Training scripts as people write them, one line changed: the optimizer.

Derivatives by nested `torch.autograd.grad`, losses that are sums of means, closures that call
`backward()`, loops without a closure, weights by hand, inputs in columns, points in one batch,
points drawn anew.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, GaussNewton

Factory = Callable[[Iterable[Tensor]], Optimizer]


def adam(params: Iterable[Tensor]) -> Optimizer:
    return torch.optim.Adam(params, lr=1e-3)


def dense(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def mesh(*sizes: int) -> np.ndarray:
    """Points of a grid on the unit cube, (N, d)."""
    axes = np.meshgrid(*[np.linspace(0, 1, n) for n in sizes])
    return np.stack([axis.reshape(-1) for axis in axes], -1)


def heat(x: Tensor, t: Tensor) -> Tensor:
    """The solution of u_t = u_xx / 4 with u(0, x) = sin(pi x)."""
    return torch.exp(-(torch.pi**2) / 4 * t) * torch.sin(torch.pi * x)


class Solver:
    """A class that holds data, network and optimizer, as in the PINN papers' PyTorch ports.

    Columns x and t that require gradients each, a method as the closure that counts its calls,
    one call of `step` a round, and an unknown coefficient registered with the network.
    """

    def __init__(self, optimizer: Factory) -> None:
        X = torch.tensor(mesh(12, 12), dtype=torch.float32)
        border = X[(X[:, 0] == 0) | (X[:, 0] == 1) | (X[:, 1] == 0)]
        inner = X[::3]
        self.x_u, self.t_u = (border[:, i : i + 1].clone().requires_grad_() for i in range(2))
        self.x_f, self.t_f = (X[:, i : i + 1].clone().requires_grad_() for i in range(2))
        self.x_d, self.t_d = inner[:, :1], inner[:, 1:]
        self.dnn = dense(2, 16, 16, 1)
        self.lambda_1 = nn.Parameter(torch.tensor([1.0]))
        self.dnn.register_parameter("lambda_1", self.lambda_1)
        self.optimizer = optimizer(self.dnn.parameters())
        self.iter = 0

    def net_u(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dnn(torch.cat([x, t], dim=1))

    def net_f(self, x: Tensor, t: Tensor) -> Tensor:
        u = self.net_u(x, t)
        u_t = grad(u, t, grad_outputs=torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_x = grad(u, x, grad_outputs=torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_xx = grad(
            u_x, x, grad_outputs=torch.ones_like(u_x), retain_graph=True, create_graph=True
        )[0]
        return u_t - self.lambda_1 * u_xx

    def loss_func(self) -> Tensor:
        self.optimizer.zero_grad()
        u = torch.cat([self.net_u(self.x_u, self.t_u), self.net_u(self.x_d, self.t_d)])
        target = torch.cat([heat(self.x_u, self.t_u), heat(self.x_d, self.t_d)]).detach()
        loss_u = torch.mean((u - target) ** 2)
        loss_f = torch.mean(self.net_f(self.x_f, self.t_f) ** 2)
        loss = loss_u + loss_f
        loss.backward()
        self.iter += 1
        return loss

    def train(self, rounds: int) -> float:
        self.dnn.train()
        for _ in range(rounds):
            self.optimizer.step(self.loss_func)
        return abs(self.lambda_1.item() - 0.25)


def a_class_with_a_closure(optimizer: Factory, steps: int) -> float:
    return Solver(optimizer).train(steps)


def mse_loss_and_derivatives_of_one_batch(optimizer: Factory, steps: int) -> float:
    """Columns of the gradient with respect to all inputs; nn.MSELoss on every term."""
    net, criterion = dense(2, 16, 16, 1), nn.MSELoss()
    X = torch.tensor(mesh(12, 12), dtype=torch.float32, requires_grad=True)
    border = (X[:, 0] == 0) | (X[:, 0] == 1) | (X[:, 1] == 0)
    X_train = X[border].detach()
    y_train = heat(X_train[:, :1], X_train[:, 1:])
    optim = optimizer(net.parameters())

    def closure() -> Tensor:
        optim.zero_grad()
        loss_data = criterion(net(X_train), y_train)
        u = net(X)
        du_dX = grad(u, X, torch.ones_like(u), create_graph=True, retain_graph=True)[0]
        du_dt = du_dX[:, 1]
        du_dXX = grad(du_dX, X, torch.ones_like(du_dX), create_graph=True, retain_graph=True)[0]
        mixed = grad(du_dt, X, torch.ones_like(du_dt), create_graph=True, retain_graph=True)[0]
        du_dxx = du_dXX[:, 0] - mixed[:, 0]  # grad of both columns summed the mixed one in
        loss_pde = criterion(du_dt, 0.25 * du_dxx)
        loss = loss_pde + loss_data
        loss.backward()
        return loss

    for _ in range(steps):
        optim.step(closure)
    with torch.no_grad():
        return float((net(X) - heat(X[:, :1], X[:, 1:])).norm() / heat(X[:, :1], X[:, 1:]).norm())


def no_closure_and_points_drawn_by_numpy(optimizer: Factory, steps: int, keep: int = 20) -> float:
    """Adam's loop on u_x = 2 u_t + u, u(x, 0) = 6 e^-3x; new points after so many iterations."""
    rng, mse = np.random.default_rng(0), nn.MSELoss()
    net = dense(2, 16, 16, 1, activation=nn.Sigmoid)
    optim = optimizer(net.parameters())
    for epoch in range(steps):
        if epoch % keep == 0:
            x_bc, t_bc = rng.uniform(0, 2, (100, 1)), np.zeros((100, 1))
            u_bc = torch.from_numpy(6 * np.exp(-3 * x_bc)).float()
            at_start = torch.from_numpy(np.hstack([x_bc, t_bc])).float()
            x = torch.from_numpy(rng.uniform(0, 2, (200, 1))).float().requires_grad_()
            t = torch.from_numpy(rng.uniform(0, 1, (200, 1))).float().requires_grad_()
        optim.zero_grad()
        mse_u = mse(net(at_start), u_bc)
        u = net(torch.cat([x, t], axis=1))
        u_x = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        u_t = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        f = u_x - 2 * u_t - u
        loss = mse_u + mse(f, torch.zeros_like(f))
        loss.backward()
        optim.step()
        with torch.no_grad():
            loss.item()  # scripts print here
    X = torch.tensor(mesh(20, 20) * [2, 1], dtype=torch.float32)
    exact = 6 * torch.exp(-3 * X[:, :1] - 2 * X[:, 1:])
    with torch.no_grad():
        return float((net(X) - exact).norm() / exact.norm())


def an_oscillator_with_a_weighted_loss(optimizer: Factory, steps: int) -> float:
    """u'' + 4 u' + 400 u = 0 from three conditions at t = 0; losses of a single point."""
    d, w0 = 2.0, 20.0
    w = (w0**2 - d**2) ** 0.5
    phi = np.arctan(-d / w)
    t_test = torch.linspace(0, 0.5, 100)[:, None]
    exact = torch.exp(-d * t_test) * torch.cos(phi + w * t_test) / np.cos(phi)
    pinn = dense(1, 24, 24, 1)
    t_boundary = torch.tensor(0.0).view(-1, 1).requires_grad_(True)
    t_physics = torch.linspace(0, 0.5, 40).view(-1, 1).requires_grad_(True)
    optim = optimizer(pinn.parameters())
    for _ in range(steps):
        optim.zero_grad()
        lambda1, lambda2 = 1e-1, 1e-4
        u = pinn(t_boundary)
        loss1 = (torch.squeeze(u) - 1) ** 2
        dudt = grad(u, t_boundary, torch.ones_like(u), create_graph=True)[0]
        loss2 = (torch.squeeze(dudt) - 0) ** 2
        u = pinn(t_physics)
        dudt = grad(u, t_physics, torch.ones_like(u), create_graph=True)[0]
        d2udt2 = grad(dudt, t_physics, torch.ones_like(dudt), create_graph=True)[0]
        loss3 = torch.mean((d2udt2 + 2 * d * dudt + w0**2 * u) ** 2)
        loss = loss1 + lambda1 * loss2 + lambda2 * loss3
        loss.backward()
        optim.step()
    with torch.no_grad():
        return float((pinn(t_test) - exact).norm() / exact.norm())


class Wave(nn.Module):
    """a sin x + b cos x with trained a and b."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.w1 * torch.sin(x) + self.w2 * torch.cos(x)


class Attends(nn.Module):
    """An encoder layer over a short sequence of pseudo times; points do not see each other."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 16), Wave(), nn.Linear(16, width))
        self.act1, self.act2 = Wave(), Wave()
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.embed(torch.cat((x, t), dim=-1))
        h2 = self.act1(h)
        h = h + self.attention(h2, h2, h2)[0]
        h = h + self.feed(self.act2(h))
        return self.out(h)


def sequences(points: np.ndarray, steps: int = 3, dt: float = 1e-2) -> tuple[Tensor, Tensor]:
    """x and t of each point and of steps a little later, each (N, steps, 1)."""
    t = points[:, None, 1] + dt * np.arange(steps)
    x = np.repeat(points[:, None, 0], steps, axis=1)
    return tuple(torch.tensor(c[..., None]).float().requires_grad_() for c in (x, t))


def a_transformer_over_pseudo_sequences(optimizer: Factory, steps: int) -> float:
    """u_x + u_t = 0 with attention in the model and all losses in one closure."""
    X = mesh(9, 9)
    x_res, t_res = sequences(X)
    x_start, t_start = sequences(X[X[:, 1] == 0])
    x_left, t_left = sequences(X[X[:, 0] == 0])
    model, tracked = Attends(), []
    optim = optimizer(model.parameters())

    def closure() -> Tensor:
        u = model(x_res, t_res)
        u_x = grad(u, x_res, torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_t = grad(u, t_res, torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        loss_res = torch.mean((u_x + u_t) ** 2)
        initial = model(x_start, t_start)[:, 0] - torch.sin(2 * x_start[:, 0])
        left = model(x_left, t_left)[:, 0] + torch.sin(2 * t_left[:, 0])
        loss_ic, loss_bc = torch.mean(initial**2), torch.mean(left**2)
        tracked.append([loss_res.item(), loss_ic.item(), loss_bc.item()])
        loss = loss_res + loss_ic + loss_bc
        optim.zero_grad()
        loss.backward()
        return loss

    for _ in range(steps):
        optim.step(closure)
    exact = torch.sin(2 * (x_res - t_res))[:, 0]
    with torch.no_grad():
        return float((model(x_res, t_res)[:, 0] - exact).norm() / exact.norm())


def weights_and_products_by_hand(optimizer: Factory, steps: int) -> float:
    """A list of W and b, x @ W + b, points of all conditions in one batch, a sum of squares."""
    sizes = [2, 16, 16, 1]
    weights = [torch.randn(a, b).div(a**0.5).requires_grad_() for a, b in itertools.pairwise(sizes)]
    biases = [torch.zeros(1, b, requires_grad=True) for b in sizes[1:]]

    def net(X: Tensor) -> Tensor:
        h = 2.0 * X - 1.0
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.tanh(h @ W + b)
        return h @ weights[-1] + biases[-1]

    X = torch.tensor(mesh(12, 12), dtype=torch.float32)
    border = (X[:, 0] == 0) | (X[:, 0] == 1) | (X[:, 1] == 0)
    everything = torch.cat([X[border], X]).requires_grad_()
    n = int(border.sum())
    optim = optimizer([*weights, *biases])

    def closure() -> Tensor:
        optim.zero_grad()
        u = net(everything)
        first = grad(u.sum(), everything, create_graph=True)[0]
        second = grad(first[:, 0].sum(), everything, create_graph=True)[0][:, 0:1]
        f = (first[:, 1:2] - 0.25 * second)[n:]
        data = u[:n] - heat(everything[:n, :1], everything[:n, 1:]).detach()
        loss = 10 * data.pow(2).sum() / n + torch.sum(f * f) / len(f)
        loss.backward()
        return loss

    for _ in range(steps):
        optim.step(closure)
    with torch.no_grad():
        return float((net(X) - heat(X[:, :1], X[:, 1:])).norm() / heat(X[:, :1], X[:, 1:]).norm())


def areas_weights_and_a_gradient_scaler(optimizer: Factory, steps: int) -> float:
    """A large framework's loop: losses by name, weighted by areas and summed; a disabled scaler."""
    net = dense(2, 16, 16, 1, activation=nn.SiLU)
    X = torch.tensor(mesh(12, 12), dtype=torch.float32)
    border = (X[:, 0] == 0) | (X[:, 0] == 1) | (X[:, 1] == 0)
    inputs = {name: X[:, i : i + 1].clone().requires_grad_() for i, name in enumerate("xt")}
    area = torch.full((len(X), 1), 1 / len(X))
    optim = optimizer(net.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(steps):
        optim.zero_grad(set_to_none=True)
        u = net(torch.cat([inputs["x"], inputs["t"]], -1))
        u_x, u_t = grad(u, list(inputs.values()), torch.ones_like(u), create_graph=True)
        u_xx = grad(u_x, inputs["x"], torch.ones_like(u_x), create_graph=True)[0]
        target = heat(X[border][:, :1], X[border][:, 1:])
        losses = {
            "heat": (area * torch.abs(u_t - 0.25 * u_xx).pow(2)).sum(),
            "border": 10.0 * (torch.abs(net(X[border]) - target).pow(2) / border.sum()).sum(),
        }
        loss = torch.zeros(())
        for value in losses.values():
            loss = loss + value
        scaler.scale(loss).backward()
        scaler.step(optim)
        scaler.update()
    with torch.no_grad():
        return float((net(X) - heat(X[:, :1], X[:, 1:])).norm() / heat(X[:, :1], X[:, 1:]).norm())


def error_of(script: Callable[[Factory, int], float], factory: Factory, steps: int) -> float:
    """From the same start and points."""
    torch.manual_seed(0)
    return script(factory, steps)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("script", "optimizer", "steps", "gain"),
    [
        (a_class_with_a_closure, KFACPINN, 20, 10),
        (a_class_with_a_closure, GaussNewton, 20, 1000),
        (mse_loss_and_derivatives_of_one_batch, KFACPINN, 60, 1000),
        (no_closure_and_points_drawn_by_numpy, KFACPINN, 100, 3),
        (an_oscillator_with_a_weighted_loss, GaussNewton, 100, 10),
        (a_transformer_over_pseudo_sequences, KFACPINN, 30, 100),
        (weights_and_products_by_hand, KFACPINN, 60, 1000),
        (areas_weights_and_a_gradient_scaler, KFACPINN, 50, 10),
        (areas_weights_and_a_gradient_scaler, GaussNewton, 60, 10),
    ],
)
def test_one_line_changed_ends_far_below_adam(
    script: Callable[[Factory, int], float], optimizer: Factory, steps: int, gain: float
) -> None:
    """Adam gets five times the steps."""
    assert error_of(script, optimizer, steps) < error_of(script, adam, 5 * steps) / gain


@pytest.mark.filterwarnings("ignore")
def test_new_points_in_every_iteration() -> None:
    script = functools.partial(no_closure_and_points_drawn_by_numpy, keep=1)
    assert error_of(script, KFACPINN, 60) < 0.1


def test_max_iter_as_for_lbfgs() -> None:
    """Scripts that call `step` once expect it to iterate."""
    solver = Solver(lambda params: GaussNewton(params, max_iter=20))
    assert solver.train(1) < 0.05
    assert solver.iter >= 20
