"""What J from the autograd graph costs: Burgers' equation on a 2-20-20-20-1 network, float64.

    python examples/reproduce/benchmark_graph.py        # prints, and writes results/graph_cost.json

3,020 residuals (2,540 inside, 480 with given values) and 921 parameters. A first-order step of Adam
on a closure with nested `torch.autograd.grad`; r and J in factors of the same closure, without and
with J's rows; a step of `KFACPINN` on that closure, and on the same residuals by jets. Medians of
CPU seconds, one thread.
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

from kfac_pinn import KFACPINN, MLP, linearize, taylor
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


def main(rounds: int = 20) -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = MLP([2, 20, 20, 20, 1])
    twins = [copy.deepcopy(model) for _ in range(3)]
    closure = residuals_of(model, by_graph)
    parameters = list(model.parameters())
    works: dict[str, Callable[[], object]] = {
        "a step of Adam": first_order(twins[0], residuals_of(twins[0], by_graph)),
        "r and J in factors": lambda: linearize(closure, parameters, False),
        "r and J by rows": lambda: linearize(closure, parameters, False).rows(),
    }
    for twin, (name, equation) in zip(
        twins[1:], {"graph": by_graph, "jets": by_jets}.items(), strict=True
    ):
        optimizer, residuals = (
            KFACPINN(twin.parameters(), products=10),
            residuals_of(twin, equation),
        )
        works[f"a step of KFACPINN, {name}"] = lambda o=optimizer, r=residuals: o.step(r)  # type: ignore[misc]
    seconds = {name: median(work, rounds) for name, work in tqdm(works.items(), unit="row")}
    for name, each in seconds.items():
        print(f"{name}: {1e3 * each:.0f} ms, {each / seconds['a step of Adam']:.1f} steps of Adam")
    RESULT.write_text(json.dumps({**environment(), "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
