"""What every optimizer owes its user: groups, schedulers, gradients, state, failures."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from steepest import Steepest
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

import kfac_pinn
from kfac_pinn import Linearization, laplacian, linearize, total_loss
from kfac_pinn.curvature.compression import units_of
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.optimizers.base import LeastSquaresOptimizer
from kfac_pinn.optimizers.damped import DampedOptimizer, ModelOptimizer
from kfac_pinn.optimizers.direction import DirectionOptimizer
from kfac_pinn.search.damping import Marquardt
from kfac_pinn.search.line import Armijo, GridSearch
from kfac_pinn.search.model import DampedModel
from kfac_pinn.search.step import Outcome

EXPORTED = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
CLASSES = [c for c in EXPORTED if inspect.isclass(c) and issubclass(c, LeastSquaresOptimizer)]
OPTIMIZERS = [Steepest, *(c for c in CLASSES if not inspect.isabstract(c))]
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda c: c.__name__)
damped_optimizers = pytest.mark.parametrize(
    "make", [c for c in OPTIMIZERS if issubclass(c, ModelOptimizer)], ids=lambda c: c.__name__
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Inverse(nn.Module):
    """A network u and a coefficient p: p Laplace u = -1 inside, u given at other points."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.u = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        self.p = nn.Parameter(torch.tensor(0.5))
        self.to(dtype)
        self.x, self.y = torch.rand(12, 2, dtype=dtype), torch.rand(8, 2, dtype=dtype)
        self.calls = 0

    def residuals(self) -> dict[str, Tensor]:
        self.calls += 1
        target = self.y.sum(1, keepdim=True).sin()
        return {"pde": self.p * laplacian(self.u, self.x) + 1, "data": self.u(self.y) - target}

    def flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters()])


def run(optimizer: LeastSquaresOptimizer, problem: Inverse, steps: int) -> list[float]:
    return [float(optimizer.step(problem.residuals)) for _ in range(steps)]


def leaves_of(value: Any) -> Iterator[Any]:
    """The entries of nested containers."""
    if isinstance(value, dict):
        yield from (leaf for pair in value.items() for entry in pair for leaf in leaves_of(entry))
    elif isinstance(value, (list, tuple)):
        yield from (leaf for entry in value for leaf in leaves_of(entry))
    else:
        yield value


def same(a: Any, b: Any) -> bool:
    """Equality bit by bit of nested state."""
    pairs = zip(leaves_of(a), leaves_of(b), strict=True)
    return all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y
        for x, y in pairs
    )


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """Through a file, as checkpoints go."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


BUILDERS: dict[str, Callable[[Inverse], Any]] = {
    "a generator": lambda problem: problem.parameters(),
    "named parameters": lambda problem: problem.named_parameters(),
    "groups": lambda problem: [{"params": problem.u.parameters()}, {"params": [problem.p]}],
    "named groups": lambda problem: [
        {"params": problem.u.named_parameters()},
        {"params": [("p", problem.p)], "lr": 0.01},
    ],
}


@every_optimizer
@pytest.mark.parametrize("given", BUILDERS)
def test_is_built_from_any_parameters(make: Any, given: str) -> None:
    problem = Inverse()
    optimizer = make(BUILDERS[given](problem))
    before = total_loss(problem.residuals())
    first = float(optimizer.step(problem.residuals))
    assert first == pytest.approx(float(before.detach()), rel=1e-12)


@every_optimizer
def test_descends(make: Any) -> None:
    problem = Inverse()
    losses = run(make(problem.parameters()), problem, 7)
    assert losses[-1] < losses[0]


@every_optimizer
def test_what_it_proposes_descends(make: Any) -> None:
    problem = Inverse()
    linearization = linearize(problem.residuals, problem.parameters())
    objective = Objective(problem.residuals, list(problem.parameters()))
    step = make(problem.parameters()).propose(linearization, objective)
    assert step.displacement.shape == (linearization.size,)
    assert linearization.gradient @ step.displacement < 0


@pytest.mark.parametrize(
    "make",
    [c for c in OPTIMIZERS if issubclass(c, DirectionOptimizer)],
    ids=lambda c: c.__name__,
)
def test_its_direction_is_one_of_descent(make: Any) -> None:
    problem = Inverse()
    linearization = linearize(problem.residuals, problem.parameters())
    direction = make(problem.parameters()).direction(linearization)
    assert direction.shape == (linearization.size,)
    assert linearization.gradient @ direction < 0


@damped_optimizers
@pytest.mark.parametrize("damping", [1e-1, 10.0])
def test_damped_steps_keep_what_they_say(make: Any, damping: float) -> None:
    """p(lambda) of a dense solve where it is exact, and the decrease of the model in any case."""
    problem = Inverse()
    linearization = linearize(problem.residuals, problem.parameters())
    objective = Objective(problem.residuals, list(problem.parameters()))
    model = make(problem.parameters()).model(linearization, objective)
    step = model.step(torch.tensor(damping) if make is kfac_pinn.HessianFree else damping)
    G, g, p = linearization.gramian(), linearization.gradient, step.displacement
    decrease = -float(g @ p + 0.5 * p @ G @ p)
    assert step.predicted == pytest.approx(decrease, rel=1e-6)
    assert model.decrease(p) == pytest.approx(decrease, rel=1e-10)
    assert model.decrease(0.3 * p) == pytest.approx(-float(0.3 * g @ p + 0.045 * p @ G @ p))
    if make in (kfac_pinn.GaussNewton, kfac_pinn.LevenbergMarquardt):
        scale = units_of(linearization) if make is kfac_pinn.GaussNewton else None
        units = torch.ones_like(g) if scale is None else scale(G.diagonal())
        exact = -torch.linalg.solve(G + damping * units.square().diag(), g)
        torch.testing.assert_close(p, exact, rtol=1e-8, atol=1e-10)


@every_optimizer
def test_fills_the_gradients(make: Any) -> None:
    problem = Inverse()
    expected = torch.autograd.grad(total_loss(problem.residuals()), list(problem.parameters()))
    make(problem.parameters()).step(problem.residuals)
    for p, g in zip(problem.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-12)


@every_optimizer
def test_says_what_happened(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    for _ in range(4):
        before, calls = problem.flat(), problem.calls
        loss = optimizer.step(problem.residuals)
        stats = optimizer.stats
        assert stats["loss"] == pytest.approx(float(loss))
        assert stats["step_norm"] == pytest.approx(float((problem.flat() - before).norm()))
        assert stats["evaluations"] >= problem.calls - calls - 1 - 2
        assert (stats["reason"] == "") == (stats["step_norm"] > 0), "a reason, where it stays"
        assert {"new_loss", "gradient_norm", "step_length", "shortened"} <= set(stats)
        assert all(isinstance(value, (float, int, str)) for value in stats.values())
        if stats["new_loss"] == stats["new_loss"]:
            new_loss = float(total_loss(problem.residuals()).detach())
            assert stats["new_loss"] == pytest.approx(new_loss, rel=1e-9)


@every_optimizer
def test_a_group_added_late_is_trained_from_then_on(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.u.parameters())
    run(optimizer, problem, 2)
    assert float(problem.p) == 0.5
    optimizer.add_param_group({"params": [problem.p]})
    losses = run(optimizer, problem, 4)
    assert float(problem.p) != 0.5
    assert losses[-1] <= losses[0]


@every_optimizer
def test_parameters_thawed_and_frozen_between_steps(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    problem.p.requires_grad_(False)
    run(optimizer, problem, 2)
    assert float(problem.p) == 0.5
    problem.p.requires_grad_(True)
    run(optimizer, problem, 2)
    assert float(problem.p) != 0.5
    frozen = problem.p.detach().clone()
    problem.p.requires_grad_(False)
    run(optimizer, problem, 2)
    assert torch.equal(problem.p, frozen)


@every_optimizer
def test_the_learning_rate_is_live(make: Any) -> None:
    problem = Inverse()
    optimizer = make([{"params": problem.u.parameters()}, {"params": [problem.p]}])
    optimizer.param_groups[1]["lr"] = 0.0
    optimizer.step(problem.residuals)
    assert float(problem.p) == 0.5
    assert optimizer.stats["step_norm"] > 0


@every_optimizer
def test_schedulers(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    lr = optimizer.param_groups[0]["lr"]
    halve, warm = StepLR(optimizer, 1, 0.5), LambdaLR(optimizer, lambda epoch: 1 / (epoch + 1))
    plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    for _ in range(2):
        loss = optimizer.step(problem.residuals)
        halve.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr / 4)
    optimizer.step(problem.residuals)
    warm.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr / 2)
    optimizer.step(problem.residuals)
    plateau.step(loss)
    plateau.step(loss + 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr / 4)


@every_optimizer
@both_dtypes
def test_a_saved_run_continues_bit_by_bit(make: Any, dtype: torch.dtype) -> None:
    problem = Inverse(dtype)
    optimizer = make(problem.parameters())
    run(optimizer, problem, 3)
    checkpoint = saved({"model": problem.state_dict(), "optimizer": optimizer.state_dict()})
    untouched = copy.deepcopy(checkpoint["optimizer"])
    run(optimizer, problem, 3)

    resumed = Inverse(dtype)
    other = make(resumed.parameters())
    resumed.load_state_dict(checkpoint["model"])
    other.load_state_dict(checkpoint["optimizer"])
    assert same(other.state_dict()["state"], untouched["state"])
    run(other, resumed, 3)
    assert torch.equal(resumed.flat(), problem.flat())
    assert same(other.state_dict(), optimizer.state_dict())
    assert same(checkpoint["optimizer"], untouched), "loading must not alias the checkpoint"


@every_optimizer
def test_the_state_is_tensors_numbers_strings_and_containers(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.named_parameters())
    run(optimizer, problem, 2)
    for leaf in leaves_of(optimizer.state_dict()):
        assert leaf is None or isinstance(leaf, (Tensor, bool, int, float, str)), leaf
        assert not (isinstance(leaf, Tensor) and leaf.requires_grad)


@every_optimizer
def test_loading_before_the_first_step_and_into_a_used_optimizer(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    fresh, start = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(problem.state_dict())
    run(optimizer, problem, 3)
    reached = problem.flat()
    problem.load_state_dict(start)
    optimizer.load_state_dict(fresh)
    run(optimizer, problem, 3)
    assert torch.equal(problem.flat(), reached)


@every_optimizer
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_go_on_alike(make: Any, duplicate: Callable[[Any], Any]) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    scheduler = StepLR(optimizer, 1, 0.9)
    run(optimizer, problem, 2)
    scheduler.step()
    twin, other = duplicate((problem, optimizer))
    run(optimizer, problem, 2)
    run(other, twin, 2)
    assert torch.equal(problem.flat(), twin.flat())
    assert other.stats == optimizer.stats or other.stats["new_loss"] != other.stats["new_loss"]
    assert same(other.state_dict(), optimizer.state_dict())


@every_optimizer
@pytest.mark.parametrize(
    ("call", "error"), [(1, ArithmeticError), (2, ArithmeticError), (3, KeyboardInterrupt)]
)
def test_a_failing_closure_changes_nothing(
    make: Any, call: int, error: type[BaseException]
) -> None:
    problem, reference = Inverse(), Inverse()
    optimizer, untouched = make(problem.parameters()), make(reference.parameters())
    run(optimizer, problem, 2)
    run(untouched, reference, 2)
    theta, last = problem.flat(), problem.calls + call
    state = copy.deepcopy(optimizer.state_dict())

    def closure() -> dict[str, Tensor]:
        if problem.calls + 1 == last:
            raise error("the user's")
        return problem.residuals()

    try:
        optimizer.step(closure)
    except error:
        assert torch.equal(problem.flat(), theta)
        assert same(optimizer.state_dict(), state)
        run(optimizer, problem, 1)
    else:
        assert problem.calls < last, "an error of the closure must reach the user"
    run(untouched, reference, 1)
    assert torch.equal(problem.flat(), reference.flat())


@every_optimizer
def test_trials_that_are_not_finite_are_not_taken(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    run(optimizer, problem, 2)
    theta = problem.flat()

    first = problem.calls + 1

    def closure() -> dict[str, Tensor]:
        residuals = problem.residuals()
        # The first call is linearised, the others are trials
        factor = 1.0 if problem.calls == first else float("nan")
        return {key: factor * r for key, r in residuals.items()}

    optimizer.step(closure)
    if optimizer.stats["evaluations"]:
        assert torch.equal(problem.flat(), theta)
        assert optimizer.stats["reason"]
        assert optimizer.stats["step_norm"] == 0
    run(optimizer, problem, 2)
    assert torch.isfinite(problem.flat()).all()


def caution(optimizer: Any) -> float:
    """What must rise after a failure: the damping, or the inverse of the trust region's radius."""
    if isinstance(optimizer, kfac_pinn.GaussNewton):
        return 1 / float(optimizer.memory.radius)
    if optimizer.stats.get("exact"):
        return 1 / float(optimizer.memory.exact.radius)
    if isinstance(optimizer, kfac_pinn.HessianFree):
        return float(optimizer.param_groups[0]["damping"])
    return float(optimizer.memory.damping)


@damped_optimizers
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_a_failed_trial_raises_the_damping(make: Any, bad: float) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    run(optimizer, problem, 2)
    levels = [caution(optimizer)]

    def closure() -> dict[str, Tensor]:
        factor = 1.0 if torch.is_grad_enabled() else bad
        return {key: factor * r for key, r in problem.residuals().items()}

    for _ in range(3):
        optimizer.step(closure)
        levels.append(caution(optimizer))
        assert optimizer.stats["reason"] == Outcome.NO_DECREASE.value
        assert optimizer.stats["ratio"] < 0
    assert levels == sorted(set(levels))


@pytest.mark.parametrize(
    ("base", "missing"),
    [
        (LeastSquaresOptimizer, {"propose"}),
        (DirectionOptimizer, {"direction"}),
        (ModelOptimizer, {"model", "propose"}),
        (DampedOptimizer, {"model"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_subclass_must_say(base: Any, missing: set[str]) -> None:
    """Python refuses to make one that leaves it out, by its name."""
    assert base.__abstractmethods__ == missing
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (base,), {})([nn.Parameter(torch.zeros(1))])


class Singular(DampedOptimizer):
    """Its damped steps are no numbers while lambda is small."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr}, Marquardt(), Armijo(), start=1e-6)

    def model(self, linearization: Linearization, objective: Objective) -> DampedModel:
        g = linearization.gradient
        return DampedModel(linearization, lambda damping: -g / (damping if damping > 1e-4 else 0))


def test_a_damped_step_that_is_not_finite_raises_the_damping() -> None:
    problem = Inverse()
    optimizer = Singular(problem.parameters())
    theta, outcomes = problem.flat(), []
    for _ in range(30):
        optimizer.step(problem.residuals)
        outcomes.append(optimizer.stats["reason"])
        if not outcomes[-1]:
            break
        assert torch.equal(problem.flat(), theta)
    assert outcomes[0] == Outcome.NOT_FINITE.value and outcomes[-1] == ""


@every_optimizer
def test_a_gradient_that_is_zero_changes_nothing(make: Any) -> None:
    """No parameter moves the Laplacian of a tanh network of zeros."""
    problem = Inverse()
    optimizer = make(problem.u.parameters())
    with torch.no_grad():
        for p in problem.u.parameters():
            p.zero_()
    for _ in range(2):
        loss = optimizer.step(lambda: laplacian(problem.u, problem.x) + 1)
        assert float(loss) == 0.5
    assert not any(p.any() for p in problem.u.parameters())


@damped_optimizers
@pytest.mark.parametrize("rates", [(0.1, 0.1), (1.0, 0.3), (0.5, 0.0)])
def test_the_ratio_is_that_of_the_step_taken(make: Any, rates: tuple[float, float]) -> None:
    """Residuals that are linear in the parameters keep every promise: the ratio is one."""
    u, x = nn.Linear(2, 1).double(), torch.rand(9, 2, dtype=torch.float64)
    groups = zip((u.weight, u.bias), rates, strict=True)
    optimizer = make([{"params": [p], "lr": 1.0} for p, _ in groups])
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for _ in range(3):
        optimizer.step(lambda: u(x) - x.prod(1, keepdim=True))
        assert optimizer.stats["ratio"] == pytest.approx(1, rel=1e-6)


@every_optimizer
def test_a_residual_that_is_not_finite_changes_nothing(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    run(optimizer, problem, 2)
    theta, state = problem.flat(), copy.deepcopy(optimizer.state_dict())
    with pytest.raises(FloatingPointError, match="residual 'pde'"):
        optimizer.step(lambda: {key: r / 0 for key, r in problem.residuals().items()})
    assert torch.equal(problem.flat(), theta)
    assert same(optimizer.state_dict(), state)


@every_optimizer
def test_step_hooks(make: Any) -> None:
    problem, seen = Inverse(), []
    optimizer = make(problem.parameters())
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    run(optimizer, problem, 2)
    assert seen == ["before", "after"] * 2


@every_optimizer
def test_zero_grad_inside_the_closure_is_harmless(make: Any) -> None:
    problem, reference = Inverse(), Inverse()
    optimizer, other = make(problem.parameters()), make(reference.parameters())

    def closure() -> dict[str, Tensor]:
        optimizer.zero_grad()
        return problem.residuals()

    for _ in range(2):
        optimizer.step(closure)
    run(other, reference, 2)
    assert torch.equal(problem.flat(), reference.flat())
    assert same([p.grad for p in problem.parameters()], [p.grad for p in reference.parameters()])


@every_optimizer
def test_the_users_random_numbers_are_left_alone(make: Any) -> None:
    problem = Inverse()
    optimizer = make(problem.parameters())
    before = torch.get_rng_state()
    run(optimizer, problem, 2)
    assert torch.equal(torch.get_rng_state(), before)


@every_optimizer
def test_steps_under_no_grad_and_enable_grad_are_the_same(make: Any) -> None:
    problem, reference = Inverse(), Inverse()
    with torch.no_grad():
        run(make(problem.parameters()), problem, 2)
    run(make(reference.parameters()), reference, 2)
    assert torch.equal(problem.flat(), reference.flat())
    assert all(p.requires_grad and p.is_leaf for p in problem.parameters())


@dataclass(frozen=True)
class Slopes:
    """What an optimizer of one's own may remember."""

    last: Tensor | None = None
    norms: tuple[float, ...] = ()
    parts: dict[int, Slopes] = field(default_factory=dict)


class Diverging(Steepest):
    """Its third direction is not a number, and its state by then spoilt."""

    def direction(self, linearization: Linearization) -> Tensor:
        direction = super().direction(linearization) * (float("nan") if self.steps == 2 else 1.0)
        self.memory = Slopes(direction, (float(direction.norm()),))
        self.scatter("momentum", direction)
        return direction


def test_a_direction_that_is_not_finite_changes_nothing() -> None:
    problem = Inverse()
    optimizer = Diverging(problem.parameters())
    run(optimizer, problem, 2)
    theta, state = problem.flat(), copy.deepcopy(optimizer.state_dict())
    run(optimizer, problem, 1)
    assert torch.equal(problem.flat(), theta)
    assert same(optimizer.state_dict(), state)
    assert optimizer.stats["reason"] == Outcome.NOT_FINITE.value
    assert optimizer.stats["step_norm"] == 0


def test_state_of_a_parameter_in_another_precision_survives() -> None:
    problem = Inverse(torch.float32)
    optimizer = Steepest(problem.parameters())
    factor = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    optimizer.state[problem.p]["factors"] = {"A": factor, "history": [1, 0.5, None]}
    optimizer.memory = Slopes(factor, (0.5, 1.0), {3: Slopes(factor.int())})
    other = Steepest(Inverse(torch.float32).parameters())
    other.memory = Slopes()
    other.load_state_dict(saved(optimizer.state_dict()))
    assert same(other.state_dict(), optimizer.state_dict())
    assert isinstance(other.memory.parts[3], Slopes) and other.memory.norms == (0.5, 1.0)
    assert other.memory.last.dtype == torch.float64


def test_a_memory_of_another_kind_is_refused() -> None:
    optimizer, other = Steepest(Inverse().parameters()), Steepest(Inverse().parameters())
    other.memory = Slopes()
    with pytest.raises(TypeError, match="a saved Slopes has the entries"):
        other.load_state_dict(optimizer.state_dict() | {"memory": {"radius": 1.0}})


@pytest.mark.parametrize("search", [GridSearch(), Armijo()])
def test_compiled_models_are_searched(search: Any) -> None:
    problem, reference = Inverse(), Inverse()
    problem.u = torch.compile(problem.u, backend="eager")  # type: ignore[assignment]
    run(Steepest(problem.parameters(), search=search), problem, 2)
    run(Steepest(reference.parameters(), search=search), reference, 2)
    torch.testing.assert_close(problem.flat(), reference.flat(), rtol=1e-12, atol=1e-13)


def test_groups_have_learning_rates_of_their_own() -> None:
    problem, rates = Inverse(), (0.1, 0.01)
    optimizer = Steepest(
        [
            {"params": problem.u.parameters(), "lr": rates[0]},
            {"params": [problem.p], "lr": rates[1]},
        ]
    )
    theta = problem.flat()
    optimizer.step(problem.residuals)
    rate_and_grad = [(rates[p is problem.p], p.grad) for p in problem.parameters()]
    expected = torch.cat([-rate * g.reshape(-1) for rate, g in rate_and_grad if g is not None])
    torch.testing.assert_close(problem.flat() - theta, expected, rtol=1e-10, atol=1e-14)


def test_the_parameters_are_checked_again_when_they_change() -> None:
    problem = Inverse()
    optimizer = Steepest(problem.u.named_parameters())
    run(optimizer, problem, 1)
    idle = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer.add_param_group({"params": [("idle", idle)]})
    with pytest.warns(UserWarning, match="no residual depends on parameter idle"):
        run(optimizer, problem, 1)
