"""What the benchmark suite measures: each row a piece of work, and what else does the same.

    OMP_NUM_THREADS=1 python examples/reproduce/suite_rows.py "Laplacian" ours

prints one measurement as JSON; benchmark_suite.py calls this, a process a measurement.  Only public
names are used, so that PYTHONPATH can point to another checkout of the package.
"""

from __future__ import annotations

import json
import resource
import statistics
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import kfac_pinn
from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    SPRING,
    Factors,
    GaussNewton,
    HessianFree,
    KFACStar,
    LevenbergMarquardt,
    bilaplacian,
    laplacian,
    linearize,
    taylor,
    total_loss,
)
from kfac_pinn.linalg import KroneckerSum
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.training.clock import now

Work = Callable[[], object]
Points = tuple[Tensor, Tensor]
HEAT = (5, 64, 64, 48, 48, 1)  # 10,065 parameters, the published network
SMALL = (2, 40, 40, 40, 1)  # 3,441 parameters
SECONDS, FEWEST, MOST = 3.0, 3, 50  # of one measurement, and its repetitions


def network(widths: tuple[int, ...]) -> nn.Module:
    """A tanh network in float64."""
    torch.manual_seed(0)
    return MLP(widths).double()


def points(dimension: int, interior: int = 3000, boundary: int = 500) -> Points:
    """Points in the unit cube; the second ones stand for its faces and the initial time."""
    generator = torch.Generator().manual_seed(1)
    counts = interior, boundary
    a, b = (torch.rand(n, dimension, generator=generator, dtype=torch.float64) for n in counts)
    return a, b


# --- residuals, by Taylor mode and as a user would write them -----------------------------------


def nested_gradient(u: Tensor, x: Tensor) -> Tensor:
    """The gradient of each value in its point."""
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def nested_laplacian(u: Tensor, x: Tensor) -> Tensor:
    """The trace of the Hessian, a derivative a coordinate."""
    slopes = nested_gradient(u, x).unbind(1)
    return torch.stack([nested_gradient(s, x)[:, i] for i, s in enumerate(slopes)]).sum(0)


def hessian_laplacian(model: nn.Module, x: Tensor) -> Tensor:
    """The same from whole Hessians."""
    hessian = torch.func.hessian(lambda point: model(point).squeeze(-1))
    return torch.func.vmap(hessian)(x).diagonal(dim1=1, dim2=2).sum(-1)


def nested(residual: Callable[[Tensor, Tensor], Tensor], model: nn.Module, x: Tensor) -> Tensor:
    """A residual of values and points."""
    x = x.clone().requires_grad_()
    return residual(model(x).squeeze(-1), x)


def burgers_taylor(model: nn.Module, x: Tensor) -> Tensor:
    """u_t + u u_x - u_xx / 100 by one pass."""
    u, (u_t, u_x), u_xx = taylor(model, x, weights=[0.0, 1.0])
    return u_t + u * u_x - 0.01 * u_xx


def burgers_nested(u: Tensor, x: Tensor) -> Tensor:
    """The same by nested autograd."""
    slope = nested_gradient(u, x)
    return slope[:, 0] + u * slope[:, 1] - 0.01 * nested_gradient(slope[:, 1], x)[:, 1]


def heat_taylor(model: nn.Module, x: Tensor) -> Tensor:
    """u_t - u_xx - ... by one pass."""
    _, slopes, second = taylor(model, x, weights=[0.0, *[1.0] * (x.shape[1] - 1)])
    return slopes[0] - second


def heat_nested(u: Tensor, x: Tensor) -> Tensor:
    """The same by nested autograd."""
    slopes = nested_gradient(u, x).unbind(1)
    second = [nested_gradient(s, x)[:, i] for i, s in enumerate(slopes) if i]
    return slopes[0] - torch.stack(second).sum(0)


def trained(residual: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor) -> Work:
    """A residual, and the parameters' gradient of its mean square."""

    def work() -> None:
        for p in model.parameters():
            p.grad = None
        residual(model, x).square().mean().backward()

    return work


def against_autograd(
    widths: tuple[int, ...], count: int, ours: Any, theirs: Any, hessian: Any = None
) -> dict[str, Work]:
    """Residual and gradient by one pass, by nested autograd, by torch.func."""
    model, (x, _) = network(widths), points(widths[0], count)
    ways = {"ours": ours, "nested autograd": partial(nested, theirs)}
    ways |= {"vmap(hessian)": hessian} if hessian else {}
    return {name: trained(way, model, x) for name, way in ways.items()}


def laplacians(widths: tuple[int, ...], count: int) -> dict[str, Work]:
    """The Laplacian and its parameter gradient."""
    return against_autograd(widths, count, laplacian, nested_laplacian, hessian_laplacian)


def first_order() -> dict[str, Work]:
    """The Laplacian's gradient of 3,500 points, and the matrix products in it alone."""
    model, (x, _) = network(HEAT), points(5, 3500)
    positions, layers = len(x) * (HEAT[0] + 2), list(pairwise(HEAT))
    inputs, gradients, outputs = (
        [torch.rand(positions, n[i], dtype=torch.float64) for n in layers] for i in (0, 1, 1)
    )
    weights = [torch.rand(n, m, dtype=torch.float64) for m, n in layers]
    back, slopes = [torch.empty_like(z) for z in inputs], [torch.empty_like(W) for W in weights]

    def products() -> None:
        for i, (z, W, g) in enumerate(zip(inputs, weights, gradients, strict=True)):
            torch.mm(z, W.T, out=outputs[i])
            torch.mm(g.T, z, out=slopes[i])
            if i:  # nobody asks for the gradient in the points
                torch.mm(g, W, out=back[i])

    return {"ours": trained(laplacian, model, x), "its matrix products": products}


def bilaplacians() -> dict[str, Work]:
    """The bilaplacian of a plate, and its parameter gradient."""
    twice = lambda u, x: nested_laplacian(nested_laplacian(u, x), x)  # noqa: E731
    return against_autograd((2, 64, 64, 1), 1000, bilaplacian, twice)


def plain() -> dict[str, Work]:
    """The network alone, forward and backward: the same for everybody."""
    model, (x, _) = network(HEAT), points(5)
    return {"ours": trained(lambda m, x: m(x), model, x)}


# --- one closure, and what optimizers make of it ------------------------------------------------


def closure_of(model: nn.Module, x: Points, by_graph: bool = False) -> Callable[[], Any]:
    """-Laplacian u = 1, u = 0 on the boundary; derivatives by jets or by nested autograd."""
    inner, edge = x
    if by_graph:
        return lambda: (nested(nested_laplacian, model, inner) + 1, model(edge))
    return lambda: (laplacian(model, inner) + 1, model(edge))


def gradients(model: nn.Module, closure: Callable[[], Any]) -> Work:
    """What Adam needs: the loss's gradient."""

    def work() -> None:
        for p in model.parameters():
            p.grad = None
        total_loss(closure()).backward()

    return work


def linearizations(by_graph: bool) -> dict[str, Work]:
    """r and J in factors, beside the gradient of the same residuals."""
    model, x = network(HEAT), points(5)
    closure = closure_of(model, x, by_graph)
    linear = lambda: linearize(closure, model.parameters(), check=False)  # noqa: E731
    return {"ours": linear, "gradient only": gradients(model, closure)}


def factors() -> dict[str, Work]:
    """Residuals, Jacobian and all Kronecker factors, beside the first two alone."""
    model, x = network(HEAT), points(5)
    closure = closure_of(model, x)
    linear = lambda: linearize(closure, model.parameters(), check=False)  # noqa: E731
    return {"ours": lambda: Factors().measure(linear(), 0), "linearise only": linear}


def kernel() -> dict[str, Work]:
    """J J^T of 3,500 residuals, as the package chooses; beside it, all rows and one product."""
    model, x = network(HEAT), points(5)
    found = linearize(closure_of(model, x), model.parameters())
    rows = lambda: (J := found.rows()) @ J.T  # noqa: E731
    return {"ours": found.kernel, "rows, then one product": rows}


def sketch() -> dict[str, Work]:
    """S J of 1,700 rows from 4,700, 3,441 parameters."""
    model, x = network(SMALL), points(2, 4000, 700)
    found = linearize(closure_of(model, x), model.parameters())
    draw = partial(torch.Generator().manual_seed, 0)
    return {"ours": lambda: found.sketched(1700, draw()), "all rows": found.rows}


def kronecker_solve() -> dict[str, Work]:
    """(A1 (x) B1 + A2 (x) B2)^-1 V for 65 and 64, factored and applied once; dense at half size."""
    generator = torch.Generator().manual_seed(0)

    def factor(n: int) -> Tensor:
        rows = torch.rand(2 * n, n, generator=generator, dtype=torch.float64)
        return rows.T @ rows / n

    pairs = [(factor(65), factor(64)) for _ in range(2)]
    V = torch.rand(64, 65, generator=generator, dtype=torch.float64)

    def dense() -> Tensor:
        return torch.linalg.solve(KroneckerSum(pairs).dense(), V.T.reshape(-1))

    return {"ours": lambda: KroneckerSum(pairs).inverse().solve(V), "dense solve": dense}


def adam_step(model: nn.Module, closure: Callable[[], Any]) -> Work:
    """A step of torch's Adam on the same residuals."""
    optimizer, gradient = torch.optim.Adam(model.parameters()), gradients(model, closure)

    def step() -> None:
        gradient()
        optimizer.step()

    return step


def steps(make: Callable[..., Any], widths: tuple[int, ...], *counts: int) -> dict[str, Work]:
    """A step of one of ours, and of Adam, each on a network of its own."""
    x, models = points(widths[0], *counts), [network(widths) for _ in range(2)]
    ours, theirs = (closure_of(model, x) for model in models)
    optimizer = make(models[0].parameters())
    return {"ours": lambda: optimizer.step(ours), "Adam": adam_step(models[1], theirs)}


def kfac_star_parts() -> dict[str, Work]:
    """A K-FAC* step, and what it consists of, each alone."""
    model, x = network(HEAT), points(5)
    closure, parameters = closure_of(model, x), list(model.parameters())
    optimizer, parts = KFACStar(parameters), Factors()
    found = linearize(closure, parameters, check=False)
    v, measured = found.vjp(found.residual), parts.measure(found, 0)
    return {
        "ours": lambda: optimizer.step(closure),
        "residuals": lambda: total_loss(closure()),
        "residuals, backward, gradient": lambda: linearize(closure, parameters, check=False),
        "gradient of the weights": lambda: found.vjp(found.residual),
        "second moments": lambda: parts.measure(found, 0),
        "inverses": lambda: [parts.invert(each, 1e-8) for each in measured.values()],
        "two products with J": lambda: (found @ v, found @ v),
    }


class Residual(nn.Module):
    """Residuals as the outputs of a module, for code that fits models to data."""

    def __init__(self, model: nn.Module, operator: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.operator = model, operator

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1), to be fitted to zero."""
        return self.operator(self.model, x).reshape(-1, 1) + 1


def their_step(operator: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> Work:
    """A step of torch-levenberg-marquardt, which is made when it is first called for."""

    @cache
    def optimizer() -> Any:
        # Where it is not installed, this way fails and no other
        from torch_levenberg_marquardt.training import LevenbergMarquardtModule

        return LevenbergMarquardtModule(Residual(network((2, 32, 32, 1)), operator))

    targets = torch.zeros(len(x), 1, dtype=x.dtype)
    return lambda: optimizer().training_step(x, targets)


def levenberg_marquardt() -> dict[str, Work]:
    """A step on one term, from the same weights."""
    model, (x, _) = network((2, 32, 32, 1)), points(2, 900)
    optimizer = LevenbergMarquardt(model.parameters())
    return {
        "ours": lambda: optimizer.step(lambda: laplacian(model, x) + 1),
        "torch-levenberg-marquardt": their_step(hessian_laplacian, x),
        "the same, our Laplacian": their_step(laplacian, x),
    }


ROWS: dict[str, Callable[[], dict[str, Work]]] = {
    "network alone, 5-64-64-48-48-1": plain,
    "first-order step, 3,500 points": first_order,
    "Laplacian, 64 wide, d = 5": partial(laplacians, HEAT, 3000),
    "Laplacian, 768 wide, d = 10": partial(laplacians, (10, 768, 768, 512, 512, 1), 256),
    "Laplacian, 768 wide, d = 100": partial(laplacians, (100, 768, 768, 512, 512, 1), 64),
    "bilaplacian, 64 wide, d = 2": bilaplacians,
    "Burgers, 64 wide": partial(
        against_autograd, (2, 64, 64, 64, 1), 3000, burgers_taylor, burgers_nested
    ),
    "heat, 64 wide, 4 + 1": partial(against_autograd, HEAT, 3000, heat_taylor, heat_nested),
    "linearise, from jets": partial(linearizations, False),
    "linearise, from the graph": partial(linearizations, True),
    "linearise, and Kronecker factors": factors,
    "Kronecker sum, 65 x 64": kronecker_solve,
    "kernel, 3,500 rows": kernel,
    "sketch, 4,700 to 1,700 rows": sketch,
    "step: KFAC": partial(steps, partial(KFAC, lr=1e-3), HEAT),
    "step: KFACStar": partial(steps, KFACStar, HEAT),
    "KFACStar, part by part": kfac_star_parts,
    "step: KFACPINN": partial(steps, partial(KFACPINN, products=10), HEAT),
    "step: HessianFree": partial(steps, HessianFree, HEAT),
    "step: SPRING": partial(steps, SPRING, HEAT, 800, 200),
    "step: ENGD": partial(steps, ENGD, (2, 32, 32, 1), 900, 120),
    "step: LevenbergMarquardt, 1,185 parameters": levenberg_marquardt,
    "step: GaussNewton, 1,185 parameters": partial(steps, GaussNewton, (2, 32, 32, 1), 900, 120),
    "step: GaussNewton, 3,441 parameters": partial(steps, GaussNewton, SMALL, 4000, 700),
}


def seconds_of(work: Work) -> float:
    """The median of some repetitions, CPU seconds of this thread."""
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < SECONDS and len(times) < MOST):
        start = now()
        work()
        times.append(now() - start)
    return statistics.median(times)


def product_rate(size: int = 512) -> float:
    """Operations a second of a matrix product, in this process."""
    a = torch.rand(size, size, dtype=torch.float64)
    out = torch.empty_like(a)
    return 2 * size**3 / seconds_of(lambda: torch.mm(a, a, out=out))


def page_faults() -> int:
    """Of this process so far, those that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_memory() -> float:
    """The largest resident set so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def of_product(_: Any, a: Any, b: Any, *, out_shape: Any, **settings: Any) -> int:
    """Operations of a product that is added to a matrix in place, from shapes."""
    return 2 * a[0] * a[1] * b[1]


def operations_of(work: Work) -> int:
    """Those of its matrix products; 0 where torch cannot count: under nested autograd."""
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        try:
            work()
        except RuntimeError as error:
            if "autograd.grad" not in str(error):
                raise
            return 0
    return counter.get_total_flops()


UNCOUNTED = {torch.ops.aten.addmm_: of_product}  # torch counts the others


def faults_of(work: Work, times: int = 3) -> float:
    """Pages that the system hands out in one repetition."""
    before = page_faults()
    for _ in range(times):
        work()
    return (page_faults() - before) / times


def main(row: str, way: str) -> None:
    """Measure one way of one row: seconds, MiB, operations, times its products, page faults."""
    ways = ROWS[row]()
    work, before = ways[way], peak_memory()
    operations = operations_of(work)
    work()
    seconds, memory = seconds_of(work), peak_memory() - before
    found: dict[str, Any] = {"seconds": seconds, "MiB": memory, "operations": operations}
    found["faults"] = faults_of(work)
    found["products"] = seconds * product_rate() / operations if operations else None
    print(json.dumps({**found, "ways": list(ways), "from": kfac_pinn.__file__}))


if __name__ == "__main__":
    typer.run(main)
