"""Closures that return their loss, with or without backward(): residuals are read off its graph.

Every way to write a sum of squares gives the loss, its gradient, and J^T J equal to those of the
residuals; what is no sum of squares is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from row_by_row import derivative
from torch import Tensor, nn

from kfac_pinn import KFACPINN, Batches, GaussNewton, linearize
from kfac_pinn.jacobian.backward import BackwardWatch
from kfac_pinn.jacobian.closure import evaluate, linearize_loss
from kfac_pinn.jacobian.scalar_losses import residual_terms

generator = torch.Generator().manual_seed(0)
X = torch.rand(20, 2, dtype=torch.float64, generator=generator)
Y = torch.rand(20, 1, dtype=torch.float64, generator=generator)
W = torch.rand(20, 1, dtype=torch.float64, generator=generator)
TWO = torch.tensor([2.0, 3.0], dtype=torch.float64)
EVEN = torch.arange(0, 20, 2)

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()
PARAMETERS = list(MODEL.parameters())


def u() -> Tensor:
    return MODEL(X)[:, :1]  # type: ignore[no-any-return]


def pde() -> Tensor:
    x = X.clone().requires_grad_()
    y = MODEL(x)[:, :1]
    return derivative(derivative(y, x)[:, :1], x)[:, :1] - y**2


def psi() -> Tensor:
    """A complex residual, (N,)."""
    return torch.complex(MODEL(X)[:, 0], MODEL(X)[:, 1]) - 1j


def parts() -> Tensor:
    """Those of the complex residual, (N, 2)."""
    return torch.view_as_real(psi())


def of_psi(read: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A loss of one complex residual that is evaluated once."""
    return lambda: read(psi())


def of(read: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    """A loss of one residual that is evaluated once."""
    return lambda: read(pde())


def half(*weighted: tuple[float | Tensor, Tensor]) -> Tensor:
    """The residuals r with 1/2 ||r||^2 = sum of weight times squares."""
    parts = [torch.sqrt(2 * w * torch.ones_like(r)) * r for w, r in weighted]
    return torch.cat([part.reshape(-1) for part in parts])


LOSSES: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "mean": (lambda: (pde() ** 2).mean(), lambda: half((1 / 20, pde()))),
    "sum": (lambda: pde().square().sum(), lambda: half((1, pde()))),
    "product": (of(lambda r: (r * r).mean()), lambda: half((1 / 20, pde()))),
    "weighted product": (of(lambda r: (W * r * r).mean()), lambda: half((W / 20, pde()))),
    "product with weights": (of(lambda r: (r * -W * -r / 3).sum()), lambda: half((W / 3, pde()))),
    "product of equal residuals": (
        lambda: ((u() - Y) * (u() - Y)).mean(),
        lambda: half((1 / 20, u() - Y)),
    ),
    "dot of multiples": (
        of(lambda r: torch.dot((W * r).flatten(), r.flatten() / 20)),
        lambda: half((W / 20, pde())),
    ),
    "einsum with weights": (
        of(lambda r: torch.einsum("n,n,n->", W[:, 0], r[:, 0], r[:, 0])),
        lambda: half((W, pde())),
    ),
    "half": (lambda: 0.5 * pde().pow(2).mean(), lambda: half((1 / 40, pde()))),
    "mse": (lambda: F.mse_loss(u(), Y), lambda: half((1 / 20, u() - Y))),
    "mse, target first": (lambda: nn.MSELoss()(Y, u()), lambda: half((1 / 20, u() - Y))),
    "mse, sum": (lambda: nn.MSELoss(reduction="sum")(u(), Y), lambda: half((1, u() - Y))),
    "mse, none": (
        lambda: (W * F.mse_loss(u(), Y, reduction="none")).mean(),
        lambda: half((W / 20, u() - Y)),
    ),
    "weights": (
        lambda: 3 * pde().square().mean() + F.mse_loss(u(), Y) / 2,
        lambda: half((3 / 20, pde()), (1 / 40, u() - Y)),
    ),
    "norm": (lambda: pde().norm() ** 2, lambda: half((1, pde()))),
    "norms of rows": (
        lambda: (torch.linalg.norm(MODEL(X), dim=1) ** 2).mean(),
        lambda: half((1 / 20, MODEL(X))),
    ),
    "norms of columns, kept": (
        lambda: torch.linalg.norm(MODEL(X), dim=0, keepdim=True).square().sum(),
        lambda: half((1, MODEL(X))),
    ),
    "modulus": (
        lambda: (torch.complex(u(), MODEL(X)[:, 1:2]).abs() ** 2).mean(),
        lambda: half((1 / 20, MODEL(X)[:, :2])),
    ),
    "modulus, squared": (
        lambda: torch.complex(u(), MODEL(X)[:, 1:2]).abs().square().sum(),
        lambda: half((1, MODEL(X)[:, :2])),
    ),
    "fourth power of a modulus": (
        lambda: torch.complex(u(), MODEL(X)[:, 1:2]).abs().pow(4).sum(),
        lambda: half((1, MODEL(X)[:, :2].square().sum(1))),
    ),
    "dot": (of(lambda r: r[:, 0] @ r[:, 0] / 20), lambda: half((1 / 20, pde()))),
    "r.T @ r": (of(lambda r: (r.T @ r).squeeze()), lambda: half((1, pde()))),
    "einsum": (of(lambda r: torch.einsum("ni,ni->", r, r)), lambda: half((1, pde()))),
    "stack": (
        lambda: (TWO * torch.stack([pde().square().mean(), F.mse_loss(u(), Y)])).sum(),
        lambda: half((2 / 20, pde()), (3 / 20, u() - Y)),
    ),
    "dot with weights": (
        lambda: torch.dot(torch.stack([pde().square().mean(), F.mse_loss(u(), Y)]), TWO),
        lambda: half((2 / 20, pde()), (3 / 20, u() - Y)),
    ),
    "cat": (
        lambda: torch.cat([pde() ** 2, 2 * (u() - Y) ** 2]).mean(),
        lambda: half((1 / 40, pde()), (2 / 40, u() - Y)),
    ),
    "sum of a list": (
        lambda: sum([pde().square().mean(), F.mse_loss(u(), Y)], 0.0),  # type: ignore[return-value]
        lambda: half((1 / 20, pde()), (1 / 20, u() - Y)),
    ),
    "indexed": (lambda: (pde() ** 2)[EVEN].mean(), lambda: half((1 / 10, pde()[EVEN]))),
    "masked": (lambda: torch.relu(pde()).square().mean(), lambda: half((1 / 20, pde().relu()))),
    "a system": (lambda: MODEL(X).square().mean(), lambda: half((1 / 60, MODEL(X)))),
    "a system, summed": (
        lambda: MODEL(X).square().sum(1).mean(),
        lambda: half((1 / 20, MODEL(X))),
    ),
    "fourth power": (lambda: (pde() ** 4).mean(), lambda: half((1 / 20, pde() ** 2))),
    "minus minus": (lambda: -(-(pde() ** 2)).mean(), lambda: half((1 / 20, pde()))),
    "in place": (
        lambda: TWO.clone().mul_(torch.stack([pde().square().mean(), u().square().mean()])).sum(),
        lambda: half((2 / 20, pde()), (3 / 20, u())),
    ),
    "h conj(h)": (of_psi(lambda h: (h * h.conj()).real.mean()), lambda: half((1 / 20, parts()))),
    "conj(h) h, reshaped": (
        of_psi(lambda h: (h.conj().view(4, 5) * h.view(4, 5)).sum().real / 3),
        lambda: half((1 / 3, parts())),
    ),
    "|h conj(h)|": (of_psi(lambda h: (h * h.conj()).abs().mean()), lambda: half((1 / 20, parts()))),
    "|h|^2": (of_psi(lambda h: 2 * h.abs().square().sum()), lambda: half((2, parts()))),
    "||h||^2": (of_psi(lambda h: torch.linalg.norm(h) ** 2), lambda: half((1, parts()))),
    "vdot": (of_psi(lambda h: torch.vdot(h, h).real), lambda: half((1, parts()))),
    "vecdot": (of_psi(lambda h: torch.linalg.vecdot(h, h).real), lambda: half((1, parts()))),
    "inner": (of_psi(lambda h: torch.inner(h, h.conj()).real), lambda: half((1, parts()))),
    "h.mH @ h": (
        of_psi(lambda h: (h[:, None].mH @ h[:, None]).real.mean()),
        lambda: half((1, parts())),
    ),
    "real and imaginary": (
        of_psi(lambda h: (h.real**2 + 3 * h.imag**2).mean()),
        lambda: half((1 / 20, parts()[:, 0]), (3 / 20, parts()[:, 1])),
    ),
    "ridge": (
        lambda: F.mse_loss(u(), Y) + 1e-3 * sum(p.square().sum() for p in PARAMETERS),
        lambda: half((1 / 20, u() - Y), *((1e-3, p) for p in PARAMETERS)),
    ),
    "ridge by norms": (
        lambda: F.mse_loss(u(), Y) + 1e-3 * sum(p.norm() ** 2 for p in PARAMETERS[:1]),
        lambda: half((1 / 20, u() - Y), (1e-3, PARAMETERS[0])),
    ),
}

RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "returned": lambda loss: loss,
    "backward": lambda loss: (loss.backward(), loss)[1],
    "detached": lambda loss: (loss.backward(), loss.detach())[1],
    "nothing": lambda loss: loss.backward(),
    "autograd.backward": lambda loss: torch.autograd.backward([loss]),
    "a number": lambda loss: (loss.reshape(1).backward(), loss.item())[1],
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_way_to_write_a_sum_of_squares(name: str) -> None:
    loss, residuals = LOSSES[name]
    found, truth = linearize(loss, PARAMETERS), linearize(lambda: residuals(), PARAMETERS)
    scale = truth.terms[0].scale  # half() has no mean: undo that of a residual
    assert found.loss == pytest.approx(float(loss().detach()), rel=1e-13)
    assert found.loss == pytest.approx(float(found.residual @ found.residual) / 2, rel=1e-12)
    torch.testing.assert_close(found.gradient, truth.gradient / scale**2, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.gramian(), truth.gramian() / scale**2, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("way", RETURNS)
def test_every_way_to_hand_it_over(way: str) -> None:
    loss = LOSSES["weights"][0]
    for p in PARAMETERS:
        p.grad = None
    closure = lambda: RETURNS[way](loss())  # noqa: E731
    found = linearize(closure, PARAMETERS)
    torch.testing.assert_close(found.gradient, linearize(loss, PARAMETERS).gradient)
    assert float(evaluate(closure)) == float(loss())
    assert found.needs_gradients


def test_several_calls_of_backward_add_up() -> None:
    def closure() -> None:
        pde().square().mean().backward()
        (2 * F.mse_loss(u(), Y)).backward()

    whole = linearize(lambda: pde().square().mean() + 2 * F.mse_loss(u(), Y), PARAMETERS)
    torch.testing.assert_close(linearize(closure, PARAMETERS).gramian(), whole.gramian())


def test_derivatives_by_backward_are_no_losses() -> None:
    def closure() -> Tensor:
        x = X.clone().requires_grad_()
        MODEL(x)[:, 0].sum().backward(create_graph=True, inputs=[x])
        assert x.grad is not None
        return x.grad[:, 0].square().mean()

    found = linearize(closure, PARAMETERS)
    assert len(found.residual) == 20


def test_derivatives_by_backward_without_inputs() -> None:
    """A loss would be skipped; these are wanted, by the closure itself."""

    def slopes(**options: Any) -> Tensor:
        x = X.clone().requires_grad_()
        y = MODEL(x)[:, 0]
        if options:
            y.sum().backward(**options)
        else:
            y.backward(torch.ones_like(y))
        assert x.grad is not None
        return x.grad[:, 0]

    (truth,) = torch.autograd.grad(MODEL(Z := X.clone().requires_grad_())[:, 0].sum(), Z)
    weighted = linearize(lambda: (slopes() * u()[:, 0]).square().mean(), PARAMETERS)
    expected = linearize(lambda: (truth[:, 0] * u()[:, 0]).square().mean(), PARAMETERS)
    torch.testing.assert_close(weighted.gramian(), expected.gramian())
    found = linearize(lambda: slopes(create_graph=True).square().mean(), PARAMETERS)
    x = X.clone().requires_grad_()
    nested = linearize(lambda: derivative(MODEL(x)[:, 0], x)[:, 0].square().mean(), PARAMETERS)
    torch.testing.assert_close(found.gramian(), nested.gramian())


def test_constants_are_no_residuals() -> None:
    found = linearize(lambda: 1.5 + pde().square().mean() + Y.mean() - 0, PARAMETERS)
    assert found.loss == pytest.approx(1.5 + float(Y.mean() + pde().square().mean()))
    torch.testing.assert_close(
        found.gradient, linearize(LOSSES["mean"][0], PARAMETERS).gradient, rtol=1e-12, atol=1e-14
    )
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)  # a leaf that is not trained

    def closure() -> None:
        (zero + pde().square().mean()).backward()

    assert len(linearize(closure, PARAMETERS).residual) == 20


ROBUST: dict[str, Callable[[], Tensor]] = {
    "huber": lambda: F.huber_loss(u(), Y, delta=0.1),
    "smooth l1": lambda: F.smooth_l1_loss(u(), Y, beta=0.1),
    "l1": lambda: 3 * F.l1_loss(u(), Y),
    "log cosh": lambda: torch.log(torch.cosh(u() - Y)).sum(),
    "charbonnier": lambda: torch.sqrt((u() - Y) ** 2 + 1e-2).mean(),
}


@pytest.mark.parametrize("name", ROBUST)
def test_robust_losses(name: str) -> None:
    loss = ROBUST[name]
    found = linearize(loss, PARAMETERS)
    slopes = torch.autograd.grad(loss(), PARAMETERS)
    truth = torch.cat([slope.reshape(-1) for slope in slopes])
    assert found.loss == pytest.approx(float(loss().detach()))
    torch.testing.assert_close(found.gradient, truth, rtol=1e-10, atol=1e-12)
    y = (u() - Y).detach()
    step = torch.rand(len(found.gradient), dtype=torch.float64, generator=generator) * 1e-2
    bound = found.loss + found.gradient @ step + (found @ step).square().sum() / 2
    J = linearize(lambda: u() - Y, PARAMETERS)
    moved = y + 20**0.5 * (J @ step)[:, None]  # the linear model
    rho = {
        "huber": lambda r: F.huber_loss(r, 0 * r, delta=0.1),
        "smooth l1": lambda r: F.smooth_l1_loss(r, 0 * r, beta=0.1),
        "l1": lambda r: 3 * r.abs().mean(),
        "log cosh": lambda r: r.cosh().log().sum(),
        "charbonnier": lambda r: (r**2 + 1e-2).sqrt().mean(),
    }[name]
    assert float(rho(moved)) <= float(bound) + 1e-12  # the parabola lies above


CURVED: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "root": (lambda: F.mse_loss(u(), Y).sqrt(), lambda: half((0.05, u() - Y))),
    "norm": (lambda: 3 * pde().norm(), lambda: half((1, pde()))),
    "relative norm": (lambda: (u() - Y).norm() / Y.norm(), lambda: half((1, u() - Y))),
    "logarithm": (lambda: pde().square().mean().log(), lambda: half((1, pde()))),
    "decades": (lambda: (1e-3 + pde().square().mean()).log10(), lambda: half((1, pde()))),
    "power": (lambda: pde().square().sum() ** 0.3, lambda: half((1, pde()))),
}


@pytest.mark.parametrize("name", CURVED)
def test_functions_of_one_sum_of_squares(name: str) -> None:
    """Gradient of the loss, and a Gramian that is a multiple of that of the squares alone."""
    loss, residuals = CURVED[name]
    found, truth = linearize(loss, PARAMETERS), linearize(lambda: residuals(), PARAMETERS)
    slopes = torch.cat([s.reshape(-1) for s in torch.autograd.grad(loss(), PARAMETERS)])
    assert found.loss == pytest.approx(float(loss().detach()), rel=1e-13)
    torch.testing.assert_close(found.gradient, slopes, rtol=1e-10, atol=1e-13)
    slope = slopes.norm() / truth.gradient.norm()
    torch.testing.assert_close(found.gramian(), slope * truth.gramian(), rtol=1e-9, atol=1e-12)


OUTER: dict[str, Callable[[], Tensor]] = {
    "norms of rows": lambda: torch.linalg.norm(MODEL(X), dim=1).mean() + F.mse_loss(u(), Y).sqrt(),
    "a modulus": of_psi(lambda h: h.abs().mean()),
    "power of a modulus": lambda: ((u() - Y).abs() ** 1.5).mean(),
    "logsumexp": lambda: torch.logsumexp(pde().square(), 0).sum(),
    "welsch": lambda: (1 - torch.exp(-pde().square() / 2)).mean(),
    "cauchy": lambda: torch.log1p(pde() ** 2).mean() + Y.sum(),
    "clamped": lambda: pde().square().clamp(max=0.1).mean(),
    "exponential": lambda: pde().square().mean().exp(),
    "roots and squares": lambda: u().norm() + 3 * pde().square().mean().sqrt() + (u() ** 2).sum(),
}


@pytest.mark.parametrize("name", OUTER)
def test_functions_of_squares_have_their_gradient(name: str) -> None:
    found = linearize(OUTER[name], PARAMETERS)
    slopes = torch.autograd.grad(OUTER[name](), PARAMETERS)
    truth = torch.cat([slope.reshape(-1) for slope in slopes])
    assert found.loss == pytest.approx(float(OUTER[name]().detach()))
    torch.testing.assert_close(found.gradient, truth, rtol=1e-10, atol=1e-12)


def test_the_root_of_squares_that_vanish() -> None:
    """autograd divides by zero; the other residuals train all the same."""
    zero = lambda: (u() - u().detach()).square().mean().sqrt()  # noqa: E731
    found = linearize(lambda: zero() + pde().square().mean(), PARAMETERS)
    truth = linearize(lambda: pde().square().mean(), PARAMETERS)
    torch.testing.assert_close(found.gradient, truth.gradient)
    torch.testing.assert_close(found.gramian(), truth.gramian())


def test_a_root_of_a_mean_is_not_shared_out() -> None:
    halves = [lambda s=s: F.mse_loss(MODEL(X[s])[:, :1], Y[s]).sqrt() for s in (EVEN, EVEN[1:])]
    with pytest.raises(ValueError, match="cannot share out"):
        KFACPINN(PARAMETERS).step(Batches(halves))


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_a_robust_loss_in_single_precision_to_the_end(kind: Any) -> None:
    """log(cosh(r)) is rounded as a number near 1: no difference between loss and residuals."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.linspace(0, 1, 20)[:, None]
    optimizer = kind(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(25):
            optimizer.zero_grad()
            loss = torch.log(torch.cosh(model(x) - x.sin())).mean()
            loss.backward()
            optimizer.step()
    assert float(loss) < 2 * torch.finfo(loss.dtype).eps  # of a cosh near 1


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "another norm": (lambda: pde().norm(3), "LinalgVectorNorm.*not Euclid"),
    "product": (lambda: (pde() * u()).mean(), "Mul"),
    "products of others": (lambda: ((u() - Y) * (u() - 2 * Y)).mean(), "Mul"),
    "a transposed product": (lambda: (pde() * pde().T).mean(), "Mul"),
    "exponential": (lambda: MODEL(X).exp().mean(), "Exp"),
    "falling": (lambda: 1 / (1 + pde().square().mean()), "negative weight|Reciprocal"),
    "cosine of": (lambda: MODEL(X).square().exp().log().cos().mean(), "Cos"),
    "under a function": (lambda: (1 + MODEL(X).cos()).log().mean(), "Log"),
    "negative": (lambda: -pde().square().mean(), "negative weight"),
    "linear": (lambda: MODEL(X).mean(), "Addmm"),
    "largest": (lambda: pde().square().max(), "Max.*not smooth"),
    "a complex square": (of_psi(lambda h: (h * h).real.mean()), "Mul"),
    "a complex power": (of_psi(lambda h: (h**2).real.mean()), "Pow"),
    "a complex product": (of_psi(lambda h: torch.dot(h, h).real), "Dot"),
    "entropy": (lambda: F.binary_cross_entropy_with_logits(u(), Y), "BinaryCrossEntropy"),
    "uncertainty": (
        lambda: (-PARAMETERS[-1][0]).exp() * pde().square().mean(),
        "Mul.*weight that is trained.*torch.log.*another optimizer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_sum_of_squares_is_named(name: str) -> None:
    loss, says = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){says}.*ConvexLoss|negative weight"):
        linearize(loss, PARAMETERS)


def test_a_residual_that_is_a_loss_already() -> None:
    with pytest.warns(UserWarning, match=r"shape \(1,\).*squared once more.*shape \(\)"):
        linearize(lambda: pde().square().mean().reshape(1), PARAMETERS)


def test_a_loss_without_a_graph() -> None:
    with pytest.raises(ValueError, match="carries no gradient"):
        linearize(lambda: pde().square().mean().detach(), PARAMETERS)
    with pytest.raises(TypeError, match="must return its residuals"):
        linearize(lambda: pde().square().mean().item(), PARAMETERS)
    other = nn.Linear(2, 1).double()
    with pytest.raises(ValueError, match="does not depend on any trained parameter"):
        linearize(lambda: other(X).square().mean(), PARAMETERS)


def test_the_watch_keeps_graphs_without_a_closure() -> None:
    watch = BackwardWatch(PARAMETERS)
    watch.start()
    try:
        for p in PARAMETERS:
            p.grad = None
        loss = LOSSES["weights"][0]()
        loss.backward()
        with torch.no_grad():
            u()
        with pytest.raises(ZeroDivisionError):
            1 / 0
        assert watch.losses == [loss]
        found = linearize_loss(watch.losses, PARAMETERS)
        slopes = torch.cat([p.grad.reshape(-1) for p in PARAMETERS])  # type: ignore[union-attr]
        torch.testing.assert_close(found.gradient, slopes, rtol=1e-12, atol=1e-14)
        watch.clear()
        assert watch.loss is None
    finally:
        watch.stop()
    loss = LOSSES["mean"][0]()
    loss.backward()
    assert not watch.losses
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_terms_add_up_to_the_loss() -> None:
    loss = LOSSES["ridge"][0]()
    terms = residual_terms(loss, PARAMETERS)
    torch.testing.assert_close(torch.stack([t.loss() for t in terms]).sum(), loss)


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_an_lbfgs_closure_trains(kind: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = kind(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), Y) + model(Y.expand(20, 2)).square().mean()
        loss.backward()
        return loss

    first = float(closure())
    for _ in range(5):
        optimizer.step(closure)
    assert float(closure()) < 0.5 * first
