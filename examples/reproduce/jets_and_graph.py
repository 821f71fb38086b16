"""K-FAC's convergence where J comes from jets and where it comes from the autograd graph.

    python examples/reproduce/jets_and_graph.py measure     # results/jets_and_graph.json
    python examples/reproduce/jets_and_graph.py report      # figure and table of the design notes

The same residuals twice: derivatives in one pass of jets, and by nested `torch.autograd.grad`. J is
the same to rounding, and so is every step of `GaussNewton`. Kronecker factors are sums over the
positions where a weight is read, and those differ: a jet's few coefficients, or every product of
the forward pass and of the two backward passes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import typer
from published.results import environment
from torch import Tensor, nn
from tqdm import tqdm

from kfac_pinn import KFAC, KFACPINN, MLP, Affordable, GaussNewton, KFACStar, taylor
from kfac_pinn.pinn.problems import burgers
from kfac_pinn.pinn.training.clock import now

app = typer.Typer(help=__doc__, no_args_is_help=True)
HERE = Path(__file__).parent
RESULT = HERE / "results" / "jets_and_graph.json"
DOCS = HERE.parents[1] / "docs"
FIGURE, PAGE = DOCS / "figures" / "jets_and_graph.png", DOCS / "design_notes.md"

Derivatives = Callable[[Any, Tensor], tuple[Tensor, Tensor, Tensor]]


def jets(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u (N, 1), du/dx_i and d2u/dx_i2 (2, N, 1) in one pass."""
    u, first, second = taylor(model, x, 2)
    return u, first, second


def graph(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by nested `torch.autograd.grad`."""
    x = x.clone().requires_grad_()
    u = model(x)
    first = gradient(u, x)
    second = [gradient(first[:, i], x)[:, i : i + 1] for i in range(x.shape[1])]
    return u, first.T[..., None], torch.stack(second)


def gradient(y: Tensor, x: Tensor) -> Tensor:
    """dy_n / dx_n of every row."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


SOURCES: dict[str, Derivatives] = {"jets": jets, "graph": graph}


@dataclass(frozen=True)
class Equation:
    """An equation on a square with values of u on some of its sides.

    Attributes:
        residual: of (x, u, du, ddu).
        exact: u of x, (N, 1).
        low: the corner of the square with the smallest coordinates; the other one is (1, 1).
        closed: whether the side of the largest x_0 has values; none are given where that is time.
    """

    residual: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    low: tuple[float, float] = (0.0, 0.0)
    closed: bool = False


def sines(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y)."""
    return torch.sin(torch.pi * x).prod(1, keepdim=True)


EQUATIONS = {
    "Poisson": Equation(
        lambda x, u, du, ddu: ddu.sum(0) + 2 * torch.pi**2 * sines(x), sines, closed=True
    ),
    "heat": Equation(
        lambda x, u, du, ddu: du[0] - ddu[1] / 4,
        lambda x: torch.exp(-(torch.pi**2) * x[:, :1] / 4) * torch.sin(torch.pi * x[:, 1:]),
    ),
    "Burgers": Equation(
        lambda x, u, du, ddu: du[0] + u * du[1] - 0.1 * ddu[1],
        lambda x: burgers(0.1).solution(x),
        low=(0.0, -1.0),
    ),
}


def border(equation: Equation, n: int) -> Tensor:
    """n points on every side with given values, (M, 2)."""
    low, t = torch.tensor(equation.low), torch.rand(n)
    size = 1 - low
    sides = []
    for axis, end in ((0, 0), (1, 0), (1, 1), (0, 1))[: 4 if equation.closed else 3]:
        point = torch.empty(n, 2)
        point[:, axis], point[:, 1 - axis] = float(end), t
        sides.append(low + size * point)
    return torch.cat(sides)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "KFAC": KFAC,
    "KFACStar": KFACStar,
    "KFACPINN": lambda parameters: KFACPINN(parameters, exact=Affordable(0)),
    "GaussNewton": GaussNewton,
}


def train(equation: Equation, make: Callable[[Any], Any], source: Derivatives, steps: int) -> Any:
    """Relative L2 error after every step, and the seconds of all."""
    torch.manual_seed(0)
    model = MLP([2, 16, 16, 1])
    low = torch.tensor(equation.low)
    x, edge, test = low + (1 - low) * torch.rand(300, 2), border(equation, 25), torch.rand(2000, 2)
    test = low + (1 - low) * test
    values, expected = equation.exact(edge), equation.exact(test)
    optimizer = make(model.parameters())

    def residuals() -> dict[str, Tensor]:
        equal = equation.residual(x, *source(model, x))
        return {"equation": equal, "border": model(edge) - values}

    errors, begin = [], now()
    for _ in range(steps):
        optimizer.step(residuals)
        with torch.no_grad():
            errors.append(float((model(test) - expected).norm() / expected.norm()))
    return {"errors": [float(f"{e:.3g}") for e in errors], "seconds": round(now() - begin, 1)}


@app.command()
def measure(steps: int = 60) -> None:
    """Train every optimizer on every equation from both sources."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    runs = {}
    for title, name, source in tqdm(list(product(EQUATIONS, OPTIMIZERS, SOURCES)), unit="run"):
        found = train(EQUATIONS[title], OPTIMIZERS[name], SOURCES[source], steps)
        runs[f"{title}, {name}, {source}"] = found
    RESULT.write_text(json.dumps({**environment(), "runs": runs}, indent=1) + "\n")
    report()


@app.command()
def report() -> None:
    """Draw the figure and fill the table."""
    result = json.loads(RESULT.read_text())
    draw(result["runs"])
    begin, end = "<!-- jets and graph -->\n", "<!-- end -->"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}{table(result)}\n{end}{rest.partition(end)[2]}")


def table(result: dict[str, Any]) -> str:
    """Error and seconds after the last step."""
    runs, lines = result["runs"], ["| equation | optimizer | jets | graph |", "|---|---|---|---|"]
    for title in EQUATIONS:
        for name in OPTIMIZERS:
            both = [runs[f"{title}, {name}, {source}"] for source in SOURCES]
            cells = [f"{run['errors'][-1]:.1e}, {run['seconds']:.0f} s" for run in both]
            lines.append(f"| {title} | `{name}` | {' | '.join(cells)} |")
    steps = len(next(iter(runs.values()))["errors"])
    note = f"(error after {steps} steps and their CPU seconds; torch {result['torch']}, one thread"
    return "\n".join([*lines, "", f"{note}; commit {result['commit']})"])


COLORS = {"KFAC": "C9", "KFACStar": "C0", "KFACPINN": "C1", "GaussNewton": "C3"}  # as elsewhere


def draw(runs: dict[str, Any]) -> None:
    """One panel an equation: jets drawn through, the graph dotted."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(EQUATIONS), figsize=(9, 3), sharey=True, layout="tight")
    for axis, title in zip(axes, EQUATIONS, strict=True):
        for name in OPTIMIZERS:
            for source, style in zip(SOURCES, ("-", ":"), strict=True):
                label = name if source == "jets" else None
                errors = runs[f"{title}, {name}, {source}"]["errors"]
                axis.semilogy(errors, style, color=COLORS[name], label=label)
        axis.set_title(title)
        axis.set_xlabel("steps")
    axes[0].set_ylabel("relative $L_2$ error")
    axes[0].legend(fontsize=7)
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    app()
