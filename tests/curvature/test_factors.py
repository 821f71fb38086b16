"""Kronecker factors: against their definition, backpack, curvlinops, and exact Gramian blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import backpack_factors, curvlinops_gramian
from small_problems import Closure, cases, network, points, relative, small_case
from torch import Tensor, nn

from kfac_pinn import Linearization, laplacian, linearize
from kfac_pinn.curvature.factor_damping import EqualDamping, TraceNormDamping
from kfac_pinn.curvature.fisher import Empirical, ForwardOnly, MonteCarlo
from kfac_pinn.curvature.kronecker_factors import (
    Average,
    Factors,
    LayerFactors,
    LeafGramian,
    precondition,
)
from kfac_pinn.curvature.weight_sharing import Expand, Reduce
from kfac_pinn.jacobian.blocks import LayerInputs
from kfac_pinn.jacobian.layers import Block, Layer, Leaf

FRESH = Factors(average=Average(0.0))


def linearized(model: nn.Module, closure: Closure) -> Linearization:
    return linearize(closure, list(model.parameters()))


def dense(block: Block, factors: LayerFactors | LeafGramian) -> Tensor:
    """F of a block, columns in the order of the rows of J: weight first, then bias."""
    if isinstance(factors, LeafGramian):
        return factors.gramian
    F = torch.stack([torch.kron(pair.B, pair.A) for pair in factors.pairs.values()]).sum(0)
    d_out = len(next(iter(factors.pairs.values())).B)
    order = torch.arange(len(F)).reshape(d_out, -1)  # entries of [W | b], row by row
    if isinstance(block, Layer) and block.weight is not None and block.bias is not None:
        order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
    order = order.flatten()
    return F[order][:, order]


@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99)
)
def test_definitions(S: int, N: int, d_in: int, d_out: int, seed: int) -> None:
    torch.manual_seed(seed)
    z, g = torch.randn(S, N, d_in).double(), torch.randn(S, N, d_out).double()
    e = torch.rand(S).double()
    inputs = LayerInputs(z, e)
    extended = torch.cat([z, e[:, None, None].expand(S, N, 1)], dim=2)
    A = torch.einsum("sni,snj->ij", extended, extended) / (N * S)
    torch.testing.assert_close(Expand().inputs(inputs), A, rtol=1e-12, atol=1e-12)
    B = torch.einsum("sni,snj->ij", g, g) / N
    torch.testing.assert_close(Expand().gradients(g), B, rtol=1e-12, atol=1e-12)
    mean, total = extended.mean(0), g.sum(0)
    A = torch.einsum("ni,nj->ij", mean, mean) / N
    torch.testing.assert_close(Reduce().inputs(inputs), A, rtol=1e-12, atol=1e-12)
    B = torch.einsum("ni,nj->ij", total, total) / N
    torch.testing.assert_close(Reduce().gradients(g), B, rtol=1e-12, atol=1e-12)


def deep_linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 1)).double()


def exact_cases() -> list[tuple[str, nn.Module, Closure]]:
    """Where the Kronecker product is the Gramian block, of every layer."""
    tanh, x = network(2, 5, 4, 1), points(9)
    deep = deep_linear()
    last = nn.Sequential(network(2, 5, 4), nn.Tanh(), nn.Linear(4, 1).double())
    for p in last[0].parameters():
        p.requires_grad_(False)
    return [
        ("one point, one position", tanh, lambda: tanh(x[:1])),
        ("linear layers", deep, lambda: deep(x)),
        ("last layer of a scalar network", last[2], lambda: last(x)),
    ]


@pytest.mark.parametrize(("why", "model", "closure"), exact_cases(), ids=["point", "deep", "last"])
@pytest.mark.parametrize("sharing", [Expand(), Reduce()], ids=["expand", "reduce"])
def test_exact_where_it_must_be(
    why: str, model: nn.Module, closure: Closure, sharing: Expand | Reduce
) -> None:
    lin = linearized(model, closure)
    for block, factors in Factors(sharing=sharing).measure(lin, 0).items():
        assert relative(dense(block, factors), lin.gramian(block)) < 1e-13, why


@given(cases())
def test_leaves_are_exact(case: tuple[nn.Module, Closure]) -> None:
    _, closure = case
    slope = nn.Parameter(torch.tensor([1.3, 0.7], dtype=torch.float64))
    lin = linearize(lambda: [r * slope[i] + slope.prod() for i, r in enumerate(closure())], [slope])
    measured = FRESH.measure(lin, 0)
    (block,) = lin.blocks
    torch.testing.assert_close(measured[block].gramian, lin.gramian(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ridge", [None, 0.7])
@pytest.mark.parametrize("diagonal", [False, True])
def test_leaves_are_preconditioned_by_their_inverse(diagonal: bool, ridge: float | None) -> None:
    leaf, layer = nn.Parameter(torch.tensor([1.3, 0.7]).double()), nn.Linear(2, 1).double()
    lin = linearize(lambda: layer(points(6) * leaf).sin(), [*layer.parameters(), leaf])
    (block,) = (b for b in lin.blocks if isinstance(b, Leaf))
    J = lin.rows()[:, block.place]
    G = J.mT @ J
    measured = LeafGramian(G.diagonal().clone()) if diagonal else LeafGramian(G)
    v = torch.randn(lin.size, dtype=torch.float64)
    out = torch.zeros_like(v)
    weights = None if ridge is None else torch.tensor([ridge, 0.0]).double()
    precondition(block, FRESH.invert(measured, 0.1, weights), v, out)
    M = (G.diagonal().diag() if diagonal else G) + 0.1 * torch.eye(2).double()
    M[0, 0] += ridge or 0.0
    torch.testing.assert_close(out[block.place], torch.linalg.solve(M, v[block.place]))
    assert out.count_nonzero() == 2


def test_a_reduced_layer_is_exact_when_inputs_do_not_move() -> None:
    """KFAC-reduce is exact for a linear layer whose positions are averaged (Eschenhagen 2023)."""
    layer, x = nn.Linear(3, 1).double(), torch.randn(7, 4, 3, dtype=torch.float64)
    lin = linearized(layer, lambda: layer(x).mean(1))
    (block,) = lin.blocks
    measured = Factors(sharing=Reduce()).measure(lin, 0)[block]
    torch.testing.assert_close(dense(block, measured), lin.gramian(), rtol=1e-12, atol=1e-14)


@given(st.integers(0, 10_000))
def test_backpack(seed: int) -> None:
    model, x = network(2, 5, 4, 1, seed=seed), points(8, seed=seed)
    lin = linearized(model, lambda: model(x))
    measured = FRESH.measure(lin, 0)
    for block, (A, B) in zip(lin.blocks, backpack_factors(model, x), strict=True):
        torch.testing.assert_close(measured[block].pairs[0].A[:-1, :-1], A, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(measured[block].pairs[0].B, B, rtol=1e-12, atol=1e-14)


def test_curvlinops() -> None:
    """Its whole Gauss-Newton matrix of a deep linear network has our factors on its diagonal."""
    model, x = deep_linear(), points(9)
    lin = linearized(model, lambda: model(x))
    gramian = curvlinops_gramian(model, x)
    for block, factors in FRESH.measure(lin, 0).items():
        place = slice(block.weight_slice.start, block.bias_slice.stop)
        assert relative(dense(block, factors), gramian[place, place]) < 1e-12


def test_fisher_types() -> None:
    model, closure = small_case()
    lin = linearized(model, closure)
    type2 = FRESH.measure(lin, 0)
    empirical = Factors(fisher=Empirical()).measure(lin, 0)
    forward = Factors(fisher=ForwardOnly()).measure(lin, 0)
    sampled = Factors(fisher=MonteCarlo(seed=3))
    samples = [sampled.measure(lin, step) for step in range(400)]
    for block in lin.blocks:
        for k, tangent in enumerate(lin.terms):
            g = tangent.blocks[block].g
            weighted = g * tangent.residual[:, None]
            B = torch.einsum("sni,snj->ij", weighted, weighted) / g.shape[1]
            torch.testing.assert_close(empirical[block].pairs[k].B, B, rtol=1e-12, atol=1e-14)
            assert torch.equal(forward[block].pairs[k].B, torch.eye(len(B)).double())
            mean = torch.stack([s[block].pairs[k].B for s in samples]).mean(0)
            assert relative(mean, type2[block].pairs[k].B) < 0.25
    again = sampled.measure(lin, 7)
    assert all(torch.equal(again[b].pairs[0].B, samples[7][b].pairs[0].B) for b in lin.blocks)


@given(cases(), st.floats(1e-6, 1.0), st.booleans())
def test_precondition_inverts(
    case: tuple[nn.Module, Closure], damping: float, trace_norm: bool
) -> None:
    model, closure = case
    lin = linearized(model, closure)
    rule = TraceNormDamping() if trace_norm else EqualDamping()
    factors = Factors(average=Average(0.0), rule=rule)
    v, out = torch.randn(lin.size, dtype=torch.float64), torch.zeros(lin.size, dtype=torch.float64)
    for block, measured in factors.measure(lin, 0).items():
        precondition(block, factors.invert(measured, damping), v, out)
        pairs = [rule(pair.A, pair.B, damping) for pair in measured.pairs.values()]
        M = block.matrix(out)
        product = torch.stack([B @ M @ A for A, B in pairs]).sum(0)
        assert relative(product, block.matrix(v)) < 1e-7


def test_frozen_weight_and_missing_bias() -> None:
    """The block of what is trained is the corresponding part of the whole."""
    model, closure = small_case()
    whole = FRESH.measure(linearized(model, closure), 0)
    full = {id(block.weight): f for block, f in whole.items()}
    for trained, columns in ((model[0].weight, slice(0, -1)), (model[0].bias, slice(-1, None))):
        lin = linearize(closure, [trained])
        (block,) = lin.blocks
        found = FRESH.measure(lin, 0)[block].pairs[0]
        expected = full[id(model[0].weight)].pairs[0]
        torch.testing.assert_close(found.B, expected.B, rtol=1e-14, atol=0)
        torch.testing.assert_close(found.A, expected.A[columns, columns])


def test_average() -> None:
    M = torch.full((2, 2), 4.0)
    assert torch.equal(Average(0.5, start=1.0)(None, M), (torch.eye(2) + M) / 2)
    assert torch.equal(Average(0.5, start=0.0)(None, M), M / 2)
    assert torch.equal(Average(0.5, start=None)(None, M), M)
    torch.testing.assert_close(Average(0.75)(torch.eye(2), M), 0.75 * torch.eye(2) + 0.25 * M)
    with pytest.raises(ValueError, match="every must be a whole number"):
        Factors(every=0)


def test_trace_norm() -> None:
    """(A + pi sqrt(lambda) I) (x) (B + sqrt(lambda) / pi I) has the damping lambda."""
    A, B = torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([1.0, 0.0]))
    damped_a, damped_b = TraceNormDamping()(A, B, 0.01)
    assert float(damped_a[1, 1]) == pytest.approx(0.2)
    assert float(damped_b[1, 1]) == pytest.approx(0.05)
    zero = torch.zeros(2, 2)
    assert all(torch.isfinite(M).all() for M in TraceNormDamping()(A, zero, 0.01))


def test_residuals_of_one_pass_share_their_inputs() -> None:
    model, x = network(2, 5, 1), points(6)

    def system() -> tuple[Tensor, Tensor]:
        second = laplacian(model, x)
        return second + 1, second * x[:, :1]

    lin = linearized(model, system)
    for block in lin.blocks:
        first, second = (tangent.blocks[block] for tangent in lin.terms)
        assert first.inputs is second.inputs


def test_a_penalty_on_the_weights_has_its_exact_block() -> None:
    """Of 0.3 w, entry by entry: J^T J = 0.09 / N I, as one Kronecker product."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    closure = lambda: (layer(x).sum(1), 0.3 * layer.weight.reshape(-1))  # noqa: E731
    lin = linearize(closure, list(layer.parameters()))
    pair = FRESH.measure(lin, 0)[lin.blocks[0]].pairs[1]
    block = torch.kron(pair.B, pair.A[:3, :3])
    torch.testing.assert_close(block, 0.09 / 6 * torch.eye(6, dtype=torch.float64))
    assert not pair.A[3].any()  # the bias is free
