"""Jets as a whole: random programs, what they refuse, and how they live with the rest of torch."""

from __future__ import annotations

import operator
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nested_autograd import derivatives_along_lines
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from kfac_pinn.taylor_mode.basis import Basis
from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.operators import laplacian, taylor

f64 = torch.float64
N, d, WIDTH = 3, 2, 4

# Smooth and of moderate size, so that fourth derivatives of deep programs keep their digits.
UNARY = {
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "erf": torch.erf,
    "atan": torch.atan,
    "exp": lambda a: torch.exp(0.3 * torch.tanh(a)),
    "log": lambda a: torch.log(2 + torch.sin(a)),
    "sqrt": lambda a: torch.sqrt(1.5 + torch.cos(a)),
    "square": lambda a: torch.square(a) / 4,
    "power": lambda a: (2 + torch.tanh(a)) ** -1.3,
    "in place": lambda a: (a + 0.0).mul_(0.5).add_(a).sin_(),
    "shuffled": lambda a: torch.cat(a.chunk(2, dim=-1)[::-1], dim=-1),
    "flipped": lambda a: a[:, [3, 2, 1, 0]],
    "rows": lambda a: a.reshape(N, 2, 2).transpose(1, 2).reshape(N, WIDTH),
    "softmax": lambda a: torch.softmax(a, dim=1),
    "mean": lambda a: a - a.mean(dim=1, keepdim=True),
    "norm": lambda a: a / torch.sqrt(1 + (a * a).sum(-1, keepdim=True)),
}
BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": lambda a, b: torch.tanh(a) * b,
    "div": lambda a, b: a / (2 + torch.sin(b)),
    "where": lambda a, b: torch.where(torch.arange(WIDTH) % 2 == 0, a, b),
    "outer": lambda a, b: torch.einsum("ni,nj->nij", a, b).mean(-1),
    "matmul": lambda a, b: (torch.tanh(a)[:, None] @ b[:, :, None])[:, 0] + a,
    "atan2": lambda a, b: torch.atan2(a, 2 + torch.tanh(b)),
}
steps = st.one_of(
    st.tuples(st.sampled_from(sorted(UNARY)), st.integers(0, 9)),
    st.tuples(st.just("linear"), st.integers(0, 9), st.integers(0, 10**6)),
    st.tuples(st.sampled_from(sorted(BINARY)), st.integers(0, 9), st.integers(0, 9)),
)


def random_linear(seed, d_in):
    """A layer with reproducible weights of size one."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(WIDTH, d_in, generator=generator, dtype=f64) / d_in**0.5
    return partial(F.linear, weight=W, bias=torch.randn(WIDTH, generator=generator, dtype=f64) / 2)


def run(program, x):
    """Evaluate a directed acyclic graph: every step takes earlier results and adds one."""
    results = [random_linear(1, d)(x.to(f64))]
    for name, first, *rest in program:
        a = results[first % len(results)]
        if name == "linear":
            results.append(random_linear(rest[0], WIDTH)(a))
        elif name in UNARY:
            results.append(UNARY[name](a))
        else:
            results.append(BINARY[name](a, results[rest[0] % len(results)]))
    return results[-1]


def points_and_directions(seed, count=2):
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=f64)
    return draw(N, d), draw(count, N, d)


def assert_close_in_scale(found, expected, tolerance):
    """Relative to the largest entry: single entries may cancel."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * (1 + b.abs().max().item()))


@given(st.lists(steps, min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 10**6))
def test_random_programs_against_nested_autograd(program, order, seed):
    x, v = points_and_directions(seed)
    u = partial(run, program)
    expected = derivatives_along_lines(u, x, v, order)
    assert_close_in_scale(taylor(u, x, order, v), expected, 1e-10)


@given(st.lists(steps, min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 10**6))
def test_random_programs_with_a_summed_top_order(program, order, seed):
    x, v = points_and_directions(seed, count=3)
    w = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=f64)
    u = partial(run, program)
    *lower, top = taylor(u, x, order, v)
    expected = [*lower, torch.tensordot(w, top, 1)]
    assert_close_in_scale(taylor(u, x, order, v, w), expected, 1e-11)
    single = taylor(u, x, order, v, w[0])[-1]
    assert_close_in_scale([single], [expected[-1][0]], 1e-11)


def network(*sizes, activation=nn.Tanh):
    layers = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1]).to(f64)


def gradients_of(loss, parameters):
    return torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)


@given(st.integers(1, 4), st.sampled_from([nn.Tanh, nn.SiLU, nn.GELU, nn.Softplus]))
def test_parameter_gradients_to_second_order(order, activation):
    """Backpropagation twice through the fast path, against nested autograd."""
    torch.manual_seed(order)
    model, (x, v) = network(d, 5, 4, 1, activation=activation), points_and_directions(order)
    found = []
    for derivatives in (taylor(model, x, order, v), derivatives_along_lines(model, x, v, order)):
        loss = sum((each**2).sum() for each in derivatives)
        parameters = list(model.parameters())
        first = gradients_of(loss, parameters)
        second = gradients_of(sum((g**2).sum() for g in first), parameters)
        found.append([*first, *second])
    assert_close_in_scale(*found, 1e-9)


def test_float32_is_as_good_as_float32_can_be():
    model, (x, v) = network(d, 16, 16, 1), points_and_directions(0)
    exact = taylor(model, x, 3, v)
    found = taylor(model.float(), x.float(), 3, v.float())
    assert all(each.dtype == torch.float32 for each in found)
    assert_close_in_scale([each.to(f64) for each in found], exact, 1e-5)


# --- life with the rest of torch --------------------------------------------------------------


def test_no_grad_gives_the_same_without_a_graph():
    model, x = network(d, 5, 1), points_and_directions(0)[0]
    with torch.no_grad():
        found = laplacian(model, x)
    assert not found.requires_grad
    torch.testing.assert_close(found, laplacian(model, x).detach(), rtol=1e-14, atol=1e-14)


def test_torch_compile_takes_the_whole_pass():
    """The compiled residual and its parameter gradient: one graph, no breaks."""
    torch._dynamo.reset()
    model, (x, v) = network(d, 5, 1, activation=nn.SiLU), points_and_directions(0)

    def residual(x):
        def u(z):
            return (model(z).squeeze(-1) * z[:, 0]).unsqueeze(1) * (1 - z.square()).sum(1, True)

        return taylor(u, x, 2, v, weights=[1.0, 0.5])[-1]

    compiled = torch.compile(residual, fullgraph=True, backend="aot_eager")
    parameters = list(model.parameters())
    for a, b in zip(
        [compiled(x), *gradients_of(compiled(x).square().sum(), parameters)],
        [residual(x), *gradients_of(residual(x).square().sum(), parameters)],
        strict=True,
    ):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_functional_call_and_transforms_over_parameters():
    model, x = network(d, 5, 1), points_and_directions(0)[0]
    parameters = dict(model.named_parameters())

    def u(p):
        return laplacian(lambda z: torch.func.functional_call(model, p, (z,)), x)

    torch.testing.assert_close(u(parameters), laplacian(model, x), rtol=1e-13, atol=1e-13)
    J = torch.func.jacrev(u)(parameters)
    tangents = {k: torch.ones_like(p) for k, p in parameters.items()}
    _, Jv = torch.func.jvp(u, (parameters,), (tangents,))
    expected = sum(each.flatten(2).sum(-1) for each in J.values())
    torch.testing.assert_close(Jv, expected, rtol=1e-11, atol=1e-11)
    two = {k: torch.stack([p, 2 * p]) for k, p in parameters.items()}
    torch.testing.assert_close(torch.func.vmap(u)(two)[0], u(parameters), rtol=1e-12, atol=1e-12)


def test_forward_mode_over_parameters():
    model, x = network(d, 5, 1), points_and_directions(0)[0]
    parameters = dict(model.named_parameters())
    with torch.autograd.forward_ad.dual_level():
        duals = {
            k: torch.autograd.forward_ad.make_dual(p.detach(), torch.ones_like(p))
            for k, p in parameters.items()
        }
        out = laplacian(lambda z: torch.func.functional_call(model, duals, (z,)), x)
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert tangent.shape == (N, 1)


def test_checkpointing():
    model, x = network(d, 5, 4, 1), points_and_directions(0)[0]
    u = lambda z: checkpoint(model, z, use_reentrant=False)  # noqa: E731
    parameters = list(model.parameters())
    for a, b in zip(
        gradients_of(laplacian(u, x).square().sum(), parameters),
        gradients_of(laplacian(model, x).square().sum(), parameters),
        strict=True,
    ):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-12, atol=1e-14)


class Forwarding(TorchFunctionMode):
    """Calls on whatever it sees, as torch.set_default_device does."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if Jet in types:
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_modes_see_functions_methods_and_operators_of_jets():
    model, x = network(d, 5, 1), points_and_directions(0)[0]

    def u(z):
        y = model(z)[:, :1].add(1.0)
        y += z[:, :1] * 2
        return (y @ torch.ones(1, 2, dtype=f64)).sum(1)

    with Forwarding() as mode:
        found = laplacian(u, x)
    torch.testing.assert_close(found, laplacian(u, x), rtol=1e-14, atol=1e-14)
    for function in (F.linear, torch.Tensor.add, torch.Tensor.matmul, torch.Tensor.add_):
        assert function in mode.seen
    assert set(mode.seen) & {torch.Tensor.matmul}  # methods hash like the function they stand for


def test_trained_weights_of_an_operator_get_their_gradient():
    model, x = network(d, 5, 1), points_and_directions(0)[0]
    w = torch.tensor([0.3, 2.0], dtype=f64, requires_grad=True)
    (found,) = torch.autograd.grad(laplacian(model, x, w).sum(), w)
    second = taylor(model, x)[-1]
    torch.testing.assert_close(found, second.sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_trained_exponent_and_slope():
    x = points_and_directions(0)[0].abs() + 0.5
    p = torch.tensor(1.7, dtype=f64, requires_grad=True)
    u = lambda z, p: torch.tanh(p * z) ** 2 * z**p  # noqa: E731
    (found,) = torch.autograd.grad(laplacian(lambda z: u(z, p), x).sum(), p)
    h = 1e-6
    above, below = (laplacian(lambda z, s=s: u(z, p.detach() + s * h), x).sum() for s in (1, -1))
    torch.testing.assert_close(found, (above - below) / (2 * h), rtol=1e-7, atol=1e-7)


# --- the object -------------------------------------------------------------------------------


def jet_of(x, order=2):
    seen = []
    taylor(lambda z: seen.append(z) or z, x, order)
    return seen[0]


def test_a_jet_looks_like_its_value():
    x = points_and_directions(0)[0]
    jet = jet_of(x)
    assert jet.shape == x.shape and jet.size() == x.shape and jet.size(1) == d
    assert (jet.ndim, jet.dim(), len(jet), jet.numel()) == (2, 2, N, N * d)
    assert jet.dtype == f64 and jet.device == x.device and not jet.is_cuda
    assert jet.is_floating_point() and not jet.requires_grad and jet.value.equal(x)
    assert "order=2" in repr(jet)
    assert jet.rows.shape == (1 + 2 * d, N, d)
    assert [tuple(c.shape) for c in jet.coefficients()] == [(N, d), (d, N, d), (d, N, d)]
    with pytest.raises(AttributeError, match="value"):
        jet.nothing


def test_rows_of_a_basis():
    assert Basis(3, 5).sizes == [1, 5, 5, 5]
    assert Basis(3, 5, torch.ones(2, 5)).sizes == [1, 5, 5, 2]
    assert Basis(1, 5, torch.ones(2, 5)).sizes == [1, 2]
    with pytest.raises(ValueError, match="order >= 1"):
        Basis(0, 1)
    with pytest.raises(ValueError, match=r"\(C, 5\)"):
        Basis(2, 5, torch.ones(5))


def test_stale_views_are_refused():
    x = points_and_directions(0)[0]

    def base_changes(z):
        y = z * 1
        view = y[:, :1]
        y += 1
        return view * 2

    def view_changes(z):
        y = z * 1
        y[:, :1].tanh_()
        return y * 2

    for u in (base_changes, view_changes):
        with pytest.raises(RuntimeError, match="out of place"):
            taylor(u, x)

    def in_order(z):
        y = z * 1
        y += 1
        view = y.view(-1)
        view.tanh_()
        return view

    assert taylor(in_order, x)[0].equal(torch.tanh(x + 1).flatten())


def test_writing_a_jet_into_a_plain_tensor_is_refused():
    def u(z):
        y = torch.zeros(N, d, dtype=f64)
        y[:, 0] = z[:, 0]
        return y

    with pytest.raises(TypeError, match="zeros_like"):
        taylor(u, points_and_directions(0)[0])


def test_jets_of_different_bases_are_refused():
    x = points_and_directions(0)[0]
    other = jet_of(x)
    for u in (lambda z: z + other, lambda z: torch.cat([z, other]), lambda z: other):
        with pytest.raises(ValueError, match="another call"):
            taylor(u, x)
