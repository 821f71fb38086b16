"""What users get wrong: each an error that names the object, what was found, and the fix."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from steepest import Steepest
from torch import Tensor, nn

from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    SPRING,
    GaussNewton,
    HessianFree,
    laplacian,
    linearize,
    total_loss,
)
from kfac_pinn.jacobian.capture import Capture
from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.jacobian.dense_rows import uses_tf32

x = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def weight(model: nn.Module, name: str) -> nn.Parameter:
    return model.get_parameter(name)


def fails(error: type[Exception], *says: str) -> Any:
    """The error, with all of these phrases in its message."""
    everything = "".join(f"(?=.*{phrase})" for phrase in says)
    return pytest.raises(error, match=f"(?s)^{everything}")


SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a row": (lambda u: u.mT, r"\(1, 6\)"),
    "three axes": (lambda u: u[:, :, None], r"\(6, 1, 1\)"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    model = network()
    wrong, found = SHAPES[name]
    closure = lambda: {"pde": model(x), "data": wrong(model(x))}  # noqa: E731
    with fails(ValueError, "residual 'data'", found, r"one number per point, shape \(N,\)"):
        linearize(closure, list(model.parameters()))


@pytest.mark.parametrize("empty", [lambda: x[:0], lambda: x[x[:, 0] > 2]])
def test_empty_batches(empty: Callable[[], Tensor]) -> None:
    model = network()
    with fails(ValueError, "residual 1 has shape", r"\(0, 1\)", "no points in it", "sampler"):
        linearize(lambda: (model(x), laplacian(model, empty())), list(model.parameters()))


def test_priors_of_shape_nothing() -> None:
    model = network()
    prior = lambda: model[0].bias[0] - 1  # noqa: E731
    with fails(ValueError, "residual 'prior' has shape", r"r.reshape\(1\)"):
        linearize(lambda: {"pde": model(x), "prior": prior()}, list(model.parameters()))
    lin = linearize(lambda: (model(x), prior().reshape(1)), list(model.parameters()))
    assert lin.residual[-1] == prior()


TARGET = x.sum(1)
SQUARE: dict[str, Callable[[nn.Module], Any]] = {
    "data": lambda m: m(x) - TARGET,
    "added": lambda m: {"data": TARGET + m(x)},
    "exchanged": lambda m: (m(x), m(x)[:, 0] - TARGET[:, None]),
    "weighted": lambda m: 3 * (m(x) - TARGET),
    "an operator": lambda m: laplacian(m, x) - TARGET,
    "other data": lambda m: m(x) - TARGET[:3],
    "a loss": lambda m: ((m(x) - TARGET) ** 2).mean(),
    "a squared difference": lambda m: (TARGET - m(x)).square().sum(),
    "a loss of torch": lambda m: F.mse_loss(m(x), TARGET),
}


@pytest.mark.parametrize("name", SQUARE)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_residuals_of_all_pairs(name: str) -> None:
    """(N, 1) - (N,) is (N, N); to train on it is to learn the mean of the data."""
    model = network()
    with fails(ValueError, r"\(6, [36]\)", "broadcast", r"y\[:, None\]") as raised:
        linearize(lambda: SQUARE[name](model), list(model.parameters()))
    assert "unbind" not in str(raised.value)


def test_systems_are_not_taken_for_pairs() -> None:
    model = nn.Linear(2, 3).double()
    data, shift = x.sum(1, keepdim=True).expand(6, 3), torch.zeros(3, dtype=torch.float64)
    for residual in (lambda: model(x) - data, lambda: model(x) + shift, lambda: model(x)):
        assert len(linearize(residual, list(model.parameters())).residual) == 18


@pytest.mark.parametrize("called", [lambda r: r, lambda r: (r, r), lambda r: {"pde": r}])
def test_residuals_in_place_of_their_function(called: Callable[[Tensor], Any]) -> None:
    model = network()
    with fails(TypeError, "must be a function", r"step\(residuals\), not what it returned"):
        Steepest(model.parameters()).step(called(model(x)))


def test_complex_residuals() -> None:
    model = network()
    closure = lambda: {"wave": model(x) * (1 + 1j)}  # noqa: E731
    for evaluate in (lambda: total_loss(closure()), lambda: linearize(closure, model.parameters())):
        with fails(ValueError, "residual 'wave' is complex", "r.real and r.imag"):
            evaluate()


def test_half_precision() -> None:
    half, single = network().bfloat16(), network().float()
    with fails(ValueError, "parameter 0 of shape", "bfloat16", "float64", "model.double"):
        linearize(lambda: half(x.bfloat16()), half.parameters())

    def closure() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return single(x.float())  # type: ignore[no-any-return]

    with fails(RuntimeError, "bfloat16", "autocast", "float64"):
        linearize(closure, single.parameters())


@pytest.mark.parametrize(
    ("output", "found"),
    [(None, "NoneType"), (0.5, "float"), ((None,), "residual 0 is of type NoneType")],
)
def test_closures_that_return_no_residuals(output: Any, found: str) -> None:
    with fails(TypeError, found, "must return its residuals", "return laplacian"):
        linearize(lambda: output, list(network().parameters()))


def test_no_residuals_at_all() -> None:
    with fails(TypeError, "no residuals; return at least one"):
        linearize(lambda: (), list(network().parameters()))


def test_residuals_without_a_gradient() -> None:
    model = network()
    detached = lambda: (model(x), model(x).detach())  # noqa: E731
    undone = torch.no_grad()(lambda: model(x))
    for closure in (detached, undone):
        with fails(RuntimeError, "residual", "carries no gradient", "Do not detach", "no_grad"):
            linearize(closure, list(model.parameters()))


def test_residuals_of_another_model() -> None:
    model, other = network(), network()
    with fails(RuntimeError, "residual 1 depends on none of the optimizer's parameters", "Pass"):
        linearize(lambda: (model(x), other(x)), list(model.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_residuals_that_are_not_finite(value: float) -> None:
    model, factor = network(), torch.ones_like(x[:, :1])
    factor[2] = value
    with fails(FloatingPointError, "residual 'pde'", "1 of 6 entries", "Check the points"):
        linearize(lambda: {"pde": factor * model(x)}, list(model.parameters()))


def test_gradients_that_are_not_finite() -> None:
    model = network()
    nn.init.zeros_(weight(model, "2.weight"))
    nn.init.zeros_(weight(model, "2.bias"))
    optimizer = Steepest(model.named_parameters())
    with fails(FloatingPointError, "parameter 0.weight", "sqrt"):
        optimizer.step(lambda: model(x).square().sqrt() + 1)


def runs_compared(check: bool | CheckSchedule, runs: int) -> list[int]:
    """The steps at which the Jacobian is compared with autograd's, points and closures changing."""
    model = network()
    optimizer, found = Steepest(model.parameters()), []
    optimizer.check = check
    for run in range(1, runs + 1):
        with mock.patch("kfac_pinn.jacobian.sources.mismatch", return_value=None) as compare:
            optimizer.step(lambda n=run % 3 + 2: laplacian(model, x[:n]))  # type: ignore[misc]
        found += [run] * compare.call_count
    return found


def test_a_program_is_checked_now_and_then() -> None:
    assert runs_compared(CheckSchedule(), 210) == [1, 2, 4, 8, 16, 32, 64, 100, 128, 200]
    assert runs_compared(CheckSchedule(every=3), 9) == [1, 2, 3, 4, 6, 8, 9]


def test_the_check_may_be_made_always_or_never() -> None:
    assert runs_compared(CheckSchedule(every=1), 5) == [1, 2, 3, 4, 5]
    assert runs_compared(True, 5) == [1, 2, 3, 4, 5]
    assert runs_compared(False, 5) == []
    with fails(ValueError, "every must be at least 1, found 0"):
        CheckSchedule(every=0)


def test_two_programs_are_checked_each_on_its_own() -> None:
    """Taken in turn, one of them would have all the runs 2, 4, 8, ..."""
    model, compared = network(), [0, 0]
    optimizer = Steepest(model.parameters())
    for step in range(16):
        with mock.patch("kfac_pinn.jacobian.sources.mismatch", return_value=None) as compare:
            optimizer.step([lambda: model(x), lambda: model(x).sin()][step % 2])
        compared[step % 2] += compare.call_count
    assert compared == [4, 4]


def test_a_copied_optimizer_checks_anew() -> None:
    model = network()
    optimizer = Steepest(model.parameters())
    optimizer.check = CheckSchedule(every=7)
    optimizer.step(lambda: model(x))
    copied = copy.deepcopy(optimizer)
    assert isinstance(copied.check, CheckSchedule)
    assert copied.check.runs == {} and copied.check.every == 7


SECOND_ORDER = [KFACPINN, GaussNewton, SPRING, ENGD, KFAC, HessianFree]
SHUFFLES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rolled": lambda u, by: u.roll(by, 0),
    "permuted": lambda u, by: u[torch.arange(len(u)).roll(by)],
    "flipped": lambda u, by: u[by:].flip(0) if by else u[0:].flip(0).flip(0),
}


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("kind", SECOND_ORDER, ids=lambda kind: kind.__name__)
def test_outputs_shuffled_from_some_later_step_on(kind: Any, name: str) -> None:
    """The same functions on other indices: the gradient stays autograd's, or an error is raised."""
    model, target = network(), x.sin().sum(1, keepdim=True)
    optimizer = kind(model.parameters())
    for by in (0, 2, 2, 0, 3):
        closure = lambda by=by: (u := SHUFFLES[name](model(x), by)) - target[: len(u)]  # noqa: E731
        loss = total_loss(closure())
        expected = torch.autograd.grad(loss, list(model.parameters()))
        assert optimizer.step(closure).item() == pytest.approx(loss.item(), rel=1e-12)
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("first", [2, 3, 7])
def test_a_closure_that_trains_from_some_later_call_on(first: int) -> None:
    """The call may be one of the search's."""
    model, calls = network(), [0]
    optimizer = GaussNewton(model.parameters())

    def closure() -> Tensor:
        calls[0] += 1
        if calls[0] >= first:
            with torch.no_grad():
                model[0].weight.clamp_(-0.01, 0.01)
        return model(x) - 1

    with fails(RuntimeError, "the closure changed parameter 0 of shape", "between the steps"):
        for _ in range(5):
            optimizer.step(closure)
    assert calls[0] == first


def test_parameters_of_mixed_dtype() -> None:
    model = network()
    model[2].float()
    names = [name for name, _ in model.named_parameters()]
    with fails(ValueError, "parameter 2.weight is torch.float32", "float64", "model.double"):
        linearize(lambda: model[0](x)[:, 0], list(model.parameters()), names=names)


def test_complex_parameters_of_another_precision() -> None:
    """`model.double()` leaves complex ones as they are."""
    model = network()
    p = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    with fails(ValueError, "complex64", "float64", r"p.data.to\(torch.complex128\)"):
        linearize(lambda: model(x)[:, 0] * p.real, [*model.parameters(), p])


def test_parameters_that_are_not_there() -> None:
    with fails(ValueError, "no parameters: there is nothing to train"):
        linearize(lambda: x[:, 0], [])
    with fails(ValueError, "empty parameter list"):
        Steepest([])
    optimizer = Steepest(network().requires_grad_(False).parameters())
    with fails(ValueError, "no parameter requires a gradient"):
        optimizer.step(lambda: x[:, 0])


def test_parameters_that_cannot_be_trained() -> None:
    model = network()
    weight(model, "0.bias").requires_grad_(False)
    with fails(ValueError, "parameter 1 of shape", "requires a gradient; leave it out"):
        linearize(lambda: model(x), list(model.parameters()))
    with fails(ValueError, "parameter 0 of shape", "not a leaf"):
        linearize(lambda: model(x), [weight(model, "2.weight") * 2])


def test_parameters_given_twice() -> None:
    model = network()
    parameters = list(model.parameters())
    with fails(ValueError, "parameter 4 of shape|parameter 0 of shape", "twice"):
        linearize(lambda: model(x), [*parameters, parameters[0]])
    with warnings.catch_warnings(), fails(ValueError, "twice"):
        warnings.simplefilter("ignore")
        Steepest([*parameters, parameters[0]])


@pytest.mark.parametrize("lr", [0, -1.0, float("nan")])
def test_learning_rates(lr: float) -> None:
    with fails(ValueError, "lr must be positive"):
        Steepest(network().parameters(), lr)
    optimizer = Steepest(network().parameters())
    with fails(ValueError, "lr must be positive"):
        optimizer.add_param_group({"params": network().parameters(), "lr": lr})
    assert len(optimizer.param_groups) == 1


def test_parameters_that_no_residual_reads() -> None:
    model, idle = network(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = Steepest([*model.named_parameters(), ("idle", idle)])
    with pytest.warns(UserWarning, match="no residual depends on parameter idle"):
        optimizer.step(lambda: model(x))
    assert torch.equal(idle, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(idle.grad, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("change", ["add_", "data"])
def test_closures_that_train(change: str) -> None:
    model = network()
    optimizer = Steepest(model.named_parameters())

    def closure() -> Tensor:
        W = weight(model, "2.weight")
        if change == "data":
            W.data.mul_(0.9)
        else:
            with torch.no_grad():
                W.clamp_(max=0.1)
        return model(x)

    with torch.no_grad():
        weight(model, "2.weight").fill_(1.0)
    with fails(RuntimeError, "the closure changed parameter 2.weight", "between the steps"):
        optimizer.step(closure)


class OnCuda:
    """What is asked of a tensor to know how its products are rounded."""

    is_cuda = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def test_tf32_is_seen() -> None:
    single, double = OnCuda(torch.float32), OnCuda(torch.float64)
    assert not uses_tf32(single)  # type: ignore[arg-type]
    torch.set_float32_matmul_precision("high")
    try:
        assert uses_tf32(single)  # type: ignore[arg-type]
        assert not uses_tf32(double)  # type: ignore[arg-type]
        assert not uses_tf32(x.float())
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kfac_pinn.jacobian.check.uses_tf32", lambda like: True)
    model = network()
    optimizer, closure = Steepest(model.parameters()), lambda: model(x)
    with pytest.warns(UserWarning, match="TF32 is on.*set_float32_matmul_precision"):
        optimizer.step(closure)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(8):
            optimizer.step(closure)
    assert len(said) == 1


def test_modules_still_say_where_they_are_applied() -> None:
    """F.linear with a transposed trained matrix is exact: a computed weight of a small leaf."""
    W = nn.Parameter(torch.rand(2, 1, dtype=torch.float64))
    lin = linearize(lambda: F.linear(x, W.T), [W], check=True)
    torch.testing.assert_close(lin.rows() * len(x) ** 0.5, x)


def test_create_graph_may_be_given_by_position() -> None:
    model, z = network(), x.clone().requires_grad_()

    def slope(*how: Any, **named: Any) -> Tensor:
        u = model(z)
        (du,) = torch.autograd.grad(u, z, torch.ones_like(u), *how, **named)
        return du[:, 0] - 1

    by_name = linearize(lambda: slope(create_graph=True), list(model.parameters()), check=True)
    by_place = linearize(lambda: slope(None, True), list(model.parameters()), check=True)
    torch.testing.assert_close(by_place.rows(), by_name.rows())
    for derivative in (lambda: slope(create_graph=True), lambda: slope(None, True)):
        with Capture(model.parameters()) as seen:
            derivative()
        assert seen.unseen  # so that no time is lost on the calls, which do not tell
    with Capture(model.parameters()) as seen:
        torch.autograd.grad(model(z).sum(), z)
    assert not seen.unseen  # a constant
    optimizer = GaussNewton(model.parameters())
    losses = [optimizer.step(lambda: slope(None, True)).item() for _ in range(5)]
    assert losses[-1] < 0.01 * losses[0]
