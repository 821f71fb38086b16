"""Where a part of u would keep its value and lose its derivative: an error, or the right zero."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nested_autograd import derivatives_along_lines
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kfac_pinn import KFACPINN, gradient, laplacian, partial, taylor
from kfac_pinn.notices import NOTICES

x = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def under_no_grad(z: Any) -> Any:
    with torch.no_grad():
        return model(z)


def partly_under_no_grad(z: Any) -> Any:
    with torch.inference_mode():
        scale = torch.sin(z[:, :1])
    return scale * model(z)


def through_numpy(z: Any) -> Any:
    return torch.from_numpy(np.sin(z.detach().numpy()))[:, :1] * model(z)


def added_in_place(z: Any) -> Any:
    y = torch.zeros(6, 1, dtype=torch.float64)
    y.add_(z[:, :1])
    return y + 0 * z[:, :1]


def copied_in_place(z: Any) -> Any:
    y = torch.zeros(6, 1, dtype=torch.float64)
    y.copy_(z[:, :1])
    return y + 0 * z[:, :1]


def written_by_index(z: Any) -> Any:
    y = torch.zeros(6, 2, dtype=torch.float64)
    y[:, :1] += z[:, :1]
    return y


PLAIN = "plain tensor.*lambda z: model\\(z\\), not model\\(x\\).*full_like"
LOST = "keeps its value and loses its derivative"
NUMPY = "torch.sin\\(x\\) for np.sin\\(x\\)"
NO_GRAD = "under torch.no_grad\\(\\).*parameters"

SILENT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "the argument is ignored": (lambda z: model(x), PLAIN),
    "a constant": (lambda z: torch.ones(6, 1), PLAIN),
    "the value": (lambda z: model(z.value), PLAIN),
    "data": (lambda z: model(z.data), LOST),
    "a part is data": (lambda z: model(z) * z.data[:, :1], LOST),
    "a comparison": (lambda z: (z[:, :1] > 0.5).double(), PLAIN),
    "detached": (lambda z: model(z).detach(), LOST),
    "a part is detached": (lambda z: model(z) + torch.sin(z[:, :1]).detach(), LOST),
    "computed from what is detached": (lambda z: z / (1 + z.detach().norm(dim=1)[:, None]), LOST),
    "detached copies": (lambda z: z.clone().detach().requires_grad_(), LOST),
    "detached in a list": (lambda z: torch.cat([z, z.detach()], 1), LOST),
    "detached in a choice": (lambda z: torch.where(z > 0.5, z, z.detach()), LOST),
    "detached as a weight": (lambda z: F.linear(z, z.detach()), LOST),
    "no_grad": (under_no_grad, NO_GRAD),
    "inference_mode": (partly_under_no_grad, NO_GRAD),
    "checkpoint": (lambda z: checkpoint(model, z, use_reentrant=True), "use_reentrant=False"),
    "NumPy": (lambda z: np.sin(z), "np.sin of.*" + NUMPY),
    "NumPy in a part": (lambda z: np.exp(z[:, :1]) * model(z), "np.exp of.*" + NUMPY),
    "NumPy's lists": (lambda z: np.concatenate([z, z]), NUMPY),
    "NumPy's arrays": (lambda z: torch.from_numpy(np.asarray(z)), NUMPY),
    "to NumPy": (lambda z: torch.from_numpy(np.sin(z.numpy())), NUMPY),
    "detached to NumPy": (through_numpy, NUMPY),
    "math": (lambda z: math.sin(z[0, 0]) * z, NUMPY),
    "float": (lambda z: float(z[0, 0]) * z, NUMPY),
    "int": (lambda z: int(z[0, 0]) * z, NUMPY),
    "float of detached": (lambda z: float(z.detach()[0, 0]) * z, NUMPY),
    "tensor": (lambda z: torch.tensor(z), "torch.stack"),
    "as_tensor": (lambda z: torch.as_tensor(z), "torch.stack"),
    "tensor of a list": (lambda z: torch.tensor(list(z[:, 0])), "torch.stack"),
    "written into a plain tensor": (written_by_index, "cannot hold derivatives"),
    "added to a plain tensor": (added_in_place, "y = y \\+ z for y.add_\\(z\\)"),
    "copied to a plain tensor": (copied_in_place, "cannot hold derivatives"),
}


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("operator", [laplacian, gradient, taylor])
def test_a_lost_derivative_is_an_error(name: str, operator: Callable[..., Any]) -> None:
    u, message = SILENT[name]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=f"(?s){message}"):
        operator(u, x)


def stabilised(z: Any) -> Any:
    """Looks at values, to choose and to keep statistics."""
    assert z.detach().abs().max() < 2 and bool(z[0, 0] < 2)
    with torch.no_grad():
        model[0].seen = z.detach().mean(0)
    mask = (z.detach() > 0.5) & (z < 2)
    return torch.where(mask, model(z), z[:, :1] ** 2) * mask


RIGHT: dict[str, Callable[[Any], Any]] = {
    "values that choose": stabilised,
    "floor": lambda z: torch.floor(3 * z) * z,
    "sign and round": lambda z: torch.sign(z - 0.5) * z**2 + torch.round(z),
    "indices": lambda z: z.gather(1, z.argmax(1, keepdim=True)) ** 2,
    "a constant that says so": lambda z: torch.full_like(z[:, :1], 3.0),
    "zeros": lambda z: 2.0 + 0 * z[:, :1],
    "added up": lambda z: sum((z[:, :1] ** k for k in range(4)), torch.zeros(6, 1).double()),
    "arrays are constants": lambda z: np.array([[1.0, 2.0]]) * z**2 + z * np.float64(2.0),
    "constants under no_grad": lambda z: torch.no_grad()(lambda: model(x))() * z**2,
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_has_no_derivative_is_zero(name: str) -> None:
    u, v = RIGHT[name], torch.eye(2, dtype=torch.float64)[:, None].expand(2, 6, 2)
    expected = derivatives_along_lines(as_tensors(u), x, v, 3)
    torch.testing.assert_close(list(taylor(u, x, 3)), expected, rtol=1e-12, atol=1e-12)


def as_tensors(u: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """With arrays as tensors: NumPy's product of an array and a tensor has no graph."""

    def evaluate(z: Tensor) -> Tensor:
        if u is RIGHT["arrays are constants"]:
            return torch.tensor([[1.0, 2.0]]) * z**2 + z * 2.0
        return u(z)

    return evaluate


def plus_equals(z: Any) -> Any:
    y = torch.zeros(6, 1, dtype=torch.float64)
    y += model(z)
    y *= z[:, :1]
    return y


def test_a_sum_that_starts_plain() -> None:
    """y += z binds the name to the result, whatever that is."""
    expected = laplacian(lambda z: model(z) * z[:, :1], x)
    torch.testing.assert_close(laplacian(plus_equals, x), expected)


@pytest.mark.parametrize("method", ["item", "tolist"])
def test_numbers_are_remarked_on(method: str) -> None:
    for look in (lambda z: z, lambda z: z.detach()):
        NOTICES.forget_lines()  # a run hears of a line once
        with pytest.warns(UserWarning, match=f"{method}.*wrong in a formula"):
            laplacian(lambda z: [getattr(look(z)[0, 0], method)()] and model(z), x)  # noqa: B023


def test_everything_may_stand_under_no_grad() -> None:
    """Evaluated without gradients as a whole, as line searches do, nothing is lost."""
    expected = laplacian(model, x).detach()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(laplacian(under_no_grad, x), expected)


def test_a_forgotten_argument_does_not_train() -> None:
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    with pytest.raises(ValueError, match="let u use its argument"):
        KFACPINN(model.parameters()).step(lambda: laplacian(lambda z: model(x), x) + 1)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)


# --- what is no function of the points --------------------------------------------------------


class TwoArguments(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return model(torch.cat([x, t], 1))


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(model)


def traced() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, x)


MISUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a tensor for u": (lambda: laplacian(model(x), x), "found Tensor.*laplacian\\(model, x\\)"),
    "None for u": (lambda: laplacian(None, x), "function of the points.*found NoneType"),
    "exchanged": (lambda: gradient(x, model), "function comes first|function of the points"),
    "two arguments": (
        lambda: laplacian(TwoArguments(), x),
        "one argument.*lambda z: model\\(z\\[:, :1\\], z\\[:, 1:\\]\\)",
    ),
    "a function of three": (
        lambda: laplacian(lambda a, b, c: a, torch.rand(4, 3)),
        "model\\(z\\[:, 0:1\\], z\\[:, 1:2\\], z\\[:, 2:3\\]\\)",
    ),
    "a tuple": (lambda: laplacian(lambda z: (model(z), z), x), "found tuple.*u\\(x\\)\\[0\\]"),
    "a dict": (lambda: laplacian(lambda z: {"u": model(z)}, x), "found dict.*u\\(x\\)\\['u'\\]"),
    "None returned": (lambda: laplacian(lambda z: None, x), "found NoneType"),
    "scripted": (lambda: laplacian(scripted(), x), "torch.jit.*original module"),
    "traced": (lambda: laplacian(traced(), x), "torch.jit.*original module"),
    "scripted inside": (lambda: laplacian(lambda z: scripted()(z) * 2, x), "original module"),
    "vmap": (lambda: laplacian(lambda z: torch.vmap(model)(z), x), "not through.*vmap"),
    "Variable": (lambda: laplacian(lambda z: torch.autograd.Variable(z), x), "does not take jets"),
    "integer points": (lambda: laplacian(model, x.long()), "int64: x.double"),
    "points in a list": (lambda: laplacian(model, [[0.0, 1.0]]), "found list.*torch.tensor"),
    "points of NumPy": (lambda: laplacian(model, x.numpy()), "found ndarray.*torch.tensor"),
    "points of one axis": (lambda: laplacian(model, x[:, 0]), "x\\[:, None\\]"),
    "an order": (lambda: taylor(model, x, 1.5), "integer >= 1, found 1.5"),  # type: ignore[arg-type]
    "directions in a list": (
        lambda: taylor(model, x, 1, [[1.0, 0.0]]),  # type: ignore[arg-type]
        "directions must be a floating point tensor \\(D, 2\\), found list",
    ),
    "integer directions": (lambda: taylor(model, x, 1, torch.eye(2).long()), "found torch.int64"),
    "weights by name": (lambda: taylor(model, x, weights="one"), "numbers or tensors"),
    "axes by name": (lambda: partial(model, x, "xt"), "axes must be integers"),  # type: ignore[arg-type]
    "axes of floats": (lambda: partial(model, x, (0.0,)), "axes must be integers"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_is_named(name: str) -> None:
    call, message = MISUSED[name]
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=f"(?s){message}"):
        call()


def test_errors_of_u_itself_pass_through() -> None:
    def broken(z: Any) -> Any:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        laplacian(broken, x)
