"""What J from the autograd graph costs: Burgers' equation on a 2-20-20-20-1 network, float64.

    python examples/reproduce/benchmark_graph.py        # prints, and writes results/graph_cost.json

3,020 residuals (2,540 inside, 480 with given values) and 921 parameters. A first-order step of Adam
on a closure with nested `torch.autograd.grad`; r and J in factors of the same closure, without and
with J's rows; a step of `KFACPINN` on that closure, and on the same residuals by jets. Then steps
on the Laplacian by jets of networks whose layers are inside one torch function, 500 points:
recurrent networks and attention of width 16 over three tokens. Ten products with J a step; medians
of CPU seconds, one thread.
"""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from published.results import environment
from torch import Tensor, nn
from tqdm import tqdm

from kfac_pinn import KFACPINN, MLP, laplacian, linearize, taylor
from kfac_pinn.pinn.training.clock import now

RESULT = Path(__file__).parent / "results" / "graph_cost.json"
VISCOSITY = 0.01 / torch.pi

Residuals = Callable[[], dict[str, Tensor]]


def by_graph(model: nn.Module, x: Tensor) -> Tensor:
    """u_t + u u_x - nu u_xx with derivatives as everybody writes them; x is (t, x)."""
    x = x.clone().requires_grad_()
    u = model(x)
    du = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    ddu = torch.autograd.grad(du[:, 1].sum(), x, create_graph=True)[0]
    return du[:, :1] + u * du[:, 1:] - VISCOSITY * ddu[:, 1:]


def by_jets(model: nn.Module, x: Tensor) -> Tensor:
    """The same in one pass."""
    u, du, ddu = taylor(model, x, 2)
    return du[0] + u * du[1] - VISCOSITY * ddu[1]


def residuals_of(model: nn.Module, equation: Callable[[nn.Module, Tensor], Tensor]) -> Residuals:
    """The equation inside, and u = -sin(pi x) where values are given."""
    generator = torch.Generator().manual_seed(0)
    inside, border = (torch.rand(n, 2, generator=generator) * 2 - 1 for n in (2540, 480))
    values = -torch.sin(torch.pi * border[:, 1:])
    return lambda: {"equation": equation(model, inside), "border": model(border) - values}


class Inside(nn.Module):
    """Tokens of a point, a cell or attention over them, and a last layer."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(2, 16), cell, nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(x)[:, None] * torch.linspace(0.5, 1.5, 3).to(x.dtype)[:, None]
        attention = isinstance(self.cell, nn.MultiheadAttention)
        out, _ = self.cell(tokens, tokens, tokens) if attention else self.cell(tokens)
        return self.last(out.mean(1))  # type: ignore[no-any-return]


CELLS: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: nn.RNN(16, 16, batch_first=True),
    "GRU": lambda: nn.GRU(16, 16, batch_first=True),
    "LSTM": lambda: nn.LSTM(16, 16, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(16, 2, batch_first=True),
}


def laplacians(model: nn.Module) -> Residuals:
    """Laplace u + 1 at 500 points."""
    x = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    return lambda: {"equation": laplacian(model, x) + 1}


def median(work: Callable[[], object], rounds: int) -> float:
    """CPU seconds, after two calls that warm up."""
    seconds = []
    for _ in range(rounds + 2):
        begin = now()
        work()
        seconds.append(now() - begin)
    return statistics.median(seconds[2:])


def first_order(model: nn.Module, closure: Residuals) -> Callable[[], None]:
    """A step of Adam."""
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        torch.stack([r.square().mean() for r in closure().values()]).sum().backward()
        optimizer.step()

    return step


def second_order(model: nn.Module, closure: Residuals) -> Callable[[], object]:
    """A step of KFACPINN, truncated."""
    optimizer = KFACPINN(model.parameters(), products=10)
    return lambda: optimizer.step(closure)


def burgers() -> dict[str, Callable[[], object]]:
    """What is measured on one equation."""
    model = MLP([2, 20, 20, 20, 1])
    twins = [copy.deepcopy(model) for _ in range(3)]
    closure, parameters = residuals_of(model, by_graph), list(model.parameters())
    return {
        "a step of Adam": first_order(twins[0], residuals_of(twins[0], by_graph)),
        "r and J in factors": lambda: linearize(closure, parameters, False),
        "r and J by rows": lambda: linearize(closure, parameters, False).rows(),
        "a step of KFACPINN, graph": second_order(twins[1], residuals_of(twins[1], by_graph)),
        "a step of KFACPINN, jets": second_order(twins[2], residuals_of(twins[2], by_jets)),
    }


def inside(cell: nn.Module) -> dict[str, Callable[[], object]]:
    """Steps on a network whose layers are inside one function."""
    model = Inside(cell)
    twin = copy.deepcopy(model)
    return {
        "a step of Adam": first_order(model, laplacians(model)),
        "a step of KFACPINN": second_order(twin, laplacians(twin)),
    }


def main(rounds: int = 20) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    groups = {"Burgers": burgers()} | {name: inside(cell()) for name, cell in CELLS.items()}
    seconds: dict[str, dict[str, float]] = {}
    for group, works in tqdm(groups.items(), unit="model"):
        seconds[group] = {name: median(work, rounds) for name, work in works.items()}
    for group, found in seconds.items():
        for name, each in found.items():
            ratio = each / found["a step of Adam"]
            print(f"{group}, {name}: {1e3 * each:.0f} ms, {ratio:.1f} steps of Adam")
    RESULT.write_text(json.dumps({**environment(), "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
