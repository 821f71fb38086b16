"""`zero_grad(); loss = ...; loss.backward(); step()`: what loops without a closure may do."""

from __future__ import annotations

import copy
import gc
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_problems import flat, network, points
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import kfac_pinn
from kfac_pinn import ENGD, KFACPINN, SPRING, GaussNewton, HessianFree
from kfac_pinn.optimizers.base import LeastSquaresOptimizer
from kfac_pinn.optimizers.hessian_free import Hessian
from kfac_pinn.optimizers.reading import added_by
from kfac_pinn.search.line import NormConstraint

EXPORTED = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
CLASSES = [c for c in EXPORTED if inspect.isclass(c) and issubclass(c, LeastSquaresOptimizer)]
OURS = [c for c in CLASSES if "lr" in inspect.signature(c).parameters]
every_optimizer = pytest.mark.parametrize("make", OURS, ids=lambda c: c.__name__)


def second_derivative(u: Tensor, x: Tensor) -> Tensor:
    """u_xx + u_yy by nested autograd."""
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    parts = [torch.autograd.grad(du[:, i].sum(), x, create_graph=True)[0][:, i] for i in (0, 1)]
    return sum(parts)[:, None]


class Plain:
    """A model and a loss, as anybody writes them."""

    def __init__(self, seed: int = 0) -> None:
        self.model = network(2, 6, 1, seed=seed)
        self.x, self.xb = points(14), points(5, seed=1)

    def inside(self) -> Tensor:
        x = self.x.clone().requires_grad_()
        return (second_derivative(self.model(x), x) + 1).pow(2).mean()

    def boundary(self) -> Tensor:
        return nn.functional.mse_loss(self.model(self.xb), self.xb[:, :1])

    def loss(self) -> Tensor:
        return self.inside() + 3 * self.boundary()


def train(optimizer: Any, loss: Callable[[], Tensor], steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        losses.append(float(value.detach()))
        optimizer.step()
    return losses


@every_optimizer
def test_a_loop_without_closure_trains(make: Any) -> None:
    plain = Plain()
    losses = train(make(plain.model.parameters()), plain.loss, 12)
    assert min(losses[1:]) < losses[0]
    assert torch.isfinite(flat(plain.model)).all()


@pytest.mark.parametrize("make", [KFACPINN, GaussNewton, HessianFree, ENGD])
def test_it_gets_far(make: Any) -> None:
    plain = Plain()
    assert min(train(make(plain.model.parameters()), plain.loss, 40)) < 1e-3 * 4


@every_optimizer
def test_gradient_and_returned_loss_are_those_of_the_loss(make: Any) -> None:
    plain = Plain()
    optimizer = make(plain.model.parameters())
    optimizer.zero_grad()
    loss = plain.loss()
    loss.backward()
    expected = [p.grad.clone() for p in plain.model.parameters()]
    assert float(optimizer.step()) == pytest.approx(float(loss))
    for p, g in zip(plain.model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


@every_optimizer
def test_it_is_the_step_of_a_closure_with_one_evaluation(make: Any) -> None:
    """The same rule, whichever way the loss is handed over."""
    first, second = Plain(), Plain()
    options = {} if make is kfac_pinn.KFACStar else {"search": kfac_pinn.OneEvaluation()}
    optimizer, other = make(first.model.parameters()), make(second.model.parameters(), **options)
    train(optimizer, first.loss, 6)
    for _ in range(6):
        other.step(second.loss)
    torch.testing.assert_close(flat(first.model), flat(second.model), rtol=1e-6, atol=1e-8)


# When zero_grad is called


def orders(optimizer: Any, plain: Plain) -> dict[str, Callable[[], None]]:
    def before() -> None:
        optimizer.zero_grad()
        plain.loss().backward()
        optimizer.step()

    def after() -> None:
        plain.loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    def between() -> None:
        loss = plain.loss()
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()

    def of_the_model() -> None:
        plain.model.zero_grad()
        plain.loss().backward()
        optimizer.step()

    def step_of_none() -> None:
        optimizer.zero_grad()
        plain.loss().backward()
        optimizer.step(closure=None)

    return {f.__name__: f for f in (before, after, between, of_the_model, step_of_none)}


@pytest.mark.parametrize("name", ["before", "after", "between", "of_the_model", "step_of_none"])
def test_zero_grad_where_people_call_it(name: str) -> None:
    plain, reference = Plain(), Plain()
    iteration = orders(KFACPINN(plain.model.parameters()), plain)[name]
    for _ in range(5):
        iteration()
    train(KFACPINN(reference.model.parameters()), reference.loss, 5)
    assert torch.equal(flat(plain.model), flat(reference.model))


# Errors say what to write


@every_optimizer
def test_a_step_without_closure_and_loss_says_what_to_write(make: Any) -> None:
    plain = Plain()
    optimizer = make(plain.model.parameters())
    theta = flat(plain.model)
    for call in (optimizer.step, lambda: optimizer.step(None)):
        with pytest.raises(RuntimeError, match=r"step\(\) was called without a closure.*backward"):
            call()
    assert torch.equal(flat(plain.model), theta)
    train(optimizer, plain.loss, 2)
    with pytest.raises(RuntimeError, match="without a closure"):
        optimizer.step()  # the loss before belongs to the step before


def test_a_loss_of_another_model_is_not_ours() -> None:
    plain, other = Plain(), Plain(1)
    optimizer = KFACPINN(plain.model.parameters())
    other.loss().backward()
    with pytest.raises(RuntimeError, match="no loss was sent backwards to its parameters"):
        optimizer.step()


def test_max_iter_needs_a_closure() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters(), max_iter=5)
    plain.loss().backward()
    with pytest.raises(RuntimeError, match=r"max_iter=5 .*need a closure"):
        optimizer.step()


def test_parameters_changed_between_the_loss_and_the_step_are_named() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    plain.loss().backward()
    with torch.no_grad():
        for p in plain.model.parameters():
            p.mul_(0.9)
    with pytest.raises(RuntimeError, match="changed in place between"):
        optimizer.step()
    train(optimizer, plain.loss, 2)


# What happens in between


def test_exceptions_between_backward_and_step_leave_nothing_behind() -> None:
    plain, reference = Plain(), Plain()
    optimizer, other = KFACPINN(plain.model.parameters()), KFACPINN(reference.model.parameters())
    for attempt in range(4):
        try:
            optimizer.zero_grad()
            loss = plain.loss()
            if attempt == 1:
                raise KeyboardInterrupt
            loss.backward()
            if attempt == 2:
                raise ValueError
        except (KeyboardInterrupt, ValueError):
            continue
        optimizer.step()
    train(other, reference.loss, 2)
    assert torch.equal(flat(plain.model), flat(reference.model))


class Counting(TorchFunctionMode):
    """A user's own mode."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def test_a_users_mode_and_evaluation_code_in_between() -> None:
    plain, reference = Plain(), Plain()
    optimizer, other = KFACPINN(plain.model.parameters()), KFACPINN(reference.model.parameters())
    for _ in range(4):
        with Counting() as mode:
            optimizer.zero_grad()
        with Counting():
            loss = plain.loss()
        loss.backward()
        with torch.inference_mode():
            plain.model(plain.xb).square().mean()
        with torch.no_grad():
            copy.deepcopy(plain.model.state_dict())
        x = plain.x.clone().requires_grad_()
        torch.autograd.grad(plain.model(x).sum(), x)
        with Counting() as mode:
            optimizer.step()
        assert mode.calls
    train(other, reference.loss, 4)
    assert torch.equal(flat(plain.model), flat(reference.model))


def test_several_calls_of_backward_sum_up() -> None:
    plain, reference = Plain(), Plain()
    optimizer, other = KFACPINN(plain.model.parameters()), KFACPINN(reference.model.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        plain.inside().backward()
        (3 * plain.boundary()).backward()
        optimizer.step()
    train(other, reference.loss, 5)
    torch.testing.assert_close(flat(plain.model), flat(reference.model), rtol=1e-8, atol=1e-10)


def test_backward_with_a_weight_and_of_several_tensors() -> None:
    plain, reference = Plain(), Plain()
    optimizer, other = KFACPINN(plain.model.parameters()), KFACPINN(reference.model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        weight = torch.tensor(3.0, dtype=torch.float64)
        torch.autograd.backward(
            [plain.inside(), plain.boundary()], [torch.ones_like(weight), weight]
        )
        optimizer.step()
    train(other, reference.loss, 3)
    torch.testing.assert_close(flat(plain.model), flat(reference.model), rtol=1e-8, atol=1e-10)


def test_two_optimizers_of_two_models_in_one_loop() -> None:
    plain, other = Plain(), Plain(1)
    alone, apart = Plain(), Plain(1)
    ours, torchs = KFACPINN(plain.model.parameters()), torch.optim.Adam(other.model.parameters())
    second = GaussNewton(apart.model.parameters())
    for _ in range(4):
        for optimizer, each in ((ours, plain), (torchs, other), (second, apart)):
            optimizer.zero_grad()
            each.loss().backward()
            optimizer.step()
    train(KFACPINN(alone.model.parameters()), alone.loss, 4)
    assert torch.equal(flat(plain.model), flat(alone.model))
    assert not torch.equal(flat(other.model), flat(apart.model))


def test_one_loss_of_two_models() -> None:
    """A joint loss is stepped on by the optimizer of each half."""
    first, second = network(2, 5, 1), network(2, 5, 1, seed=1)
    x = points(20)
    optimizers = [KFACPINN(first.parameters()), KFACPINN(second.parameters())]
    losses = []
    for _ in range(15):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = (first(x) * second(x) - x[:, :1]).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        for optimizer in optimizers[:1]:
            optimizer.step()
    assert losses[-1] < losses[0]


def test_closure_and_no_closure_in_turn() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    losses = train(optimizer, plain.loss, 3)
    losses.append(float(optimizer.step(plain.loss)))
    losses += train(optimizer, plain.loss, 3)
    assert losses[-1] < losses[0]


# Clipping


def test_clipping_is_remarked_on_once_where_it_changes_something() -> None:
    plain, reference = Plain(), Plain()
    optimizer, other = KFACPINN(plain.model.parameters()), KFACPINN(reference.model.parameters())
    with pytest.warns(UserWarning, match="changed between backward") as caught:
        for _ in range(3):
            optimizer.zero_grad()
            plain.loss().backward()
            nn.utils.clip_grad_norm_(plain.model.parameters(), 1e-3)
            optimizer.step()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    train(other, reference.loss, 3)
    assert torch.equal(flat(plain.model), flat(reference.model))


@pytest.mark.filterwarnings("error")
def test_clipping_that_changes_nothing_is_not_remarked_on() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        plain.loss().backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 1e6)
        optimizer.step()


@pytest.mark.parametrize("make", [KFACPINN, GaussNewton])
def test_a_closure_adds_to_the_gradients_that_wait(make: Any) -> None:
    """Lightning's accumulate_grad_batches: the last batch comes with step, those before do not."""
    parts, whole = Plain(), Plain()
    added, summed = make(parts.model.parameters()), make(whole.model.parameters())
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = parts.loss()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the gradients were not clipped
        for _ in range(3):
            added.zero_grad()
            (parts.model(parts.x) - 1).square().mean().backward()
            found = added.step(closure)
            summed.zero_grad()
            ((whole.model(whole.x) - 1).square().mean() + whole.loss()).backward()
            torch.testing.assert_close(found, summed.step())
    torch.testing.assert_close(flat(parts.model), flat(whole.model))
    assert calls == 3
    assert not added._source.losses


def test_gradients_that_wait_for_residuals_are_an_error() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    optimizer.zero_grad()
    plain.loss().backward()
    theta = flat(plain.model)
    with pytest.raises(RuntimeError, match=r"1 earlier calls of backward.*zero_grad"):
        optimizer.step(plain.loss)
    assert torch.equal(flat(plain.model), theta)


@pytest.mark.parametrize("zero", ["optimizer", "model"])
def test_a_closure_that_zeroes_the_gradients_is_not(zero: str) -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())

    def closure() -> Tensor:
        (optimizer if zero == "optimizer" else plain.model).zero_grad()
        loss = plain.loss()
        loss.backward()
        return loss

    plain.loss().backward()
    optimizer.step(closure)


# Memory


def test_graphs_of_old_losses_are_let_go() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    nodes: list[Any] = []
    for _ in range(3):
        optimizer.zero_grad()
        residual = plain.model(plain.x) - 1
        nodes.append(weakref.ref(residual))
        loss = residual.square().mean()
        del residual
        loss.backward()
        optimizer.step()
        gc.collect()
        assert nodes[-1]() is None
        assert loss.grad_fn is None  # still held by the loop, without its graph
    optimizer.zero_grad()
    assert not optimizer._source.losses


def test_an_optimizer_that_is_gone_watches_no_longer() -> None:
    plain = Plain()
    original = torch.autograd.backward
    optimizer = KFACPINN(plain.model.parameters())
    del optimizer
    gc.collect()
    assert torch.autograd.backward is original
    loss = plain.loss()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_steps_with_a_closure_keep_no_graph_of_other_losses() -> None:
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    optimizer.step(plain.loss)
    loss = plain.loss()
    loss.backward()
    assert not optimizer._source.losses


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("returns", "sends"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_a_closure_adds_to_gradients_that_wait(returns: int, sends: int, waits: bool) -> None:
    """Nothing by doing nothing, what it sends backwards, and not what it only returns."""
    model, x = network(2, 3, 1), points(5)
    parameters = list(model.parameters())
    if waits:
        model(x).sum().backward()

    def closure() -> Tensor | None:
        loss = model(x).square().mean()
        if sends:
            loss.backward()
        return loss if returns else None

    added = added_by(closure, parameters)
    if not sends:
        assert added == (None if returns else [])
    else:
        assert (added is not None) == waits
        assert added is None or [float(each) for each in added] == [model(x).square().mean()]


def test_a_closure_that_does_nothing_leaves_the_step_to_the_losses() -> None:
    """What Lightning's manual optimization hands over."""
    plain = Plain()
    optimizer, losses = KFACPINN(plain.model.parameters()), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = plain.loss()
        loss.backward()
        losses.append(float(optimizer.step(lambda: None)))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("other", [False, True])
def test_losses_that_other_optimizers_descend_are_not_kept(other: bool) -> None:
    """Both optimizers constructed first, Adam for a while, then ours: no graph piles up."""
    plain = Plain()
    optimizer = KFACPINN(plain.model.parameters())
    model = Plain().model if other else plain.model
    adam = torch.optim.Adam(model.parameters())
    for _ in range(4):
        adam.zero_grad()
        (model(plain.x) - 1).square().mean().backward()
        adam.step()
    assert len(optimizer._source.losses) == (0 if other else 1)
    losses = train(optimizer, plain.loss, 4)
    assert min(losses[1:]) < losses[0]


# Which optimizers


def test_searches_that_do_not_look_need_no_rule() -> None:
    plain = Plain()
    optimizer = SPRING(plain.model.parameters(), lr=0.5, search=NormConstraint(0.1))
    train(optimizer, plain.loss, 3)
    assert optimizer.unseen.trial is None


def test_the_exact_hessian_reads_the_loss_that_is_there() -> None:
    plain = Plain()
    losses = train(HessianFree(plain.model.parameters(), curvature=Hessian()), plain.loss, 10)
    assert min(losses[1:]) < losses[0]


def test_an_optimizer_that_must_look_says_so() -> None:
    class Looking(LeastSquaresOptimizer):
        def propose(self, linearization: Any, objective: Any) -> Any:
            raise NotImplementedError

    plain = Plain()
    optimizer = Looking(plain.model.parameters(), {"lr": 1.0})
    plain.loss().backward()
    with pytest.raises(TypeError, match=r"Looking evaluates the loss .*closure"):
        optimizer.step()


def test_copies_watch_for_themselves() -> None:
    plain = Plain()
    model, optimizer = copy.deepcopy((plain.model, KFACPINN(plain.model.parameters())))
    plain.model = model
    losses = train(optimizer, plain.loss, 4)
    assert losses[-1] < losses[0]


def test_a_saved_run_continues_bit_by_bit() -> None:
    plain, resumed = Plain(), Plain(1)
    optimizer = KFACPINN(plain.model.parameters())
    train(optimizer, plain.loss, 3)
    other = KFACPINN(resumed.model.parameters())
    resumed.model.load_state_dict(plain.model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, plain.loss, 4)
    train(other, resumed.loss, 4)
    assert torch.equal(flat(plain.model), flat(resumed.model))
