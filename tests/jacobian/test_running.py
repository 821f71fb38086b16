"""What closures do besides returning residuals: errors of torch, several losses, hooks, compilers.

The gradient of a step is compared with autograd's, here as everywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_problems import flat, network, points
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kfac_pinn import KFACPINN, GaussNewton, laplacian

Closure = Callable[[], Any]


def nested(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """u_xx + 1 by nested autograd."""
    x = x.clone().requires_grad_()
    (du,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    (ddu,) = torch.autograd.grad(du[:, 0].sum(), x, create_graph=True)
    return ddu[:, :1] + 1


def agrees(closure: Closure, parameters: list[Tensor], loss: Closure | None = None) -> None:
    """The gradient of one step is autograd's of the loss; three steps lower it."""
    with torch.enable_grad():
        value = (loss or closure)()
    expected = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    dense = [g.to_dense() if g.is_sparse else g for g in expected]
    optimizer = KFACPINN(parameters)
    first = float(optimizer.step(closure))
    assert first == pytest.approx(float(value.detach()), rel=1e-9)
    for p, g in zip(parameters, dense, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-10)
    for _ in range(2):
        optimizer.step(closure)
    assert optimizer.stats["new_loss"] < first


# Points that do not fit


def taylor_of(model: nn.Module, x: Tensor) -> Tensor:
    return laplacian(model, x) + 1


@pytest.mark.parametrize("residual", [nested, taylor_of, lambda m, x: m(x) - 1])
@pytest.mark.parametrize(
    ("of_model", "of_points"),
    [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float64, torch.half)],
)
def test_points_of_another_dtype_are_told_apart_from_the_model(
    residual: Any, of_model: torch.dtype, of_points: torch.dtype
) -> None:
    model, x = network(2, 5, 1).to(of_model), points(9).to(of_points)
    optimizer = KFACPINN(model.parameters())
    with pytest.raises(RuntimeError, match=rf"which are {of_model}.*x = x.to\({of_model}\)"):
        optimizer.step(lambda: residual(model, x))


@pytest.mark.parametrize("residual", [nested, taylor_of, lambda m, x: m(x) - 1])
def test_points_on_another_device(residual: Any) -> None:
    model, x = network(2, 5, 1), points(9).to("meta")
    with pytest.raises(RuntimeError, match=r'which are on cpu.*x = x.to\("cpu"\)'):
        KFACPINN(model.parameters()).step(lambda: residual(model, x))


def test_points_that_are_whole_numbers() -> None:
    model, x = network(2, 5, 1), torch.arange(8).view(4, 2)
    optimizer = KFACPINN(model.parameters())
    with pytest.raises(RuntimeError, match=r"no floating point.*x.to\(torch.float64\)"):
        optimizer.step(lambda: nested(model, x))
    with pytest.raises(RuntimeError, match=r"x = x.to\(torch.float64\)"):
        optimizer.step(lambda: model(x) - 1)


def test_points_that_require_no_gradient() -> None:
    model, x = network(2, 5, 1), points(9)
    optimizer = KFACPINN(model.parameters())
    with pytest.raises(RuntimeError, match=r"x = x.requires_grad_\(\) before u = model\(x\)"):
        optimizer.step(lambda: torch.autograd.grad(model(x).sum(), x, create_graph=True)[0])


def test_a_derivative_by_a_copy_of_the_points() -> None:
    model, x = network(2, 5, 1), points(9).requires_grad_()
    optimizer = KFACPINN(model.parameters())
    with pytest.raises(RuntimeError, match="the very tensor that the model got"):
        optimizer.step(lambda: torch.autograd.grad(model(x).sum(), x[:, 0], create_graph=True)[0])


def test_inference_mode() -> None:
    model, optimizer = network(2, 5, 1), None
    optimizer = KFACPINN(model.parameters())
    with torch.inference_mode():
        x = torch.rand(9, 2, dtype=torch.float64)
        with pytest.raises(RuntimeError, match=r"inference_mode\(\).*call it outside"):
            optimizer.step(lambda: model(points(9)))
    with pytest.raises(RuntimeError, match=r"x = x.clone\(\)"):
        optimizer.step(lambda: model(x) - 1)


def test_lazy_modules_are_called_once_before_the_first_step() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(1)).double()
    optimizer = KFACPINN(model.parameters())
    with pytest.raises(ValueError, match=r"call model\(x\) once"):
        optimizer.step(lambda: model(points(5)))
    model(points(5))
    first = float(optimizer.step(lambda: model(points(5)) - 1))
    assert float(optimizer.step(lambda: model(points(5)) - 1)) < first


def test_other_errors_of_the_closure_stay_as_they_are() -> None:
    model = network(2, 5, 1)
    with pytest.raises(RuntimeError, match=r"^(addmm: )?mat1 and mat2 shapes cannot be multiplied"):
        KFACPINN(model.parameters()).step(lambda: model(torch.rand(4, 3, dtype=torch.float64)))


def test_parameters_without_numbers() -> None:
    model = nn.Linear(2, 1, device="meta")
    with pytest.raises(ValueError, match="to_empty"):
        KFACPINN(model.parameters()).step(lambda: model(points(3)))


# Several losses


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: dict(zip("ab", pair, strict=True))])
def test_several_losses_of_one_number_each(wrap: Any) -> None:
    """A constant part of a loss counts at trial steps, too."""
    model, x = network(2, 5, 1), points(9)

    def pair() -> list[Tensor]:
        return [nested(model, x).square().mean(), (model(x) - 1).square().mean() + 3]

    agrees(lambda: wrap(pair()), list(model.parameters()), lambda: torch.stack(pair()).sum())


def test_a_loss_beside_residuals() -> None:
    model, x = network(2, 5, 1), points(9)

    def closure() -> tuple[Tensor, Tensor]:
        return model(x) - 1, 2 * nested(model, x).square().mean()

    def loss() -> Tensor:
        residual, other = closure()
        return residual.square().mean() / 2 + other

    agrees(closure, list(model.parameters()), loss)


# Code around the residual


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, go: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * go


def hooked(u: Tensor) -> Tensor:
    u.register_hook(lambda g: None)
    return u


def retained(u: Tensor) -> Tensor:
    u.retain_grad()
    return u


def overwritten(u: Tensor) -> Tensor:
    u[:3] *= 2
    u -= 1
    return u


@pytest.mark.parametrize("after", [hooked, retained, overwritten, Square.apply])
@pytest.mark.parametrize("residual", [nested, lambda m, x: m(x) - 1])
def test_hooks_in_place_changes_and_functions_of_ones_own(residual: Any, after: Any) -> None:
    model, x = network(2, 5, 1), points(9)

    def loss() -> Tensor:
        return after(residual(model, x)).square().mean()

    agrees(loss, list(model.parameters()))


def test_checkpointed_segments() -> None:
    model, x = network(2, 5, 5, 1), points(9)

    def through(x: Tensor) -> Tensor:
        return model[-1](checkpoint(model[:-1], x, use_reentrant=False))

    for residual in (lambda: through(x) - 1, lambda: nested(through, x)):
        agrees(lambda r=residual: r().square().mean(), list(model.parameters()))


def test_a_reentrant_checkpoint_hides_its_parameters() -> None:
    model, x = network(2, 5, 5, 1), points(9).requires_grad_()
    optimizer = KFACPINN(model.parameters())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        optimizer.step(lambda: model[-1](checkpoint(model[:-1], x, use_reentrant=True)) - 1)


@pytest.mark.parametrize("make", [lambda: nn.Embedding(4, 3, sparse=True), nn.EmbeddingBag])
def test_embeddings(make: Any) -> None:
    bag = make is nn.EmbeddingBag
    table = (make(4, 3) if bag else make()).double()
    head, rows = network(3, 5, 1), torch.arange(12) % 4
    rows = rows.view(6, 2) if bag else rows
    parameters = [*table.parameters(), *head.parameters()]
    agrees(lambda: (head(table(rows)) - 1).square().mean(), parameters)


@pytest.mark.parametrize("largest", [lambda s: s.topk(4).values, lambda s: s.sort().values[3:]])
def test_the_largest_of_the_squares(largest: Any) -> None:
    model, x = network(2, 5, 1), points(9)
    loss = lambda: largest((model(x) - 1).square().flatten()).mean()  # noqa: E731
    agrees(loss, list(model.parameters()))


def test_compiled_code_steps_aside() -> None:
    """Compiled code cannot be differentiated twice, neither here nor at trial steps."""
    model, x = network(2, 5, 1), points(9)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = KFACPINN(model.parameters())
    losses = [float(optimizer.step(lambda: nested(compiled, x))) for _ in range(3)]
    assert losses[2] < losses[0]


def test_a_compiled_step_is_a_step() -> None:
    model, x = network(2, 5, 1), points(9)
    optimizer = KFACPINN(model.parameters())
    step = torch.compile(lambda: optimizer.step(lambda: model(x) - 1), backend="eager")
    first = float(step())
    assert float(step()) < first


def test_clipping_after_backward_finds_gradients_at_trial_steps_too() -> None:
    model, x = network(2, 5, 1), points(9)
    optimizer = KFACPINN(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        return loss

    with pytest.warns(UserWarning, match="changes the gradients"):
        first = float(optimizer.step(closure))
    assert float(optimizer.step(closure)) < first


# Others that train


@pytest.mark.parametrize("make", [KFACPINN, GaussNewton])
def test_weights_that_another_optimizer_raises_get_their_gradient(make: Any) -> None:
    """Self-adaptive weights: backward() in our closure is theirs, too; points get none."""
    model, x = network(2, 5, 1), points(9).requires_grad_()
    weights = torch.ones(9, 1, dtype=torch.float64, requires_grad=True)
    optimizer = make(model.parameters())
    ascent = torch.optim.SGD([weights], lr=0.1, maximize=True)

    def loss() -> Tensor:
        (du,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (weights * (du[:, :1] - 1).square()).mean() + model(x).square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        ascent.zero_grad()
        value = loss()
        value.backward()
        return value

    (expected,) = torch.autograd.grad(loss(), weights)
    optimizer.step(closure)
    torch.testing.assert_close(weights.grad, expected)
    assert x.grad is None
    ascent.step()
    assert (weights > 1).all()


def test_a_loss_that_another_of_ours_has_stepped_on() -> None:
    """Its graph holds numbers that were moved since."""
    first, second, x = network(2, 5, 1), network(2, 5, 1, seed=1), points(9)
    one, two = KFACPINN(first.parameters()), KFACPINN(second.parameters())

    def backward() -> None:
        one.zero_grad()
        two.zero_grad()
        (first(x) * second(x) - 1).square().mean().backward()

    backward()
    one.step()
    theta = flat(second)
    with pytest.raises(RuntimeError, match="Give one optimizer all parameters"):
        two.step()
    assert torch.equal(flat(second), theta)
    backward()
    two.step()
    assert not torch.equal(flat(second), theta)


# Warnings


def test_warnings_name_the_line_that_led_to_them_and_come_once() -> None:
    model, x = network(2, 5, 1), points(9)

    def u(z: Tensor) -> Tensor:
        return model(z) * z[0, 0].item()

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer = KFACPINN(model.parameters())
        for _ in range(3):
            optimizer.step(lambda: laplacian(u, x) + 1)
            optimizer.step(lambda: nested(model, x))
    texts = [str(each.message) for each in found]
    assert sum("wrong in a formula" in text for text in texts) == 1
    assert sum("will not be trained" in text for text in texts) == 1
    assert {each.filename for each in found} == {__file__}
