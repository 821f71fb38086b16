"""KFAC and KFACStar against the published trajectories, exact blocks and their own invariances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_problems import Closure, cases, flat, network, points, relative, small_case
from torch import Tensor, nn

from kfac_pinn import (
    KFAC,
    KFACPINN,
    Affordable,
    KFACStar,
    Linearization,
    laplacian,
    linearize,
    taylor,
)
from kfac_pinn.curvature.factor_damping import TraceNormDamping
from kfac_pinn.curvature.fisher import Empirical, ForwardOnly
from kfac_pinn.curvature.kronecker_factors import Average, Factors, KroneckerCurvature
from kfac_pinn.curvature.weight_sharing import Reduce
from kfac_pinn.linalg import Pairs, conjugate_gradients
from kfac_pinn.search.line import FixedStep

REFERENCE = Path(__file__).parents[1] / "reference"
PROBLEMS = ["poisson2d", "heat1d", "logfokkerplanck3d"]
EARLY = Average(0.9, start=1.0)
Residuals = Callable[[], tuple[Tensor, Tensor]]


def poisson(u: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return laplacian(u, x) + y


def heat(u: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    _, first, second = taylor(u, x, weights=[0.0, 1.0])
    return first[0] - 0.25 * second


def log_fokker_planck(u: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    _, (q_t, *q_x), q_xx = taylor(u, x, weights=[0.0, 1.0, 1.0, 1.0])
    slope = torch.cat(q_x, dim=1)
    drift = 0.5 * (slope * x[:, 1:]).sum(1, keepdim=True) + slope.square().sum(1, keepdim=True)
    return q_t - 1.5 - drift - q_xx


EQUATIONS = {"poisson2d": poisson, "heat1d": heat, "logfokkerplanck3d": log_fokker_planck}


def reference(name: str) -> tuple[nn.Module, Residuals, dict[str, np.ndarray]]:
    data = dict(np.load(REFERENCE / f"{name}.npz"))
    x, y, xb, yb, theta = (torch.from_numpy(data[k]) for k in ("X", "y", "Xb", "yb", "theta0"))
    layers = [nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)]
    model = nn.Sequential(*layers).to(torch.float64)
    nn.utils.vector_to_parameters(theta, model.parameters())
    return model, lambda: (EQUATIONS[name](model, x, y), model(xb) - yb), data


SETTINGS: dict[str, Callable[..., KFAC]] = {
    "kfac": lambda p: KFAC(p, damping=1e-2, factors=Factors(average=EARLY)),
    "kfac_momentum": lambda p: KFAC(
        p, damping=1e-3, momentum=0.5, factors=Factors(average=Average(0.5, start=0.0))
    ),
    "kfac_periods": lambda p: KFAC(
        p, 0.1, 1e-2, factors=Factors(average=EARLY, every=2, invert_every=3), search=FixedStep()
    ),
    "kfac_star": lambda p: KFACStar(p, lr=0.1, damping=1e-2, factors=Factors(average=EARLY)),
    "kfac_reduce": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(sharing=Reduce(), average=EARLY)
    ),
    "kfac_empirical": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(fisher=Empirical(), average=EARLY)
    ),
    "kfac_forward_only": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(fisher=ForwardOnly(), average=EARLY)
    ),
    "kfac_trace_norm": lambda p: KFAC(
        p, damping=1e-2, factors=Factors(rule=TraceNormDamping(), average=EARLY)
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_published_trajectory(problem: str, setting: str) -> None:
    model, residuals, data = reference(problem)
    optimizer = SETTINGS[setting](model.parameters())
    for losses, theta in zip(data[f"{setting}/losses"], data[f"{setting}/thetas"], strict=True):
        loss = optimizer.step(residuals)
        expected = torch.from_numpy(theta)
        found = nn.utils.parameters_to_vector(model.parameters()).detach()
        assert (found - expected).norm() <= 1e-9 * expected.norm()
        assert float(loss) == pytest.approx(losses.sum(), rel=1e-9)


def curvature_of(optimizer: KFACStar, lin: Linearization) -> KroneckerCurvature:
    """F as the last step left it."""
    state = {block: optimizer.state[block.parameters[0]]["curvature"] for block in lin.blocks}
    return KroneckerCurvature(state)


@given(cases(), st.floats(1e-6, 1.0))
def test_star_minimises_the_model_on_its_plane(
    case: tuple[nn.Sequential, Closure], damping: float
) -> None:
    model, closure = case
    optimizer = KFACStar(model.parameters(), damping=damping, factors=Factors(average=EARLY))
    optimizer.step(closure)
    before, delta = flat(model), optimizer.gather("step")
    lin = linearize(closure, list(model.parameters()))
    optimizer.step(closure)
    G, step = lin.gramian() + damping * torch.eye(lin.size), flat(model) - before
    slope = lin.gradient + G @ step  # of the model: orthogonal to the plane
    direction = curvature_of(optimizer, lin).inverse(-lin.gradient)
    for along in (direction, delta):
        assert abs(float(slope @ along)) <= 1e-7 * float(lin.gradient.norm() * along.norm())


@given(cases())
def test_pinn_solves_the_damped_system(case: tuple[nn.Sequential, Closure]) -> None:
    """With enough products its direction is that of a dense solve."""
    model, closure = case
    optimizer = KFACPINN(model.parameters(), products=300)
    lin = linearize(closure, list(model.parameters()))
    damping = 1e-2
    step = optimizer.solve(lin, damping)
    found, predicted = step.displacement, step.predicted
    G = lin.gramian()
    expected = torch.linalg.solve(G + damping * torch.eye(lin.size), -lin.gradient)
    assert relative(found, expected) < 1e-6
    decrease = -float(lin.gradient @ expected + 0.5 * expected @ G @ expected)
    assert predicted == pytest.approx(decrease, rel=1e-6)


@pytest.mark.parametrize("make", [KFAC, KFACStar, KFACPINN])
def test_zero_residual_stays(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = network(2, 4, 1)
    x = points(5)
    target = model(x).detach()
    optimizer, before = make(model.parameters()), flat(model)
    optimizer.step(lambda: model(x) - target)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("make", [KFAC, KFACStar, KFACPINN])
def test_freezing_a_bias_starts_its_layer_anew(make: Callable[..., torch.optim.Optimizer]) -> None:
    model, closure = small_case()
    optimizer = make(model.parameters())
    optimizer.step(closure)
    model[0].bias.requires_grad_(False)
    bias, weight = model[0].bias.clone(), model[0].weight.detach().clone()
    optimizer.step(closure)
    assert torch.equal(model[0].bias, bias)
    assert not torch.equal(model[0].weight, weight)


def test_groups_have_their_own_damping() -> None:
    """A huge damping stops a group; the other one moves as if alone in the model."""
    model, closure = small_case()
    first = list(model[0].parameters())
    still = {"params": first, "damping": 1e12}
    optimizer = KFAC([still, {"params": model[2].parameters()}], damping=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(closure)
    pairs = zip(model.parameters(), before, strict=True)
    moved = [float((p - old).detach().norm()) for p, old in pairs]
    assert max(moved[:2]) < 1e-8 < min(moved[2:])


def test_three_terms_and_a_system() -> None:
    """More than two Kronecker pairs a layer, from one pass and from several."""
    model, x, xb = network(2, 6, 2), points(20), points(6, seed=1)

    def stokes_like() -> list[Tensor]:
        second = laplacian(model, x)
        return [second[:, 0] + 1, second[:, 1] - x[:, 0], model(xb)[:, 0], model(xb)[:, 1] - 1]

    for make in (KFAC, KFACStar, KFACPINN):
        optimizer = make(model.parameters(), **({} if make is KFACPINN else {"damping": 1e-2}))
        losses = [float(optimizer.step(stokes_like)) for _ in range(5)]
        assert losses[-1] < losses[0]


@given(st.integers(2, 12), st.integers(1, 8), st.integers(0, 999))
def test_pairs_invert_on_their_span(n: int, count: int, seed: int) -> None:
    """Conjugate pairs: H y = s; in any case H is symmetric and positive definite."""
    torch.manual_seed(seed)
    root = torch.randn(n, n, dtype=torch.float64)
    G, damping = root @ root.T, 0.3
    A = G + damping * torch.eye(n)
    spent: list[tuple[Tensor, Tensor]] = []

    def product(v: Tensor) -> Tensor:
        spent.append((v, G @ v))
        return A @ v

    b = torch.randn(n, dtype=torch.float64)
    conjugate_gradients(product, b, iterations=min(count, n))
    inverse = Pairs.none(b).join(spent, limit=100).correct(lambda v: v, damping)
    H = torch.stack([inverse(e) for e in torch.eye(n, dtype=torch.float64)])
    torch.testing.assert_close(H, H.T, rtol=1e-6, atol=1e-8)
    assert torch.linalg.eigvalsh(H)[0] > 0
    for s, y in spent:
        torch.testing.assert_close(inverse(y + damping * s), s, rtol=1e-6, atol=1e-7)


def test_pairs_forget_the_oldest_and_refuse_negative_curvature() -> None:
    e = torch.eye(4, dtype=torch.float64)
    pairs = Pairs.none(e[0]).join([(2 * e[i], 2 * e[i]) for i in range(3)], limit=2)
    assert torch.equal(pairs.S, e[1:3])
    assert len(pairs.join([(e[3], -e[3])], limit=10).S) == 2
    assert len(pairs.join([(e[3], e[3])], limit=0).S) == 0


@pytest.mark.parametrize("settings", [{"products": 0}, {"products": 1, "memory": -1}])
def test_pinn_refuses_settings_without_a_meaning(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"(products|memory) must be a whole number, at least"):
        KFACPINN(network(2, 3, 1).parameters(), **settings)


def test_a_term_that_is_gone_leaves_no_curvature() -> None:
    """With no average over the steps, the direction is that of the remaining terms alone."""
    model, x = network(2, 4, 1), points(9)
    remembers = KFAC(model.parameters(), factors=Factors(average=Average(0.0)))
    remembers.direction(linearize(lambda: (model(x), 9 * model(x + 1)), model.parameters()))
    lin = linearize(lambda: model(x), model.parameters())
    fresh = KFAC(model.parameters(), factors=Factors(average=Average(0.0)))
    found, expected = remembers.direction(lin), fresh.direction(lin)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_pinn_trains_far() -> None:
    """2d Poisson on a small network, default settings: far below what its start shows."""
    torch.manual_seed(0)
    model, x = network(2, 12, 12, 1), points(100)
    edge = points(40, seed=1)
    edge[torch.arange(40), torch.arange(40) % 2] = (torch.arange(40) % 4 // 2).double()
    f = 2 * torch.pi**2 * torch.sin(torch.pi * x).prod(1, keepdim=True)
    optimizer = KFACPINN(model.parameters(), exact=Affordable(0))
    for _ in range(50):
        optimizer.step(lambda: (laplacian(model, x) + f, model(edge)))
    grid = points(500, seed=2)
    error = relative(model(grid).detach(), torch.sin(torch.pi * grid).prod(1, keepdim=True))
    assert error < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pinn_rests_where_nothing_is_left_to_gain(dtype: torch.dtype) -> None:
    """At the rounding of its loss steps are refused with a reason, and lambda stays in reach."""
    model, x = nn.Linear(2, 1).to(dtype), points(30).to(dtype)
    optimizer = KFACPINN(model.parameters(), exact=Affordable(0))
    for _ in range(120):
        loss = float(optimizer.step(lambda: model(x) - x.sum(1, keepdim=True).sin()))
    assert optimizer.stats["reason"]
    assert optimizer.memory.damping < 1
    assert loss == pytest.approx(optimizer.stats["new_loss"])
    assert all(torch.isfinite(p).all() for p in model.parameters())
    fitted = torch.linalg.lstsq(torch.cat([x, torch.ones(30, 1).to(x)], 1), x.sum(1).sin()[:, None])
    tolerance = 1e-3 if dtype == torch.float32 else 1e-7
    assert relative(flat(model), fitted.solution[:, 0]) < tolerance
