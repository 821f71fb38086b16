"""What the processes are asked to do: small problems whose points are shared out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import kfac_pinn as kp
from kfac_pinn import ENGD, KFAC, KFACPINN, SPRING, GaussNewton, Processes, laplacian

FIXED = kp.TruncatedCG(iterations=3, backtracking=False)  # where to stop is a near tie
KEEP, STRONG = kp.KeepDamping(), {"weight_decay": 0.1}  # where the damping falls, rounding grows
NYSTROM = kp.TruncatedCG(iterations=20, preconditioner=kp.NystromPreconditioner())

# Weight decay keeps the problem well conditioned, so that rounding stays rounding for 20 steps.
OPTIMIZERS: dict[str, tuple[type, dict[str, Any]]] = {
    "KFACPINN": (KFACPINN, {}),
    "KFACPINN truncated": (KFACPINN, {"exact": kp.Affordable(0)}),
    "KFACPINN one evaluation": (KFACPINN, {"search": kp.OneEvaluation()}),
    "KFAC": (KFAC, {"momentum": 0.5, "damping": 1e-6}),
    "KFAC reduce": (KFAC, {"damping": 1e-4, "factors": kp.Factors(sharing=kp.Reduce())}),
    "KFAC Monte Carlo": (KFAC, {"damping": 1e-4, "factors": kp.Factors(fisher=kp.MonteCarlo())}),
    "KFAC empirical": (KFAC, {"damping": 1e-4, "factors": kp.Factors(fisher=kp.Empirical())}),
    "KFAC forward": (KFAC, {"damping": 1e-4, "factors": kp.Factors(fisher=kp.ForwardOnly())}),
    "KFACStar": (kp.KFACStar, {"damping": 1.0, "lr": 1e-3}),
    "ENGD": (ENGD, {"damping": 1e-4}),
    "ENGD per layer": (ENGD, {"damping": 1e-4, "gramian": kp.PerLayer()}),
    "ENGD averaged": (ENGD, {"damping": 1e-4, "gramian": kp.Full(kp.Average(0.5))}),
    "ENGD diagonal": (ENGD, {"damping": 1e-4, "gramian": kp.Diagonal()}),
    "ENGD kernel": (ENGD, {"damping": 1e-4, "gramian": kp.SampleSpace()}),
    "ENGD Nystrom": (ENGD, {"damping": 1e-4, "gramian": kp.SampleSpace(kp.NystromKernel())}),
    "ENGD pivots": (ENGD, {"damping": 1e-4, "gramian": kp.SampleSpace(kp.PivotedKernel())}),
    "SPRING": (SPRING, {"damping": 1e-3}),
    "HessianFree": (kp.HessianFree, {"solver": FIXED, "law": KEEP}),
    "HessianFree Hessian": (
        kp.HessianFree,
        {"curvature": kp.Hessian(), "solver": FIXED, "law": KEEP},
    ),
    "HessianFree Nystrom": (kp.HessianFree, {"solver": NYSTROM}),
    "GaussNewton": (GaussNewton, STRONG),
    "GaussNewton exact": (GaussNewton, {"compression": kp.Exact(), **STRONG}),
    "GaussNewton sketch": (GaussNewton, {"compression": kp.Sketch(rows=30, hashes=2), **STRONG}),
    "GaussNewton one evaluation": (GaussNewton, {"search": kp.OneEvaluation()}),
    "LevenbergMarquardt": (kp.LevenbergMarquardt, STRONG),
    "SelfScaledBroyden": (kp.SelfScaledBroyden, {}),
    "SelfScaledBroyden one evaluation": (kp.SelfScaledBroyden, {"search": kp.OneEvaluation()}),
}
DECAY = 1e-2


def with_decay(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with weight decay, if they have none."""
    return {"weight_decay": DECAY, **arguments}


class Net(nn.Module):
    """2-8-1, beside the coefficient of a reaction."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        self.rate = nn.Parameter(torch.ones(1))
        self.double()

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def points(count: int, seed: int) -> Tensor:
    """Of the unit square."""
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def source(x: Tensor) -> Tensor:
    return 2 * torch.sin(3 * x[:, :1]) * torch.cos(2 * x[:, 1:])


def residuals(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """Diffusion and reaction inside, zero on the boundary."""
    return lambda: (equation(model, x), 3 * model(y))


def equation(model: Any, x: Tensor) -> Tensor:
    """Laplace u - rate u + f."""
    return laplacian(model, x) - model.rate * model(x) + source(x)


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The same as a loss, by nested autograd."""

    def loss() -> Tensor:
        z = x.clone().requires_grad_()
        u = model(z)
        (du,) = torch.autograd.grad(u.sum(), z, create_graph=True)
        second = [torch.autograd.grad(d.sum(), z, create_graph=True)[0] for d in du.unbind(1)]
        inside = second[0][:, 0] + second[1][:, 1] + (source(x) - model.rate * u)[:, 0]
        return nn.functional.mse_loss(inside, torch.zeros_like(inside)) + 9 * (
            model(y).square().mean()
        )

    return loss


def with_prior(model: Any, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """A term that all processes return alike."""
    return lambda: (equation(model, x), 3 * model(y), (model.rate - 0.5).reshape(1))


def convex(model: Any, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The Ritz energy, with a linear term."""

    def terms() -> Any:
        u, du = kp.taylor(model, x, order=1)
        f = source(x)[:, 0]
        energy = kp.ConvexLoss((u, *du.unbind(0)), lambda u, *du: sum(p**2 for p in du) / 2 - f * u)
        return energy, 3 * model(y)

    return terms


CLOSURES = {f.__name__: f for f in (residuals, mean_loss, with_prior, convex)}


def parts(count: int, shares: Sequence[int]) -> list[slice]:
    """Consecutive points in proportion to the shares, none empty."""
    free = count - len(shares)
    ends = [q + round(free * sum(shares[:q]) / sum(shares)) for q in range(1, len(shares) + 1)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def trained(
    rank: int,
    count: int,
    name: str,
    closure: str = "residuals",
    steps: int = 20,
    inside: Sequence[int] = (),
    boundary: Sequence[int] = (),
    sizes: tuple[int, int] = (60, 24),
    reverse: bool = False,
) -> Any:
    """Parameters after some steps, with the losses; the shares of the points in proportion."""
    model = Net()
    x, y = points(sizes[0], 1), points(sizes[1], 2)
    if reverse:  # the same sums in another order: what rounding does
        x, y = x.flip(0), y.flip(0)
    x = x[parts(len(x), inside or [1] * count)[rank]]
    y = y[parts(len(y), boundary or [1] * count)[rank]]
    kind, arguments = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), processes=Processes(), **with_decay(arguments))
    losses = [float(optimizer.step(CLOSURES[closure](model, x, y))) for _ in range(steps)]
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return theta.numpy(), losses


def by_default(rank: int, count: int, name: str, order: int = 0) -> Any:
    """Parameters after 20 steps at the default settings, the points in some order."""
    model, x, y = Net(), points(60, 1), points(24, 2)
    if order:
        drawn = torch.Generator().manual_seed(order)
        x, y = x[torch.randperm(60, generator=drawn)], y[torch.randperm(24, generator=drawn)]
    x, y = x[parts(60, range(1, count + 1))[rank]], y[parts(24, [1] * count)[rank]]
    optimizer = getattr(kp, name)(model.parameters(), processes=Processes())
    for _ in range(20):
        optimizer.step(residuals(model, x, y))
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


class TroubleError(Exception):
    """Of the user's own."""


def failing(rank: int, count: int, victim: int, how: str) -> Any:
    """One process fails in the second step: what all of them raise, and what is left."""
    model = Net()
    x, y = points(40, 1)[rank::count], points(20, 2)[rank::count]
    optimizer = KFACPINN(model.parameters(), processes=Processes())
    good = residuals(model, x, y)
    optimizer.step(good)
    before = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    calls = 0

    def bad() -> Any:
        nonlocal calls
        calls += 1
        if rank == victim and how == "raise":
            raise TroubleError("the sampler is empty")
        if rank == victim and how == "raise in a trial" and calls > 1:
            raise ValueError("the sampler is empty")
        inside, boundary = good()
        if rank == victim and how == "nan":
            inside = inside * torch.tensor([float("nan")]).double()
        if rank == victim and how == "terms":
            return (inside,)
        if rank == victim and how == "no points":
            return inside[:0], boundary
        if rank == victim and how == "other":
            return inside, 0 * boundary.detach() + 3 * y[:, :1] * model.rate
        return inside, boundary

    try:
        optimizer.step(bad)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    else:
        raised = "nothing"
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    again = float(optimizer.step(good))
    return raised, bool((before == after).all()), again


def apart(rank: int, count: int) -> Any:
    """Parameters that differ between the ranks."""
    model = Net()
    with torch.no_grad():
        model.rate += rank
    x, y = points(40, 1), points(20, 2)
    KFACPINN(model.parameters(), processes=Processes()).step(residuals(model, x, y))


def killed(rank: int, count: int, victim: int) -> Any:
    """One process dies in the middle of a step."""
    model = Net()
    x, y = points(40, 1)[rank::count], points(20, 2)[rank::count]
    optimizer = KFACPINN(model.parameters(), processes=Processes())
    good = residuals(model, x, y)
    optimizer.step(good)

    def dying() -> Any:
        if rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return good()

    start = time.monotonic()
    try:
        optimizer.step(dying)
    except ConnectionError as error:
        return str(error), time.monotonic() - start


def resumed(rank: int, count: int, path: str, steps: int, load: bool) -> Any:
    """Some steps, from a checkpoint or to one."""
    model = Net()
    x, y = points(60, 1), points(24, 2)
    x, y = x[parts(60, range(1, count + 1))[rank]], y[parts(24, [1] * count)[rank]]
    # Truncated: where exact steps are small, eight of them differ by rounding's 1e-10
    never = kp.Affordable(0)
    optimizer = KFACPINN(model.parameters(), exact=never, weight_decay=DECAY, processes=Processes())
    if load:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for _ in range(steps):
        optimizer.step(residuals(model, x, y))
    if rank == 0 and not load:
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(saved, path)
    dist.barrier()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def wrapped(rank: int, count: int) -> Any:
    """The same model with and without DistributedDataParallel around it."""
    plain, parallel = (after_three_steps(rank, count, wrap) for wrap in (False, True))
    return bool((plain == parallel).all()), float(plain.norm())


def after_three_steps(rank: int, count: int, wrap: bool) -> Tensor:
    """Parameters of a model, wrapped or not, that is called more than once in a closure."""
    inner = Net()
    model: Any = nn.parallel.DistributedDataParallel(inner) if wrap else inner
    x, y = points(40, 1)[rank::count], points(20, 2)[rank::count]
    optimizer = KFACPINN(model.parameters(), processes=Processes())

    def loss() -> Tensor:
        optimizer.zero_grad()
        z = x.clone().requires_grad_()
        (du,) = torch.autograd.grad(model(z).sum(), z, create_graph=True)
        value = (du.sum(1) - source(x)[:, 0]).square().mean() + model(y).square().mean()
        total = value + inner.rate.square().sum()
        total.backward()
        return total

    for _ in range(3):
        optimizer.step(loss)
    return torch.cat([p.detach().reshape(-1) for p in inner.parameters()])


def batched(rank: int, count: int, name: str, steps: int) -> Any:
    """Each process has micro-batches, the last one more than the others."""
    model = Net()
    x = points(60, 1)[parts(60, range(1, count + 1))[rank]]
    y = points(24, 2)[parts(24, [1] * count)[rank]]
    pairs = zip(x.tensor_split(2 + rank), y.tensor_split(2 + rank), strict=True)
    closure = kp.Batches([residuals(model, *pair) for pair in pairs])
    kind, arguments = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), processes=Processes(), **with_decay(arguments))
    for _ in range(steps):
        optimizer.step(closure)
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def cut_up(rank: int, count: int) -> Any:
    """A parameter that is cut up among the processes, as by FullyShardedDataParallel."""
    mesh = init_device_mesh("cpu", (count,))
    piece = nn.Parameter(distribute_tensor(torch.ones(4).double(), mesh, [Shard(0)]))
    KFACPINN([piece], processes=Processes()).step(lambda: piece)


def triples(model: Any, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """Differences within triples of points: each point is read by several residuals."""

    def differences() -> Tensor:
        u = model(x).view(-1, 3)
        return torch.stack([u[:, 0] - u[:, 1], u[:, 1] * u[:, 2], u[:, 2] - u[:, 0]], 1).reshape(-1)

    return lambda: (equation(model, x), differences(), 3 * model(y))


def sampled_factors(rank: int, count: int) -> Any:
    """Kronecker factors of a term whose rows are mixed, by random signs."""
    model, x, y = Net(), points(60, 1), points(24, 2)
    ends = {1: [0, 60], 2: [0, 24, 60], 3: [0, 9, 39, 60]}[count]  # whole triples
    closure = triples(model, x[ends[rank] : ends[rank + 1]], y[rank::count])
    found = kp.linearize(closure, list(model.parameters()), processes=Processes())
    measured = kp.Factors().measure(found, 4)
    pairs = [p for f in measured.values() for p in getattr(f, "pairs", {}).values()]
    return [(pair.A.numpy(), pair.B.numpy()) for pair in pairs]
