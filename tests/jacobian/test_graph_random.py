"""Random programs: derivatives to order 4, points joined, cut, permuted, reused, weights tied.

Whatever a program does with its points and its trained tensors, the linearisation is row-by-row
autograd's to 1e-12 of the largest entry, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from row_by_row import assert_exact, derivative
from torch import Tensor, nn

from kfac_pinn import linearize
from kfac_pinn.jacobian.blocks import LayerJacobian

Apply = Callable[[Tensor, list[nn.Parameter]], Tensor]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64) / 2)


LAYERS: dict[str, Apply] = {
    "F.linear": lambda h, p: F.linear(h, p[0].T, p[1]),
    "x @ W + b": lambda h, p: h @ p[0] + p[1],
    "b + matmul": lambda h, p: p[1] + torch.matmul(h, p[0]),
    "addmm": lambda h, p: torch.addmm(p[1], h, p[0]),
    "einsum": lambda h, p: torch.einsum("ni,ij->nj", h, p[0]) - p[1],
    "on the left": lambda h, p: (p[0].T @ h.T).T * p[1],
    "a product with itself": lambda h, p: h @ (p[0] * p[0]) + p[1].exp(),
    "normalised": lambda h, p: h @ (p[0] / p[0].norm(dim=0)) * (1 + p[1]),
    "low rank": lambda h, p: h @ (p[0] @ torch.outer(p[1], p[1])) + p[1],
    "by columns": lambda h, p: torch.stack([h @ p[0][:, j] for j in range(len(p[1]))], 1) + p[1],
}
ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [torch.tanh, torch.sin, F.softplus, torch.sigmoid]


@st.composite
def networks(draw: st.DrawFn) -> tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]:
    """Layers written in different ways, some of them with the same weights."""
    width, hidden = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    first, last = [parameter(2, width), parameter(width)], [parameter(width, 1), parameter(1)]
    pool = [[parameter(width, width), parameter(width)] for _ in range(draw(st.integers(1, 2)))]
    inner = [draw(st.sampled_from(pool)) for _ in range(hidden)]
    names = [draw(st.sampled_from(sorted(LAYERS))) for _ in range(hidden + 2)]
    bends = [draw(st.sampled_from(ACTIVATIONS)) for _ in range(hidden + 1)]
    slope = draw(st.sampled_from([None, parameter(), parameter(1), parameter(width)]))

    def u(x: Tensor) -> Tensor:
        h = x
        for name, weights, bend in zip(names, [first, *inner], bends, strict=False):
            h = bend(LAYERS[name](h, weights))
        h = h if slope is None else slope * h
        return LAYERS[names[-1]](h, last)

    parameters = [p for pair in [first, *pool, last] for p in pair]
    return u, [*parameters, *([] if slope is None else [slope])]


@st.composite
def cuts(draw: st.DrawFn, points: int) -> Callable[[Tensor], Tensor]:
    """Some of the points: a slice, a permutation, a mask, points twice, or two halves added."""
    kind = draw(st.integers(0, 5))
    start = draw(st.integers(0, points // 2))
    order = torch.tensor(draw(st.permutations(range(points))))
    return [
        lambda r: r,
        lambda r: r[start:],
        lambda r: r[order],
        lambda r: r[order < points - 1] * 2,
        lambda r: r[:: 1 + start % 3].flip(0),
        lambda r: torch.cat([r[start:], -r[start:]])[: points - start],
    ][kind]


@st.composite
def programs(draw: st.DrawFn) -> tuple[Callable[[], Any], list[nn.Parameter]]:
    """Terms of one network at several sets of points, in one batch or in several."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    u, parameters = draw(networks())
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    sets = [torch.rand(n, 2, dtype=torch.float64) for n in sizes]
    joined, total = draw(st.booleans()), sum(sizes)
    orders = draw(st.lists(st.integers(0, 1), max_size=4))
    weights = torch.rand(total, 1, dtype=torch.float64)
    coefficient = parameter() if draw(st.booleans()) else None
    ways = [draw(cuts(n)) for n in sizes]

    def residual(x: Tensor) -> Tensor:
        y = u(x)
        r, top = y * weights[: len(x)], y
        for k in orders:
            top = derivative(top, x)[:, k : k + 1]
            r = r + top * y
        return r if coefficient is None else coefficient * r - coefficient

    def closure() -> Any:
        if not joined:
            return tuple(
                way(residual(x.clone().requires_grad_())) for way, x in zip(ways, sets, strict=True)
            )
        r = residual(torch.cat(sets).requires_grad_())
        return tuple(way(part) for way, part in zip(ways, r.split(sizes), strict=True))

    return closure, [*parameters, *([] if coefficient is None else [coefficient])]


@given(programs())
def test_every_program_is_exact(program: tuple[Callable[[], Any], list[nn.Parameter]]) -> None:
    assert_exact(*program)


@given(programs())
def test_every_run_reads_what_the_first_one_did(
    program: tuple[Callable[[], Any], list[nn.Parameter]],
) -> None:
    """What is remembered of a program saves work and changes no number, K-FAC's factors neither."""

    def read() -> list[Tensor]:
        blocks = [block for term in linearize(*program).terms for block in term.blocks.values()]
        layers = [block for block in blocks if isinstance(block, LayerJacobian)]
        others = [block.rows() for block in blocks if not isinstance(block, LayerJacobian)]
        return [*others, *(t for layer in layers for t in (layer.inputs.z, layer.g))]

    first = read()
    for again in (read(), read()):
        assert len(first) == len(again)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@given(programs(), st.booleans())
def test_and_so_is_its_loss(
    program: tuple[Callable[[], Any], list[nn.Parameter]], backward: bool
) -> None:
    closure, parameters = program

    def loss() -> Tensor:
        terms = [(1 + k) * r.square().mean() for k, r in enumerate(closure())]
        total = torch.stack(terms).sum()
        if backward:
            total.backward()
        return total

    truth = torch.autograd.grad(
        torch.stack([(1 + k) * r.square().mean() for k, r in enumerate(closure())]).sum(),
        parameters,
        allow_unused=True,
        materialize_grads=True,
    )
    found = linearize(loss, parameters)
    flat = torch.cat([slope.reshape(-1) for slope in truth])
    assert (found.gradient - flat).abs().max() <= 1e-12 * max(1.0, float(flat.abs().max()))
    J = linearize(closure, parameters)
    weights = torch.cat(
        [
            torch.full((len(t.residual),), (2.0 + 2 * k) ** 0.5, dtype=torch.float64)
            for k, t in enumerate(J.terms)
        ]
    )
    gramian = (weights[:, None] * J.rows()).T @ (weights[:, None] * J.rows())
    assert (found.gramian() - gramian).abs().max() <= 1e-11 * max(1.0, float(gramian.abs().max()))
