"""Natural gradients of scimba beside ours: 2d Poisson, one network, the same seconds.

    pip install scimba==1.4.1
    OMP_NUM_THREADS=1 python examples/reproduce/benchmark_scimba.py --seconds 30

-Delta u = 2 pi^2 sin(pi x) sin(pi y) on the unit square, u = 0 on its boundary with weight 10;
tanh network 2-32-32-1 (scimba's has the diffusivity as a third input, held at 1, and no bias at the
end: 1,216 parameters, ours 1,185), 900 + 200 points, new in every step for scimba, which knows no
others, and ours as `fit` keeps them. Writes relative L2 errors on a grid, steps and CPU seconds
of each to results/scimba.json and prints a table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from kfac_pinn import ENGD, KFACPINN, MLP, Box, GaussNewton, Problem, Term, fit, laplacian
from kfac_pinn.pinn.training.clock import now

RESULTS = Path(__file__).parent / "results" / "scimba.json"
INTERIOR, BOUNDARY, WEIGHT = 900, 200, 10.0
SCIMBA = ("ENG", "ANaGRAM", "SNG", "NNG")
OURS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "KFACPINN": KFACPINN, "GaussNewton": GaussNewton, "ENGD": ENGD,
}  # fmt: skip
Row = dict[str, float]


def exact(x: Tensor) -> Tensor:
    """sin(pi x) sin(pi y), (N, 1)."""
    return torch.sin(math.pi * x).prod(1, keepdim=True)


def error(u: Callable[[Tensor], Tensor]) -> float:
    """||u - u*|| / ||u*|| on a grid."""
    axis = torch.linspace(0, 1, 101)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        return float((u(grid) - exact(grid)).norm() / exact(grid).norm())


def scimba(algorithm: str, seconds: float) -> Row:
    """One of its natural gradients with its own settings, for about so long."""
    from scimba_torch.approximation_space.nn_space import NNxSpace
    from scimba_torch.domain.meshless_domain.domain_2d import Square2D
    from scimba_torch.integration.monte_carlo import DomainSampler, TensorizedSampler
    from scimba_torch.integration.monte_carlo_parameters import UniformParametricSampler
    from scimba_torch.neural_nets.coordinates_based_nets.mlp import GenericMLP
    from scimba_torch.numerical_solvers.elliptic_pde.pinns import NaturalGradientPinnsElliptic
    from scimba_torch.physical_models.elliptic_pde.laplacians import Laplacian2DDirichletStrongForm
    from scimba_torch.utils.scimba_tensors import LabelTensor

    torch.manual_seed(0)
    square = Square2D([(0.0, 1.0), (0.0, 1.0)], is_main_domain=True)
    one = UniformParametricSampler([(1.0, 1.0 + 1e-12)])
    sampler = TensorizedSampler([DomainSampler(square), one])
    space = NNxSpace(1, 1, GenericMLP, square, sampler, layer_sizes=[32, 32])
    equation = Laplacian2DDirichletStrongForm(
        space,
        f=lambda x, mu: 2 * math.pi**2 * exact(torch.cat(x.get_components(), 1)),
        g=lambda x, mu: torch.zeros_like(x.get_components()[0]),
    )
    solver = NaturalGradientPinnsElliptic(
        equation, bc_type="weak", bc_weight=WEIGHT, ng_algo=algorithm
    )

    def train(epochs: int) -> float:
        start = now()
        solver.solve(epochs=epochs, n_collocation=INTERIOR, n_bc_collocation=BOUNDARY, silent=True)
        return now() - start

    def u(x: Tensor) -> Tensor:
        return space.evaluate(LabelTensor(x), LabelTensor(torch.ones(len(x), 1))).w

    train(2)
    # In one call, which keeps its state: as many as the seconds hold by three trial steps
    epochs = max(1, int(seconds / (train(3) / 3)))
    spent = train(epochs)
    return {"error": error(u), "steps": epochs, "seconds": spent}


def ours(name: str, seconds: float) -> Row:
    """An optimizer as `fit` runs it."""
    box = Box.cube(2)
    problem = Problem("Poisson", box, {
        "interior": Term(
            box.interior, lambda u, x: laplacian(u, x) + 2 * math.pi**2 * exact(x), INTERIOR
        ),
        "boundary": Term(box.boundary, lambda u, x: math.sqrt(WEIGHT) * u(x), BOUNDARY),
    })  # fmt: skip
    torch.manual_seed(0)
    network = MLP((2, 32, 32, 1))
    history = fit(network, problem, OURS[name](network.parameters()), seconds=seconds)
    last = history.last
    return {"error": error(network), "steps": last["step"], "seconds": last["seconds"]}


def main(seconds: float = 30.0, folder: Path = RESULTS.parent) -> None:
    """All of them, one after the other."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rows: dict[str, Row] = {f"scimba, {name}": scimba(name, seconds) for name in SCIMBA}
    rows |= {f"ours, {name}": ours(name, seconds) for name in OURS}
    found: dict[str, Any] = {"rows": rows, "torch": torch.__version__}
    found["command"] = f"python examples/reproduce/benchmark_scimba.py --seconds {seconds:g}"
    (folder / RESULTS.name).write_text(json.dumps(found, indent=1) + "\n")
    typer.echo("| optimizer | relative L2 | steps | ms a step |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        each = 1000 * row["seconds"] / row["steps"]
        typer.echo(f"| {name} | {row['error']:.1e} | {row['steps']:.0f} | {each:.3g} |")


if __name__ == "__main__":
    typer.run(main)
