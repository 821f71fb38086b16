"""Adapters: they start as the base, merge to a plain network, and have the sizes of the paper."""

from __future__ import annotations

import copy
from collections import OrderedDict

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.hyper import HyperLoRA
from hyperlora_ext.lora import LoRALinear, adapters, count, merge
from hyperlora_ext.serialization import state, with_factors
from hyperlora_ext.task_spaces import Interval
from kfac_pinn.jacobian.closure import linearize
from kfac_pinn.pinn.networks import MLP, ModifiedMLP, PirateNet
from kfac_pinn.pinn.wrappers import HardConstraint
from kfac_pinn.taylor_mode.operators import taylor

F64 = torch.float64


def trained(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Factors as after training: B no longer zero."""
    with torch.no_grad():
        for adapter in adapters(model).values():
            adapter.B.normal_(0, scale)
            if adapter.shift is not None:
                adapter.shift.normal_(0, scale)
    return model


def bases() -> list[nn.Module]:
    return [
        MLP((2, 8, 8, 3)),
        ModifiedMLP((2, 8, 8, 1)),
        PirateNet((2, 8, 1), blocks=1),
        nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1, bias=False)),
        HardConstraint(MLP((2, 6, 1)), lambda x: x[:, :1], lambda x: x[:, 1:]),
        nn.Linear(2, 3),
        nn.Sequential(weight_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 1)),
        nn.Sequential(OrderedDict(inner=MLP((2, 4, 4)), outer=nn.Sequential(nn.Linear(4, 1)))),
    ]


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize("bias", [False, True])
def test_adapted_starts_as_the_base_and_merges_to_itself(index: int, bias: bool) -> None:
    base = bases()[index].double()
    x = torch.randn(7, 2, dtype=F64)
    v = adapt(base, rank=1, bias=bias)
    assert torch.equal(v(x), base(x)) or (v(x) - base(x)).abs().max() < 1e-15
    trained(v)
    assert (v(x) - base(x)).abs().max() > 1e-3
    merged = merge(v)
    assert (merged(x) - v(x)).abs().max() < 1e-12
    assert not any(isinstance(m, LoRALinear) for m in merged.modules())
    assert all(p.requires_grad for p in merged.parameters())
    restored = with_factors(base, state(v))
    assert torch.equal(restored(x), v(x))


def test_base_is_shared_untouched_and_frozen() -> None:
    base = MLP((2, 8, 8, 1)).double()
    before = {n: p.clone() for n, p in base.named_parameters()}
    v = adapt(base, 2)
    memory = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in v.parameters() if not p.requires_grad} == memory
    optimizer = torch.optim.SGD(v.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        v(torch.randn(5, 2, dtype=F64)).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(before[n], p) for n, p in base.named_parameters())
    assert all(p.requires_grad for p in base.parameters())


def test_a_layer_used_twice_stays_one_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x)))

    v = adapt(Twice().double(), 2)
    assert v.a is v.b and count(v) == 2 * 8


def test_attention_reads_the_adapted_weight() -> None:
    """A module that uses a layer's weight itself, and one that has layers of other kinds."""
    base = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    v, x = trained(adapt(base, 2)), torch.randn(3, 5, 4, dtype=F64)
    assert list(adapters(v)) == ["self_attn.out_proj", "linear1", "linear2"]
    assert (merge(v)(x) - v(x)).abs().max() < 1e-13 < 1e-3 < (v(x) - base(x)).abs().max()
    mixed = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(4, 1))
    assert list(adapters(adapt(mixed, 1))) == ["2"]


class Sine(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(super().forward(x))


def test_a_subclass_with_its_own_forward_is_not_linear() -> None:
    base = nn.Sequential(Sine(2, 5), nn.Linear(5, 1)).double()
    v, x = trained(adapt(base, 1)), torch.randn(7, 2, dtype=F64)
    assert list(adapters(v)) == ["1"] and isinstance(v[0], Sine)
    assert (merge(v)(x) - v(x)).abs().max() < 1e-13
    with pytest.raises(ValueError, match=r"no linear layer '0'"):
        adapt(base, {"0": 1})


def test_merging_draws_no_random_numbers() -> None:
    v = adapt(MLP((2, 4, 1)), 1)
    before = torch.get_rng_state()
    merge(v)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 6), st.booleans())
def test_the_jacobian_needs_no_new_rule(rank: int, bias: bool) -> None:
    v = trained(adapt(MLP((2, 6, 6, 1)).double(), rank, bias=bias))
    x = torch.randn(5, 2, dtype=F64)

    def residual() -> torch.Tensor:
        value, (u_t, u_x), u_xx = taylor(v, x, weights=[0.0, 1.0])
        return u_t + value * u_x - 0.1 * u_xx

    parameters = [p for p in v.parameters() if p.requires_grad]
    rows = linearize(residual, parameters, check=True).rows()
    r = residual()[:, 0] / 5**0.5
    for n in range(5):
        grads = torch.autograd.grad(r[n], parameters, retain_graph=True, materialize_grads=True)
        expected = torch.cat([g.reshape(-1) for g in grads])
        assert (rows[n] - expected).abs().max() < 1e-12


def test_ranks_are_capped_or_not() -> None:
    base = MLP((2, 64, 64, 3))
    assert [a.rank for a in adapters(adapt(base, 8)).values()] == [2, 8, 3]
    assert [a.rank for a in adapters(adapt(base, 8, cap=False)).values()] == [8, 8, 8]
    assert list(adapters(adapt(base, {"layers.1": 3}))) == ["layers.1"]


def test_start_from_given_directions() -> None:
    base = MLP((3, 5, 1))
    rows = torch.eye(3)
    v = adapt(base, 2, aimed={"layers.0": rows[:1]})
    assert torch.equal(adapters(v)["layers.0"].A[0], rows[0])
    assert not torch.equal(adapters(v)["layers.0"].A[1], rows[1])


def full(d_in: int, d_out: int, hidden: int) -> int:
    """Parameters of d_in - 64 x (hidden + 1) - d_out by the package's own network."""
    return count(MLP((d_in, *[64] * (hidden + 1), d_out)))


def factors(d_in: int, d_out: int, hidden: int, rank: int) -> int:
    return count(adapt(MLP((d_in, *[64] * (hidden + 1), d_out)), rank, cap=False))


def test_the_papers_full_counts_need_five_hidden_matrices() -> None:
    assert full(2, 1, 5) == 21057  # 1D Burgers, Tables 1 and 2
    assert full(2, 3, 5) == 21187  # Kovasznay, Tables 1 and 2
    assert full(3, 2, 5) == 21186  # 2D Burgers: Table 1 prints Kovasznay's 21187 instead
    assert full(2, 2, 5) == 21122  # 2D Burgers, Table 2: two inputs, so t (or x or y) is dropped


def test_the_papers_lora_counts_need_four_hidden_matrices() -> None:
    printed = {1: (643, 645, 645), 2: (1286, 1290, 1290), 4: (2572, 2580, 2580)}
    printed |= {8: (5144, 5160, 5160), 16: (10288, 10320, 10320), 32: (20576, 20640, 20640)}
    printed |= {64: (41152, 41280, 41280)}
    for rank, row in printed.items():  # Table 1: 1D Burgers, Kovasznay, 2D Burgers (t, x, y)
        shapes = [(2, 1), (2, 3), (3, 2)]
        assert tuple(factors(i, o, 4, rank) for i, o in shapes) == row
    table_2 = [factors(2, 2, 4, rank) for rank in (1, 2, 4, 8)]
    assert table_2 == [644, 1288, 2576, 5152]  # 2D Burgers, with two inputs again


def test_the_papers_depths_contradict_each_other() -> None:
    # "[inputs - 64*4 - outputs]" read as four layers has three hidden matrices: neither count.
    assert full(2, 1, 3) == 12737 != 21057 and factors(2, 1, 3, 1) == 515 != 643
    assert factors(2, 1, 5, 1) == 771 and full(2, 1, 4) == 16897
    # From rank 4 on the first and last layers have more factors than they have rank.
    assert count(adapt(MLP((2, *[64] * 5, 3)), 4)) == 2381 < 2580
    assert factors(2, 3, 4, 64) / full(2, 3, 4) > 2


def test_bad_input_is_named() -> None:
    base = MLP((2, 8, 1))
    with pytest.raises(ValueError, match="rank 9 for the largest layer, whose full rank is 2"):
        adapt(base, 9)
    with pytest.raises(ValueError, match=r"rank 3 for layer layers\.0, whose full rank is 2"):
        adapt(base, {"layers.0": 3})
    with pytest.raises(ValueError, match="no linear layer 'head'"):
        adapt(base, {"head": 1})
    with pytest.raises(ValueError, match=r"Conv1d has no nn\.Linear layer"):
        adapt(nn.Conv1d(1, 1, 3))
    with pytest.raises(ValueError, match="has no adapters"):
        merge(base)
    for rank in (0, -2):
        with pytest.raises(ValueError, match=f"rank {rank} for the largest layer.*give 1 to 2"):
            adapt(base, rank)
        with pytest.raises(ValueError, match=f"rank {rank}: give at least 1"):
            adapt(base, rank, cap=False)
    with pytest.raises(ValueError, match="ranks of no layer"):
        adapt(base, {})
    with pytest.raises(ValueError, match=r"has adapters already.*merge\(model\)"):
        adapt(adapt(base, 1), 1)
    with pytest.raises(ValueError, match="has adapters already"):
        with_factors(adapt(base, 1), state(adapt(base, 1)))
    with pytest.raises(ValueError, match="has adapters already"):
        HyperLoRA(adapt(base, 1), Interval(0, 1))
    for rank, shown in ((2.5, "2.5"), (4.0, "4.0"), ("4", "'4'"), (None, "None")):
        with pytest.raises(ValueError, match=f"rank {shown} for the largest layer: a rank is a wh"):
            adapt(base, rank)
    with pytest.raises(
        ValueError, match=r"rank 1\.5 for layer layers\.0: a rank is a whole number"
    ):
        adapt(base, {"layers.0": 1.5})
    with pytest.raises(ValueError, match=r"rank 0\.5 for the largest layer: a rank is a whole"):
        HyperLoRA(base, Interval(0, 1), 0.5)
    for rank in (torch.tensor(2), numpy.int64(2)):
        assert max(a.rank for a in adapters(adapt(base, rank)).values()) == 2


class Two(nn.Module):
    """tanh of one layer, then another one; how each is used is up to the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Tied(Two):
    """Two layers with one weight, their biases being their own."""

    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Linear(4, 4)
        self.d.weight = self.b.weight


class Registered(Two):
    """The weight of a layer, registered again under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.other = self.b.weight


class Bias(Two):
    """Two layers with one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.b.bias = self.a.bias


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Tied, r"b\.weight and d\.weight are one Parameter: adapting layer 'b' would part them"),
        (Registered, r"other and b\.weight are one Parameter"),
        (Bias, r"a\.bias and b\.bias are one Parameter"),
    ],
)
def test_layers_that_share_a_parameter_are_refused(model: type[Two], said: str) -> None:
    base = model().double()
    for make in (
        lambda ranks: adapt(base, ranks),
        lambda ranks: HyperLoRA(base, Interval(0, 1), ranks, hidden=(3,)),
    ):
        with pytest.raises(ValueError, match=said):
            make({"b": 1})
        assert make({"c": 1})  # the others may be adapted
    with pytest.raises(ValueError, match="are one Parameter"):
        HyperLoRA(base, Interval(0, 1), None, hidden=(3,))


class Listed(Two):
    """The weight of a layer, kept in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [self.b.weight]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.linear(torch.tanh(self.a(x)), self.weights[0], self.b.bias))


class Multiplied(Listed):
    """The same, by an operator of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.a(x)) @ self.weights[0].T)


@pytest.mark.parametrize("model", [Listed, Multiplied])
def test_a_bypassed_layer_is_refused_where_it_is_used(model: type[Two]) -> None:
    base, x = model().double(), torch.rand(5, 2, dtype=F64)
    v = adapt(base, 1)
    for used in (v, copy.deepcopy(v), merge(v)):
        with pytest.raises(RuntimeError, match="weight of layer 'b' is used outside of the layer"):
            used(x)
    assert torch.equal(adapt(base, {"a": 1, "c": 1})(x), base(x))
    h = HyperLoRA(base, Interval(0, 1), {"b": 1}, hidden=(3,))
    with pytest.raises(RuntimeError, match=r"emitted by the hypernetwork|used outside"):
        h(torch.ones(1, 1, dtype=F64), x)
    assert base(x).shape == (5, 1)  # the base itself is as it was


class Read(Two):
    """A layer whose weight is read, not called, as `nn.MultiheadAttention` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(F.linear(torch.tanh(self.a(x)), self.b.weight, self.b.bias)))


def test_a_layer_whose_weight_is_read_is_adapted_and_gets_its_gradient() -> None:
    base, called = Read().double(), Two().double()
    called.load_state_dict(base.state_dict())
    x = torch.rand(5, 2, dtype=F64)
    v, w = trained(adapt(base, 2)), adapt(called, 2)
    w.load_state_dict(v.state_dict())
    assert (v(x) - w(x)).abs().max() < 1e-14 and (v(x) - base(x)).abs().max() > 1e-3
    for network in (v, w):
        network(x).sum().backward()
    pairs = zip(v.named_parameters(), w.parameters(), strict=True)
    assert all((p.grad - q.grad).abs().max() < 1e-14 for (_, p), q in pairs if p.requires_grad)
    parameters = [[p for p in m.parameters() if p.requires_grad] for m in (v, w)]
    rows = [
        linearize(lambda m=m: taylor(m, x, weights=[1.0, 0.5])[2], some, check=True).rows()
        for m, some in zip((v, w), parameters, strict=True)
    ]
    assert (rows[0] - rows[1]).abs().max() < 1e-12
    h = HyperLoRA(base, Interval(0, 1), {"b": 1}, hidden=(3,))
    with pytest.raises(RuntimeError, match=r"the base reads the weight of a linear layer itself"):
        h(torch.ones(1, 1, dtype=F64), x)


class Complex(nn.Module):
    """A complex layer between real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 5, dtype=F64)
        self.second = nn.Linear(5, 5, dtype=torch.complex128)
        self.last = nn.Linear(5, 1, dtype=F64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(self.first(x) + 0j)).real)  # type: ignore[no-any-return]


def test_complex_layers_are_adapted_and_not_emitted() -> None:
    base, x = Complex(), torch.randn(7, 2, dtype=F64)
    v = trained(adapt(base, rank=2))
    assert adapters(v)["second"].A.is_complex()
    assert (merge(v)(x) - v(x)).abs().max() < 1e-12
    known = [*base.state_dict().values()]
    with_factors(base, state(v))
    assert all(torch.equal(a, b) for a, b in zip(known, base.state_dict().values(), strict=True))
    found = linearize(lambda: v(x), [p for p in v.parameters() if p.requires_grad])
    assert len(found.rows().T) == 2 * (2 + 5) + 2 * 2 * (5 + 5) + 1 + 5
    for rank in (2, None):
        with pytest.raises(ValueError, match=r"'second' is complex.*'first': 4, 'last': 4"):
            HyperLoRA(base, Interval(0.0, 1.0), rank)
    assert HyperLoRA(base, Interval(0.0, 1.0), {"first": 1, "last": 1}).pinn(0.5)(x).shape == (7, 1)
