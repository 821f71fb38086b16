"""Evaluations besides the linearisation: gradients inside closures, chance, busy machines."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_problems import flat, network, points
from torch import Tensor, nn

import kfac_pinn
from kfac_pinn import ENGD, KFAC, KFACPINN, SPRING, GaussNewton, NormConstraint, OneEvaluation
from kfac_pinn.jacobian.closure import linearize
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.optimizers import remarks
from kfac_pinn.optimizers.base import LeastSquaresOptimizer

EXPORTED = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
CLASSES = [c for c in EXPORTED if inspect.isclass(c) and issubclass(c, LeastSquaresOptimizer)]
OURS = [c for c in CLASSES if "lr" in inspect.signature(c).parameters]
every_optimizer = pytest.mark.parametrize("make", OURS, ids=lambda c: c.__name__)


# Closures that need gradients where the search evaluates them


class Balanced:
    """Two terms whose weights follow from their gradients' norms, as many PINN codes do."""

    def __init__(self, balance: Callable[[Balanced, Tensor, Tensor], Tensor]) -> None:
        self.model = network(2, 6, 1)
        self.x, self.xb = points(14), points(5, seed=1)
        self.balance = balance

    def loss(self) -> Tensor:
        x = self.x.clone().requires_grad_()
        u = self.model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        inside = (du.sum(1, keepdim=True) - 1).square().mean()
        edge = (self.model(self.xb) - self.xb[:, :1]).square().mean()
        return self.balance(self, inside, edge)

    def norm(self, loss: Tensor) -> Tensor:
        parameters = list(self.model.parameters())
        slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return torch.stack([s.norm() for s in slopes if s is not None]).norm().detach()


def by_norms(problem: Balanced, inside: Tensor, edge: Tensor) -> Tensor:
    weight = problem.norm(inside) / problem.norm(edge)
    return inside + weight.clamp(0.1, 10) * edge


def by_backward(problem: Balanced, inside: Tensor, edge: Tensor) -> Tensor:
    """The norms as codes read them that know `.grad` only; then the loss, sent backwards too."""
    for p in problem.model.parameters():
        p.grad = None
    inside.backward(retain_graph=True)
    edge.backward(retain_graph=True)
    return inside + edge


def without_weights(problem: Balanced, inside: Tensor, edge: Tensor) -> Tensor:
    return inside + edge


@every_optimizer
def test_weights_by_gradient_norms(make: Any) -> None:
    problem = Balanced(by_norms)
    optimizer = make(problem.model.parameters())
    losses = [float(optimizer.step(problem.loss)) for _ in range(8)]
    assert min(losses[1:]) < losses[0]


@every_optimizer
def test_backward_that_retains_the_graph(make: Any) -> None:
    problem, reference = Balanced(by_backward), Balanced(without_weights)
    optimizer, other = make(problem.model.parameters()), make(reference.model.parameters())
    for _ in range(4):
        optimizer.step(problem.loss)
        other.step(reference.loss)
    torch.testing.assert_close(flat(problem.model), flat(reference.model), rtol=1e-6, atol=1e-8)


@every_optimizer
def test_gradients_after_the_step_are_those_before_it(make: Any) -> None:
    """Trial evaluations that call backward() leave nothing in `.grad`."""
    problem = Balanced(without_weights)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    optimizer = make(problem.model.parameters())
    for _ in range(3):
        expected = torch.autograd.grad(problem.loss(), list(problem.model.parameters()))
        optimizer.step(closure)
        for p, g in zip(problem.model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-11)


def test_a_closure_that_clips_is_told_once_that_this_has_no_effect() -> None:
    problem, reference = Balanced(without_weights), Balanced(without_weights)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(problem.model.parameters(), 1e-3)
        return loss.detach()

    optimizer, other = (KFACPINN(p.model.parameters()) for p in (problem, reference))
    with pytest.warns(UserWarning, match="clip_grad_norm_") as seen:
        for _ in range(3):
            optimizer.step(closure)
            other.step(reference.loss)
    assert len(seen) == 1
    torch.testing.assert_close(flat(problem.model), flat(reference.model))


def test_a_closure_that_skips_its_batch_is_no_step() -> None:
    """Lightning's closure, where `training_step` returns None."""
    problem = Balanced(without_weights)
    optimizer = KFACPINN(problem.model.parameters())
    optimizer.step(problem.loss)
    theta = flat(problem.model)
    assert torch.isnan(optimizer.step(optimizer.zero_grad))
    assert torch.equal(flat(problem.model), theta)
    assert "nothing" in str(optimizer.stats["reason"])
    optimizer.step(problem.loss)


def test_a_closure_that_forgets_to_return_is_an_error() -> None:
    problem = Balanced(without_weights)
    with pytest.raises(TypeError, match=r"returned nothing.*return laplacian"):
        KFACPINN(problem.model.parameters()).step(lambda: None)


# Two evaluations that differ


def drawing_inside(model: nn.Module) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        x = torch.rand(20, 2, dtype=torch.float64)
        return model(x) - x[:, :1]

    return closure


SEARCHING = [KFACPINN, GaussNewton, KFAC, ENGD, SPRING]


@pytest.mark.parametrize("make", SEARCHING, ids=lambda c: c.__name__)
def test_points_drawn_inside_the_closure_are_remarked_on_once(make: Any) -> None:
    model = network(2, 5, 1)
    optimizer = make(model.parameters())
    closure = drawing_inside(model)
    with pytest.warns(
        UserWarning, match=r"two evaluations of the closure.*between the steps"
    ) as seen:
        for _ in range(9):
            optimizer.step(closure)
    assert len([w for w in seen if "two evaluations" in str(w.message)]) == 1
    assert seen[0].filename == __file__


def test_the_steps_in_which_evaluations_are_compared() -> None:
    """Powers of two and hundreds: an evaluation more in few steps of many."""
    model, x, looked = network(2, 2, 1), points(5), []
    parameters = list(model.parameters())
    closure = lambda: model(x)  # noqa: E731
    remarking, linearization = remarks.Remarks(), linearize(closure, parameters)
    for steps in range(401):
        objective = Objective(closure, parameters)
        remarking.differing(steps, objective, linearization)
        looked += [steps + 1] * objective.evaluations
    assert looked == sorted({*(2**k for k in range(9)), 100, 200, 300, 400})


def test_dropout_in_training_mode_is_remarked_on() -> None:
    model = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, 1)).double()
    x = points(20)
    optimizer = KFACPINN(model.parameters())
    with pytest.warns(UserWarning, match=r"model.eval\(\)"):
        optimizer.step(lambda: model(x) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KFACPINN(model.eval().parameters()).step(lambda: model(x) - 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SPRING, {"search": NormConstraint(1e-3), "lr": 0.02}),
        (KFACPINN, {"search": OneEvaluation()}),
        (kfac_pinn.KFACStar, {}),
    ],
)
def test_those_that_do_not_compare_losses_may_draw_inside(make: Any, options: Any) -> None:
    model = network(2, 5, 1)
    optimizer = make(model.parameters(), **options)
    for _ in range(5):
        optimizer.step(drawing_inside(model))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_what_rounding_leaves_of_a_solved_problem_may_differ(
    dtype: torch.dtype, size: float
) -> None:
    """Residuals of eps times what cancels in them; a draw of a thousandth of that is found."""
    model, x = network(2, 5, 1).to(dtype), points(20).to(dtype)
    parameters, target = list(model.parameters()), size * model(x).detach()
    remarking = remarks.Remarks()

    def look(steps: int, off: float, noise: float) -> None:
        def closure() -> Tensor:
            return size * (model(x) - off + noise * torch.rand(20, 1, dtype=dtype)) - target

        remarking.differing(steps, Objective(closure, parameters), linearize(closure, parameters))

    look(0, 1.0, 0.0)  # not solved
    look(1, 0.0, torch.finfo(dtype).eps)  # solved
    with pytest.warns(UserWarning, match="two evaluations"):
        look(3, 0.0, 1e-3)


def test_a_closure_that_begins_to_draw_later_is_found_out() -> None:
    model, x = network(2, 5, 1), points(20)
    optimizer = KFACPINN(model.parameters())
    for _ in range(5):
        optimizer.step(lambda: model(x) - x[:, :1])
    drawing = drawing_inside(model)
    with pytest.warns(UserWarning, match="two evaluations"):
        for _ in range(3):  # the eighth step looks
            optimizer.step(drawing)


class Counting:
    """A closure that knows at which parameters it was called."""

    def __init__(self) -> None:
        self.model, self.x = network(2, 5, 1), points(20)
        self.calls: list[Tensor] = []

    def __call__(self) -> Tensor:
        self.calls.append(flat(self.model))
        return self.model(self.x) - self.x.prod(1, keepdim=True)


def test_the_comparison_is_rare() -> None:
    closure, looks = Counting(), []
    optimizer = KFACPINN(closure.model.parameters())
    for step in range(1, 201):
        closure.calls.clear()
        theta = flat(closure.model)
        optimizer.step(closure)
        if sum(torch.equal(theta, call) for call in closure.calls) > 1:
            looks.append(step)
    assert looks == [1, 2, 4, 8, 16, 32, 64, 100, 128, 200]


# Busy machines


def waiting_closure(model: nn.Module, seconds: float) -> Callable[[], Tensor]:
    x = points(9)

    def closure() -> Tensor:
        time.sleep(seconds)
        return model(x) - x[:, :1]

    return closure


def test_a_step_that_mostly_waits_earns_one_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = network(2, 5, 1)
    optimizer = KFACPINN(model.parameters())
    with pytest.warns(UserWarning, match="OMP_NUM_THREADS") as seen:
        for _ in range(3):
            optimizer.step(waiting_closure(model, 0.1))
    assert len(seen) == 1
    assert seen[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_no_hint_later_nor_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(2, 5, 1)
    optimizer = KFACPINN(model.parameters())
    optimizer.step(waiting_closure(model, 0.1))  # one thread in the tests
    for _ in remarks.FIRST_STEPS:
        optimizer.step(waiting_closure(model, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    optimizer.step(waiting_closure(model, 0.1))
