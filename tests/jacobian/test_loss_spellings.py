"""Further ways to write a loss: r . M r, sums of products, other norms, weights that are trained.

The truth is J^T (M + M^T) J by rows of nested autograd for quadratic forms, and autograd's gradient
for everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfac_pinn import KFACPINN, Affordable, Batches, laplacian, linearize

generator = torch.Generator().manual_seed(0)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


X, Y, W = uniform(20, 2), uniform(20, 3), uniform(20, 3)
B = normal(20, 20)
M, LOW = B @ B.T / 20, B[:, :4] @ B[:, :4].T
SKEW = M + (B - B.T) / 10
EACH = (N := normal(20, 3, 3)) @ N.mT + 1e-1 * torch.eye(3, dtype=torch.float64)
C = torch.eye(3, dtype=torch.float64) + torch.ones(3, 3) / 2
TWO = torch.tensor([0.5, 2.0], dtype=torch.float64)

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()
PARAMETERS = list(MODEL.parameters())


def r() -> Tensor:
    """Three equations at twenty points."""
    return MODEL(X) - Y


def v() -> Tensor:
    return r()[:, 0]


def both() -> tuple[Tensor, Tensor]:
    return r()[:, 0].square().mean(), r()[:, 1].square().mean()


def slopes(loss: Callable[[], Tensor], parameters: list[Any] = PARAMETERS) -> Tensor:
    found = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([slope.reshape(-1) for slope in found])


def rows(residual: Tensor) -> Tensor:
    """J of all entries, by one backward pass each."""
    found = [
        torch.autograd.grad(each, PARAMETERS, retain_graph=True) for each in residual.reshape(-1)
    ]
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in found])


def of_v(read: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: read(v())


def of_r(read: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return lambda: read(r())


def alike(matrix: Tensor) -> Tensor:
    """One matrix for the vectors of all points, on r.reshape(-1)."""
    return torch.kron(torch.eye(20, dtype=torch.float64), matrix)


# loss, its residual, the matrix on the residual's entries
FORMS: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], Tensor]] = {
    "dot": (of_v(lambda a: torch.dot(a, M @ a)), v, M),
    "a @ M @ a": (of_v(lambda a: a @ M @ a), v, M),
    "M first": (of_v(lambda a: (M @ a) @ a / 3), v, M / 3),
    "a column": (of_v(lambda a: (a[:, None].T @ M @ a[:, None]).squeeze()), v, M),
    "entry by entry": (of_v(lambda a: (a * (M @ a)).mean()), v, M / 20),
    "einsum": (of_v(lambda a: torch.einsum("i,ij,j->", a, M, a)), v, M),
    "chain": (of_v(lambda a: torch.linalg.multi_dot([a, M, a])), v, M),
    "two matrices": (of_v(lambda a: a @ (B.T @ (B @ a))), v, B.T @ B),
    "evaluated twice": (lambda: v() @ M @ v(), v, M),
    "not symmetric": (of_v(lambda a: a @ SKEW @ a), v, SKEW),
    "of low rank": (of_v(lambda a: a @ LOW @ a), v, LOW),
    "sparse": (of_v(lambda a: a @ torch.sparse.mm(M.to_sparse(), a[:, None])[:, 0]), v, M),
    "sparse, a vector": (of_v(lambda a: a @ (M.to_sparse() @ a)), v, M),
    "inverse": (of_v(lambda a: a @ torch.linalg.solve(M, a)), v, torch.linalg.inv(M)),
    "points, right": (of_r(lambda a: ((a @ C) * a).sum(1).mean()), r, alike(C) / 20),
    "points, linear": (of_r(lambda a: (F.linear(a, C) * a).mean()), r, alike(C) / 60),
    "points, left": (
        of_r(lambda a: (a * (M @ a)).sum()),
        r,
        torch.kron(M, torch.eye(3, dtype=torch.float64)),
    ),
    "points, einsum": (
        of_r(lambda a: torch.einsum("bi,ij,bj->b", a, C, a).mean()),
        r,
        alike(C) / 20,
    ),
    "points, weights": (
        of_r(lambda a: (W[:, 0] * torch.einsum("bi,ij,bj->b", a, C, a)).sum()),
        r,
        torch.block_diag(*(w * C for w in W[:, 0])),
    ),
    "points, batch": (
        of_r(lambda a: (a[:, None, :] @ C @ a[:, :, None]).mean()),
        r,
        alike(C) / 20,
    ),
    "points, einsum to one number": (
        of_r(lambda a: torch.einsum("bi,ij,bj->", a, C, a)),
        r,
        alike(C),
    ),
    "trace": (of_r(lambda a: torch.trace(a.T @ a) / 20), r, torch.eye(60).double() / 20),
    "trace of a form": (
        of_r(lambda a: torch.trace(a.T @ M @ a)),
        r,
        torch.kron(M, torch.eye(3, dtype=torch.float64)),
    ),
    "trace of a form with weights": (
        of_r(lambda a: (C * (a.T @ M @ a)).sum()),
        r,
        torch.kron(M, C),
    ),
    "diagonal of all products": (
        of_r(lambda a: (a @ a.T).diagonal().mean()),
        r,
        torch.eye(60, dtype=torch.float64) / 20,
    ),
    "weighted products of columns": (of_r(lambda a: (C * (a.T @ a)).sum()), r, alike(C)),
    "a matrix a point": (
        of_r(lambda a: torch.einsum("bi,bij,bj->b", a, EACH, a).mean()),
        r,
        torch.block_diag(*EACH) / 20,
    ),
    "a matrix a point, entry by entry": (
        of_r(lambda a: (a * (EACH @ a[:, :, None])[:, :, 0]).sum()),
        r,
        torch.block_diag(*EACH),
    ),
    "einsum, matrix first": (of_v(lambda a: torch.einsum("ij,i,j->", M, a, a)), v, M),
    "vecdot": (of_v(lambda a: torch.linalg.vecdot(a, M @ a)), v, M),
    "half, a number of a matrix": (
        of_v(lambda a: 0.5 * (a[:, None].T @ (M @ a[:, None]))[0, 0] / 20),
        v,
        M / 40,
    ),
    "by Cholesky factors": (
        of_v(lambda a: a @ torch.cholesky_solve(a[:, None], torch.linalg.cholesky(M))[:, 0]),
        v,
        torch.linalg.inv(M),
    ),
    "batch of squares": (
        of_r(lambda a: (a[:, None, :] @ a[:, :, None]).mean()),
        r,
        torch.eye(60, dtype=torch.float64) / 20,
    ),
    "vmap of dot": (
        lambda: torch.vmap(lambda a, b: torch.dot(a - b, a - b))(MODEL(X), Y).mean(),
        r,
        torch.eye(60, dtype=torch.float64) / 20,
    ),
}


@pytest.mark.filterwarnings("ignore:the points of")
@pytest.mark.parametrize("name", FORMS)
def test_quadratic_forms(name: str) -> None:
    loss, residual, matrix = FORMS[name]
    found, J = linearize(loss, PARAMETERS), rows(residual())
    assert found.loss == pytest.approx(float(loss().detach()), rel=1e-12)
    torch.testing.assert_close(found.gradient, slopes(loss), rtol=1e-9, atol=1e-12)
    truth = J.T @ (matrix + matrix.T) @ J
    torch.testing.assert_close(found.gramian(), truth, rtol=1e-9, atol=1e-11)


def test_a_transposed_residual_is_no_square() -> None:
    """sum_ij r_ij r_ji has the values of a product of r with itself, in another order."""
    square = lambda: MODEL(X)[:3]  # noqa: E731
    with pytest.raises(ValueError, match="Mul"):
        linearize(lambda: (square() * square().T).sum(), PARAMETERS)
    with pytest.raises(ValueError, match="Bmm"):
        linearize(lambda: ((a := square())[:, None, :] @ a.T[:, :, None]).sum(), PARAMETERS)


SQUARES: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    "addcmul": (of_v(lambda a: torch.addcmul(torch.zeros(20), a, a, value=0.5).mean()),
                lambda: v() / 20**0.5),
    "addcmul to squares": (
        of_r(lambda a: torch.addcmul(a[:, 1] ** 2, a[:, 0], a[:, 0], value=3).sum()),
        lambda: torch.cat([r()[:, 1], 3**0.5 * r()[:, 0]]) * 2**0.5,
    ),
    "addcmul of losses": (
        lambda: torch.addcmul(both()[0], both()[1], TWO[1]),
        lambda: torch.cat([v(), 2**0.5 * r()[:, 1]]) / 10**0.5,
    ),
    "addcdiv": (
        lambda: torch.addcdiv(both()[0], both()[1], TWO[0]),
        lambda: torch.cat([v(), 2**0.5 * r()[:, 1]]) / 10**0.5,
    ),
    "lerp": (
        lambda: torch.lerp(*both(), 0.25),
        lambda: torch.cat([0.75**0.5 * v(), 0.5 * r()[:, 1]]) / 10**0.5,
    ),
    "addmm": (
        of_r(lambda a: torch.addmm(a[:, 1:2].T @ a[:, 1:2], a[:, :1].T, a[:, :1], alpha=2).sum()),
        lambda: torch.cat([r()[:, 1], 2**0.5 * r()[:, 0]]) * 2**0.5,
    ),
    "baddbmm": (
        of_v(lambda a: torch.baddbmm((a @ a).reshape(1, 1, 1), a[None, None], a[None, :, None])[0]
             .squeeze()),
        lambda: 2 * v(),
    ),
    "addmv": (
        lambda: torch.addmv(both()[0].reshape(1), torch.stack(both())[None], TWO)[0],
        lambda: torch.cat([1.5**0.5 * v(), 2**0.5 * r()[:, 1]]) / 10**0.5,
    ),
    "weights @ losses": (
        lambda: torch.stack(both()) @ TWO,
        lambda: torch.cat([0.5**0.5 * v(), 2**0.5 * r()[:, 1]]) / 10**0.5,
    ),
    "dist": (lambda: torch.dist(MODEL(X), Y) ** 2, lambda: 2**0.5 * r()),
    "norm of differences": (
        lambda: torch.norm(r(), p=2, dim=1, keepdim=True).square().sum(),
        lambda: 2**0.5 * r(),
    ),
    "four-norm": (lambda: torch.linalg.vector_norm(r(), 4) ** 4, lambda: 2**0.5 * r() ** 2),
    "pooled": (lambda: F.avg_pool1d(v().square()[None], 4).sum(), lambda: v() / 2**0.5),
    "smoothed": (
        lambda: F.conv1d(F.pad(v().square(), (1, 1))[None, None], torch.ones(1, 1, 3).double())
        .sum(),
        lambda: v() * (2 * torch.tensor([2.0] + 18 * [3.0] + [2.0]).double()).sqrt(),
    ),
    "by cells": (
        lambda: torch.zeros(5).double().scatter_add(0, torch.arange(20) % 5, v() ** 2).sum(),
        lambda: 2**0.5 * v(),
    ),
    "by cells, index": (
        lambda: torch.zeros(5).double().index_add(0, torch.arange(20) % 5, v() ** 2).mean(),
        lambda: (2 / 5) ** 0.5 * v(),
    ),
    "windows": (lambda: v().square().unfold(0, 4, 4).mean(1).sum(), lambda: v() / 2**0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SQUARES)
def test_sums_of_squares(name: str) -> None:
    loss, residual = SQUARES[name]
    found, J = linearize(loss, PARAMETERS), rows(residual())
    assert found.loss == pytest.approx(float(loss().detach()), rel=1e-12)
    torch.testing.assert_close(found.gradient, slopes(loss), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.gramian(), J.T @ J, rtol=1e-10, atol=1e-12)


FUNCTIONS: dict[str, Callable[[], Tensor]] = {
    "distance": lambda: torch.dist(MODEL(X), Y),
    "distances of points": lambda: F.pairwise_distance(MODEL(X), Y).mean(),
    "hypotenuse": of_r(lambda a: torch.hypot(a[:, 0], a[:, 1]).mean()),
    "product of losses": lambda: math.prod(both()),
    "geometric mean": lambda: torch.stack(both()).prod().sqrt(),
    "sigmoid": lambda: torch.sigmoid(r().square().mean()),
    "saturating": lambda: torch.tanh(r().square()).mean() + torch.atan(r().square()).mean(),
    "geman-mcclure": of_r(lambda a: ((s := a**2) / (1 + s)).mean()),
    "inverse root": lambda: -(r().square() + 1e-2).rsqrt().mean(),
    "larger of two": lambda: torch.maximum(*both()),
    "softplus of a loss": lambda: F.softplus(r().square().mean()),
    "log-sum of two": lambda: torch.logaddexp(*both()),
    "log of a robust loss": lambda: F.huber_loss(MODEL(X), Y, delta=0.1).log(),
    "root of a form": of_v(lambda a: (a @ M @ a).sqrt()),
}


@pytest.mark.filterwarnings("ignore:the points of")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_squares(name: str) -> None:
    loss = FUNCTIONS[name]
    found = linearize(loss, PARAMETERS)
    assert found.loss == pytest.approx(float(loss().detach()))
    torch.testing.assert_close(found.gradient, slopes(loss), rtol=1e-10, atol=1e-12)


LOG_COSH: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": lambda a: (a + F.softplus(-2 * a) - math.log(2)).mean(),
    "softplus first": lambda a: (F.softplus(-2.0 * a) + a).mean() - math.log(2),
    "of moduli": lambda a: ((m := a.abs()) + F.softplus(-2 * m) - math.log(2)).mean(),
    "scaled": lambda a: ((s := 3 * a) + F.softplus(-2 * s)).mean() - math.log(2),
    "with beta": lambda a: (a + F.softplus(-2 * a, beta=3)).mean() - math.log(2) / 3,
    "logaddexp": lambda a: (torch.logaddexp(a, -a) - math.log(2)).mean(),
    "moduli, log1p": lambda a: (
        ((m := a.abs()) + torch.log1p(torch.exp(-2 * m))).mean() - math.log(2)
    ),
}


@pytest.mark.parametrize("size", [1.0, 1e-9, 40.0])
@pytest.mark.parametrize("name", LOG_COSH)
def test_log_cosh(name: str, size: float) -> None:
    loss = lambda: LOG_COSH[name](size * r())  # noqa: E731
    found = linearize(loss, PARAMETERS)
    assert found.loss == pytest.approx(float(loss().detach()), rel=1e-7, abs=1e-15)
    atol = 1e-12 * size
    torch.testing.assert_close(found.gradient, slopes(loss), rtol=1e-9, atol=atol)
    if name not in ("scaled", "with beta", "moduli, log1p"):
        cosh = linearize(lambda: torch.log(torch.cosh(size * r())).mean(), PARAMETERS)
        if size >= 1:
            torch.testing.assert_close(found.gramian(), cosh.gramian(), rtol=1e-6, atol=1e-10)


REFUSED: dict[str, tuple[Callable[[], Tensor], str]] = {
    "matrices on both sides": (
        of_r(lambda a: torch.trace(C @ a.T @ M @ a)),
        "Mm.*constant, square",
    ),
    "a negative form": (
        of_v(lambda a: a @ (M - torch.eye(20, dtype=torch.float64)) @ a),
        "eigenvalue -.*is negative",
    ),
    "a weighted form": (of_v(lambda a: (W[:, 0] * a * (M @ a)).sum()), "Mul|differ"),
    "a form, weights last": (of_v(lambda a: (a * (M @ a)) @ W[:, 0]), "differ between the entries"),
    "largest": (lambda: r().square().amax(), "Amax.*not smooth.*logsumexp"),
    "largest loss": (lambda: torch.stack(both()).max(), "Max.*not smooth"),
    "quantile": (lambda: torch.quantile(r().square(), 0.9), "Lerp.*not smooth"),
    "median": (lambda: r().square().median(), "Median.*not smooth"),
    "k-th": (lambda: r().abs().flatten().kthvalue(9).values, "Kthvalue.*not smooth"),
    "cosine": (lambda: (1 - F.cosine_similarity(MODEL(X), Y)).mean(), r"Div.*normalize\(u\)"),
    "largest norm": (lambda: torch.linalg.vector_norm(r(), math.inf), "not Euclid's"),
    "softmax of losses": (
        lambda: (torch.softmax(torch.stack(both()), 0) * torch.stack(both())).sum(),
        "negative weight.*detach",
    ),
    "causal, attached": (
        lambda: (torch.exp(-9 * (s := r().square().mean(1)).cumsum(0)) * s).mean(),
        "negative weight.*detach",
    ),
    "a layer": (lambda: MODEL(X).mean() + r().square().mean(), "Addmm.*layer"),
    "odd powers": (lambda: (r() ** 3).mean(), "Pow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_squares_is_named(name: str) -> None:
    loss, says = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){says}"):
        linearize(loss, PARAMETERS)


def test_what_replaces_a_cosine_is_the_same() -> None:
    u = MODEL(X)
    instead = (F.normalize(u) - F.normalize(Y)).square().sum(1) / 2
    torch.testing.assert_close(instead, 1 - F.cosine_similarity(u, Y))


S = nn.Parameter(torch.zeros(2, dtype=torch.float64))
WEIGHTED: dict[str, Callable[[], Tensor]] = {
    "stack": lambda: (torch.exp(-S) * torch.stack(both()) + S).sum(),
    "one by one": lambda: sum((-s).exp() * loss + s for s, loss in zip(S, both(), strict=True)),
    "dot": lambda: torch.dot(torch.exp(-S), torch.stack(both())) + S.sum(),
    "precisions": lambda: (S.exp() * torch.stack(both()) - S).sum(),
    "deviations": lambda: sum(
        loss / (2 * (1 + s) ** 2) + torch.log(1 + s) for s, loss in zip(S, both(), strict=True)
    ),
    "deviations, 1 + s^2": lambda: sum(
        0.5 / (1 + s) ** 2 * loss + torch.log(1 + (1 + s) ** 2)
        for s, loss in zip(S, both(), strict=True)
    ),
    "softmax": lambda: (torch.softmax(S, 0) * torch.stack(both())).sum(),
    "softplus": lambda: (F.softplus(S[0]) * r() ** 2).mean(),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_that_are_trained_along_are_named(name: str) -> None:
    says = r"(?s)weight that is trained along.*torch\.log\(L\).*torch\.optim\.Adam"
    with pytest.raises(ValueError, match=says):
        linearize(WEIGHTED[name], [*PARAMETERS, S])
    # They are weights like others for an optimizer that does not train them
    if name not in ("deviations", "deviations, 1 + s^2"):
        found = linearize(WEIGHTED[name], PARAMETERS)
        torch.testing.assert_close(found.gradient, slopes(WEIGHTED[name]))


def test_the_logarithm_is_the_least_over_trained_weights() -> None:
    """min_s exp(-s) L + s = 1 + log(L), so that the sum of logarithms has the same minimisers."""
    losses = torch.stack(both())
    best = losses.detach().log().requires_grad_()
    weighted = (torch.exp(-best) * losses + best).sum()
    torch.testing.assert_close(weighted, (1 + losses.log()).sum())
    found = linearize(lambda: torch.stack(both()).log().sum(), PARAMETERS)
    truth = torch.cat([g.reshape(-1) for g in torch.autograd.grad(weighted, PARAMETERS)])
    torch.testing.assert_close(found.gradient, truth, rtol=1e-9, atol=1e-12)


def test_a_function_of_a_robust_loss_is_not_shared_out() -> None:
    losses = [lambda s=s: F.l1_loss(MODEL(X[s]), Y[s]).sqrt() for s in (slice(10), slice(10, 20))]
    with pytest.raises(ValueError, match="cannot share out"):
        KFACPINN(PARAMETERS).step(Batches(losses))


@pytest.mark.parametrize("exact", [Affordable(), Affordable(0)])
@pytest.mark.parametrize("weights", ["logarithm", "Adam"])
def test_both_ways_out_train(weights: str, exact: Affordable) -> None:
    """Poisson's equation, its edges weighted against its inside."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    x, ends = torch.linspace(0, 1, 50).double()[:, None], torch.tensor([[0.0], [1.0]]).double()
    s = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer, adam = KFACPINN(model.parameters(), exact=exact), torch.optim.Adam([s], 0.1)

    def losses() -> Tensor:
        inside = laplacian(model, x) + math.pi**2 * torch.sin(math.pi * x)
        return torch.stack([inside.square().mean(), model(ends).square().mean()])

    def closure() -> Tensor:
        return losses().log().sum() if weights == "logarithm" else (losses() * (-s).exp()).sum()

    for _ in range(60):
        optimizer.step(closure)
        if weights == "Adam":
            adam.zero_grad()
            (losses().detach() * (-s).exp() + s).sum().backward()
            adam.step()
    with torch.no_grad():
        assert float((model(x) - torch.sin(math.pi * x)).norm() / x.norm()) < 1e-2
