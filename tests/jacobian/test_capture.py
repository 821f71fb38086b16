"""User code that must be captured exactly: every way a model may use its trained tensors."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from oracles import derivatives, jacobian
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from kfac_pinn import Linearization, laplacian, linearize, taylor
from kfac_pinn.jacobian.layers import Layer, Leaf
from kfac_pinn.pinn import networks

N, D = 5, 2
Closure = Callable[[], Sequence[Tensor]]


def exact(
    closure: Closure, parameters: Sequence[Tensor], oracle: Closure | None = None
) -> Linearization:
    """Everything read from the linearisation is what autograd says row by row."""
    lin = linearize(closure, parameters, check=True)
    r, J = jacobian(oracle or closure, parameters)
    v, u = torch.randn(J.shape[1], dtype=r.dtype), torch.randn(len(r), dtype=r.dtype)
    pairs = [
        (lin.residual, r),
        (lin.rows(), J),
        (lin @ v, J @ v),
        (lin.vjp(u), J.T @ u),
        (lin.kernel(), J @ J.T),
        (lin.gramian(), J.T @ J),
        (lin.gradient, J.T @ r),
    ]
    for found, expected in pairs:
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11 * scale)
    return lin


def points() -> Tensor:
    return torch.rand(N, D, dtype=torch.float64)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Model(nn.Module):
    """A model given by a list of parts and a forward function of (parts, x)."""

    def __init__(self, forward: Callable[..., Tensor], *parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.rule = forward
        for i, part in enumerate(parts):
            setattr(self, f"part{i}", nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        parts = {**self._modules, **self._parameters}
        return self.rule(*(parts[key] for key in sorted(parts)), x)


def freeze(module: nn.Module, *names: str) -> nn.Module:
    for name, p in module.named_parameters():
        p.requires_grad_(name not in names)
    return module


def tied() -> nn.Module:
    return Model(
        lambda a, b, c, x: c(torch.tanh(b(torch.tanh(b(torch.tanh(a(x))))))),
        nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1),
    )  # fmt: skip


def one_weight_in_two_layers(bias: bool) -> nn.Module:
    a, b = nn.Linear(3, 3, bias=bias), nn.Linear(3, 3, bias=bias)
    b.weight = a.weight
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), a, nn.Tanh(), b, nn.Tanh(), nn.Linear(3, 1))


def one_bias_in_two_layers() -> nn.Module:
    a, b = nn.Linear(2, 3), nn.Linear(3, 3)
    b.bias = a.bias
    return nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), nn.Linear(3, 1))


def with_and_without_bias() -> nn.Module:
    return Model(
        lambda a, b, c, x: c(torch.tanh(F.linear(torch.tanh(b(torch.tanh(a(x)))), b.weight))),
        nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1),
    )  # fmt: skip


def added_in_place() -> nn.Module:
    def forward(a: nn.Module, b: nn.Module, c: nn.Module, x: Tensor) -> Tensor:
        h = a(x).tanh_()
        g = b(h)
        g += h
        return c(g.sin_())

    return Model(forward, nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1))


def hypernetwork() -> nn.Module:
    """All points share weights that another network computes from one point."""

    def forward(hyper: nn.Module, first: nn.Module, last: nn.Module, x: Tensor) -> Tensor:
        W = hyper(torch.full((1, 1), 0.3, dtype=x.dtype)).view(4, 4)
        return last(torch.tanh(F.linear(torch.tanh(first(x)), W)))

    return Model(forward, mlp(1, 3, 16), nn.Linear(2, 4), nn.Linear(4, 1))


def branch_and_trunk() -> nn.Module:
    def forward(branch: nn.Module, trunk: nn.Module, x: Tensor) -> Tensor:
        sensors = torch.linspace(0, 1, 3, dtype=x.dtype).view(1, 3)
        return (branch(sensors) * trunk(x)).sum(-1, keepdim=True)

    return Model(forward, mlp(3, 4, 5), mlp(2, 4, 5))


def factorised() -> nn.Module:
    """Random weight factorisation W = diag(exp s) V (Wang et al. 2022), and a plain last layer."""
    return Model(
        lambda s, V, b, x: F.linear(torch.tanh(F.linear(x, s.exp()[:, None] * V, b)), V.T[:1] + 1),
        torch.randn(2), torch.randn(2, 2), torch.randn(2),
    )  # fmt: skip


def recomputed() -> nn.Module:
    return Model(
        lambda a, b, x: b(checkpoint(a, x, use_reentrant=False)),
        nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 1),
    )  # fmt: skip


SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: mlp(2, 4, 3, 1),
    "tied": tied,
    "one weight, two layers": lambda: one_weight_in_two_layers(False),
    "one weight, two biases": lambda: one_weight_in_two_layers(True),
    "one bias, two weights": one_bias_in_two_layers,
    "with and without bias": with_and_without_bias,
    "in-place SiLU": lambda: nn.Sequential(nn.Linear(2, 4), nn.SiLU(inplace=True), nn.Linear(4, 1)),
    "in-place methods": added_in_place,
    "frozen weight": lambda: freeze(mlp(2, 4, 4, 1), "2.weight"),
    "frozen bias": lambda: freeze(mlp(2, 4, 4, 1), "2.bias"),
    "frozen layers": lambda: freeze(mlp(2, 4, 4, 1), "0.weight", "0.bias", "4.weight"),
    "layer norm": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)
    ),
    "layer norm without shift": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.LayerNorm(4, bias=False), nn.Tanh(), nn.Linear(4, 1)
    ),
    "adaptive slope": lambda: Model(
        lambda a, b, s, x: b(torch.tanh(s * a(x))), nn.Linear(2, 4), nn.Linear(4, 1), torch.rand(())
    ),
    "adaptive slopes": lambda: Model(
        lambda a, b, s, x: b(torch.tanh(a(x) * s + s)),
        nn.Linear(2, 4), nn.Linear(4, 1), torch.rand(4),
    ),
    "slopes of shape (1, d)": lambda: Model(
        lambda a, b, s, x: b(torch.tanh(a(x) / (2 + s))),
        nn.Linear(2, 4), nn.Linear(4, 1), torch.rand(1, 4),
    ),
    "Fourier scales": lambda: Model(
        lambda a, s, x: a(torch.cat([torch.sin(x * s.exp()), torch.cos(x * s)], -1)),
        mlp(4, 3, 1), torch.rand(2),
    ),
    "Fourier matrix": lambda: Model(
        lambda a, B, x: a(torch.sin(F.linear(x, 3 * B))), mlp(3, 3, 1), torch.randn(3, 2)
    ),
    "latent vector": lambda: Model(
        lambda a, z, x: a(torch.cat([x, z.expand(len(x), -1)], -1)), mlp(5, 3, 1), torch.rand(3)
    ),
    "embedding": lambda: Model(
        lambda a, e, x: a(x) * e(torch.arange(len(x)) % 3), mlp(2, 3, 1), nn.Embedding(3, 1)
    ),
    "weight norm": lambda: nn.Sequential(
        weight_norm(nn.Linear(2, 4)), nn.Tanh(), weight_norm(nn.Linear(4, 1))
    ),
    "factorised weights": factorised,
    "hypernetwork": hypernetwork,
    "branch and trunk": branch_and_trunk,
    "SIREN": lambda: networks.SIREN((2, 4, 4, 1), omega=2.0),
    "modified MLP": lambda: networks.ModifiedMLP((2, 4, 4, 1)),
    "PirateNet": lambda: networks.PirateNet((2, 4, 1), blocks=2),
}  # fmt: skip


def build(name: str, models: dict[str, Callable[[], nn.Module]]) -> tuple[nn.Module, list[Tensor]]:
    model = models[name]().double()
    return model, [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", SMOOTH)
def test_values(name: str) -> None:
    model, parameters = build(name, SMOOTH)
    x, y = points(), points()
    exact(lambda: (model(x) - 1, (model(y) ** 2)[:, 0]), parameters)


@pytest.mark.parametrize("name", SMOOTH)
def test_laplacians(name: str) -> None:
    model, parameters = build(name, SMOOTH)
    x, y = points(), points()
    exact(
        lambda: (laplacian(model, x) + 1, model(y)),
        parameters,
        lambda: (derivatives(copy_in(model), x, 2)[2].sum(0) + 1, model(y)),
    )


def copy_in(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model on a copy of its points: in-place code must not change a leaf."""
    return lambda x: model(1 * x)


def attend(attention: nn.Module, tokens: Tensor) -> Tensor:
    """Self-attention."""
    return attention(tokens, tokens, tokens)[0]


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "recomputed": recomputed,
    "vector weight": lambda: Model(
        lambda a, w, x: F.linear(torch.tanh(a(x)), w)[:, None], nn.Linear(2, 4), torch.rand(4)
    ),
    "one bias for all outputs": lambda: Model(
        lambda a, W, b, x: a(torch.tanh(F.linear(x, W, b))),
        nn.Linear(4, 1), torch.rand(4, 2), torch.rand(1),
    ),
    "a bias a point": lambda: Model(
        lambda a, W, b, x: a(torch.tanh(F.linear(x, W, torch.sin(x[:, :1]) * b))),
        nn.Linear(4, 1), torch.rand(4, 2), torch.rand(4),
    ),
    "relu_": lambda: Model(lambda a, b, x: b(F.relu_(a(x))), nn.Linear(2, 4), nn.Linear(4, 1)),
    "dropout": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.5).eval(), nn.Linear(4, 1)
    ),
    "rms norm": lambda: nn.Sequential(nn.Linear(2, 4), nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 1)),
    "group norm": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 1)
    ),
    "batch norm, evaluating": lambda: nn.Sequential(
        nn.Linear(2, 4), nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.Linear(4, 1)
    ),
    "prelu": lambda: nn.Sequential(nn.Linear(2, 4), nn.PReLU(4), nn.Linear(4, 1)),
    "bilinear": lambda: Model(lambda a, b, x: b(a(x, x)), nn.Bilinear(2, 2, 3), nn.Linear(3, 1)),
    "recurrent": lambda: Model(
        lambda a, b, x: b(a(x.unsqueeze(1))[0][:, -1]),
        nn.GRU(2, 3, batch_first=True), nn.Linear(3, 1),
    ),
    "attention": lambda: Model(
        lambda a, b, x: b(attend(a, x[:, :, None].expand(-1, -1, 4)).sum(1)),
        nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_values_of_layers_without_jets(name: str) -> None:
    model, parameters = build(name, PLAIN)
    x = points()
    exact(lambda: (model(x) - 1,), parameters)


def convolutions(dimensions: int) -> nn.Module:
    conv = nn.Conv1d if dimensions == 1 else nn.Conv2d
    return nn.Sequential(
        conv(1, 2, 3, padding=1), nn.Tanh(), conv(2, 2, 2, stride=2, bias=False), nn.Tanh(),
        nn.Flatten(), nn.LazyLinear(1),
    )  # fmt: skip


@pytest.mark.parametrize("dimensions", [1, 2])
def test_convolutions_of_values_and_jets(dimensions: int) -> None:
    side = (6,) if dimensions == 1 else (4, 5)
    size = torch.Size(side).numel()
    model = nn.Sequential(
        nn.Unflatten(1, (1, *side)), *convolutions(dimensions).children()
    ).double()
    x = torch.rand(N, size, dtype=torch.float64)
    model(x)
    parameters = list(model.parameters())
    exact(lambda: (model(x),), parameters)

    def on_jets(z: Tensor) -> Tensor:
        return model[1:](z.reshape(z.shape[0], 1, *side))

    oracle = lambda: (derivatives(model, x, 2)[2].sum(0),)  # noqa: E731
    exact(lambda: (laplacian(on_jets, x),), parameters, oracle)


def test_dilated_convolutions_and_single_images() -> None:
    layer = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(0, 1), dilation=(2, 1)).double()
    x = torch.rand(4, 2, 6, 7, dtype=torch.float64)
    exact(lambda: (layer(x).square().mean((1, 2, 3)),), list(layer.parameters()))
    exact(lambda: (layer(x[0]).square().mean().reshape(1),), list(layer.parameters()))


def test_tokens() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.rand(N, 4, 3, 2, dtype=torch.float64)
    exact(lambda: (model(x).sin().sum((1, 2, 3)),), list(model.parameters()))


def test_tokens_of_jets() -> None:
    model = mlp(1, 3, 1).double()
    x = points()

    def u(z: Tensor) -> Tensor:
        return model(z.unsqueeze(-1)).sum(1)

    oracle = lambda: (derivatives(u, x, 2)[2].sum(0),)  # noqa: E731
    exact(lambda: (laplacian(u, x),), list(model.parameters()), oracle)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_models(backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("no compiler")
    model = mlp(2, 4, 1).double()
    compiled = torch.compile(model, backend=backend)
    x, parameters = points(), list(model.parameters())
    exact(lambda: (compiled(x) - 1,), parameters, lambda: (model(x) - 1,))
    exact(
        lambda: (laplacian(compiled, x),),
        parameters,
        lambda: (derivatives(model, x, 2)[2].sum(0),),
    )


def test_functional_call() -> None:
    model = mlp(2, 4, 1).double()
    leaves = {key: p.detach().clone().requires_grad_() for key, p in model.named_parameters()}
    x = points()

    def u(z: Tensor) -> Tensor:
        return functional_call(model, leaves, (z,))

    parameters = list(leaves.values())
    exact(lambda: (u(x),), parameters)
    oracle = lambda: (derivatives(u, x, 2)[2].sum(0),)  # noqa: E731
    exact(lambda: (laplacian(u, x),), parameters, oracle)


def test_several_passes_in_one_residual() -> None:
    model = mlp(2, 4, 3, 1).double()
    x, parameters = points(), list(model.parameters())
    exact(lambda: (model(x) - model(x + 1),), parameters)

    def periodic() -> tuple[Tensor, Tensor]:
        left, right = taylor(model, x, 1), taylor(model, x + 1, 1)
        return left[0] - right[0], (left[1] * right[1])[0]

    def oracle() -> tuple[Tensor, Tensor]:
        left, right = derivatives(model, x, 1), derivatives(model, x + 1, 1)
        return left[0] - right[0], (left[1] * right[1])[0]

    exact(periodic, parameters, oracle)


def test_a_residual_that_is_one_number() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y, parameters = points(), points(), list(model.parameters())
    exact(lambda: (model(x).mean().reshape(1) - 1, model(y)), parameters)
    exact(
        lambda: (laplacian(model, x).square().sum().reshape(1, 1),),
        parameters,
        lambda: (derivatives(model, x, 2)[2].sum(0).square().sum().reshape(1, 1),),
    )


def test_a_single_point() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, parameters = points()[:1], list(model.parameters())
    exact(lambda: (model(x),), parameters)
    exact(lambda: (model(x[0]),), parameters)


def test_a_coefficient_that_a_network_computes() -> None:
    """At one place of its own, for all points: layers too, by the chain rule."""
    model, coefficient = mlp(2, 4, 1).double(), mlp(2, 3, 1).double()
    x, parameters = points(), [*model.parameters(), *coefficient.parameters()]
    lin = exact(
        lambda: (laplacian(model, x) * coefficient(x[:1]),),
        parameters,
        lambda: (values(model, x)[1] * coefficient(x[:1]),),
    )
    assert [type(block) for block in lin.blocks] == [Layer] * 4
    assert lin.terms[0].rest is None


COEFFICIENTS: dict[str, tuple[Tensor, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "scalar": (torch.tensor(0.7), lambda p, u, lap: lap * p - u),
    "of shape (1,)": (torch.tensor([0.7]), lambda p, u, lap: p * lap + u),
    "logarithmic": (torch.tensor(-1.0), lambda p, u, lap: p.exp() * lap - u / p),
    "exponent": (torch.tensor(1.5), lambda p, u, lap: lap + (u * u + 1) ** p),
    "several": (torch.tensor([0.5, 2.0]), lambda p, u, lap: p[0] * lap + torch.sin(p[1] * u)),
    "inside a function": (torch.tensor(0.5), lambda p, u, lap: torch.lerp(lap, u, p)),
    "a field": (torch.rand(N, 1), lambda p, u, lap: p * lap + u),
    "a mean": (torch.rand(3), lambda p, u, lap: p.mean() * lap + p.norm()),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coefficients_of_the_equation(name: str) -> None:
    value, residual = COEFFICIENTS[name]
    model, p = mlp(2, 4, 1).double(), nn.Parameter(value.double())
    x, y = points(), points()
    exact(
        lambda: (residual(p, model(x), laplacian(model, x)), model(y)),
        [*model.parameters(), p],
        lambda: (residual(p, *(each for each in values(model, x))), model(y)),
    )


def values(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """u and its Laplacian by nested autograd."""
    u, _, second = derivatives(model, x, 2)
    return u, second.sum(0)


@pytest.mark.parametrize(
    "container", [tuple, list, lambda pair: dict(zip("ab", pair, strict=True))]
)
def test_containers_of_residuals(container: Callable[..., Any]) -> None:
    model = mlp(2, 4, 1).double()
    x, parameters = points(), list(model.parameters())
    lin = linearize(lambda: container([model(x), model(x + 1)[:, 0]]), parameters)
    torch.testing.assert_close(
        lin.rows(), jacobian(lambda: (model(x), model(x + 1)), parameters)[1]
    )
    names = [tangent.name for tangent in lin.terms]
    assert names in (["residual 'a'", "residual 'b'"], ["residual 0", "residual 1"])


def test_what_becomes_a_layer_and_what_a_leaf() -> None:
    model, _ = build("layer norm", SMOOTH)
    x = points()
    blocks = linearize(lambda: laplacian(model, x), list(model.parameters())).blocks
    assert [type(block) for block in blocks] == [Layer, Layer, Leaf, Leaf]
    model, parameters = build("one bias, two weights", SMOOTH)
    blocks = linearize(lambda: model(x), parameters).blocks
    assert [block.size for block in blocks] == [6, 9, 4, 3]


def test_copies_do_not_share_what_was_captured() -> None:
    model, _ = build("plain", SMOOTH)
    twin, x = copy.deepcopy(model), points()
    lin = linearize(lambda: model(x) + twin(x), list(model.parameters()), check=True)
    assert lin.size == sum(p.numel() for p in model.parameters())
    parameters = list(model.parameters())
    torch.testing.assert_close(lin.rows(), jacobian(lambda: (model(x),), parameters)[1])


def test_residuals_in_another_precision() -> None:
    """The Jacobian is in the parameters'."""
    model, x = mlp(2, 4, 1), points()
    parameters = list(model.parameters())
    lin = linearize(lambda: model(x.float()).double() - x[:, :1], parameters, check=True)
    expected = jacobian(lambda: (model(x.float()),), parameters)[1]
    assert lin.residual.dtype == lin.rows().dtype == torch.float32
    torch.testing.assert_close(lin.rows(), expected)


def test_means_over_points_next_to_leaves_are_exact_where_they_can_be() -> None:
    """A mean over the points that only the leaf feels; that of layers is refused elsewhere."""
    p, x = nn.Parameter(torch.rand(2, dtype=torch.float64)), points()
    net = mlp(2, 3, 1).double()

    def residual() -> Tensor:
        u = torch.sin(x * p).sum(1, keepdim=True)
        return u * u.mean() + (p * u).mean(0, keepdim=True).sum() + net(x)

    exact(lambda: (residual(),), [*net.parameters(), p])


def test_constants_computed_by_the_model_stay_constants() -> None:
    model, x = mlp(2, 4, 1).double(), points()

    def weighted() -> Tensor:
        with torch.no_grad():
            weight = torch.exp(-model(x).abs())
        return weight * model(x)

    exact(lambda: (weighted(),), list(model.parameters()))
    exact(lambda: (model(x) * model(x).detach(),), list(model.parameters()))


def test_the_rows_of_norms_cost_one_backward_pass() -> None:
    """384 columns, one by one, would be 384 passes."""
    norm = lambda: nn.LayerNorm(64)  # noqa: E731
    model = nn.Sequential(
        nn.Linear(2, 64), norm(), nn.Tanh(), nn.Linear(64, 64), norm(), nn.Tanh(), nn.Linear(64, 1)
    ).double()
    x = torch.rand(100, 2, dtype=torch.float64)
    with mock.patch.object(torch.autograd, "grad", side_effect=torch.autograd.grad) as passes:
        linearize(lambda: laplacian(model, x), list(model.parameters()))
    assert passes.call_count < 12
