"""HyperLoRA: any hypernetwork emits the adapters, and its Jacobian equals brute force."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published_schedule import PublishedSchedule
from regimes import by_pinns
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.emitted_layers import task_linear
from hyperlora_ext.family import Family
from hyperlora_ext.hyper import HIDDEN, HyperLoRA
from hyperlora_ext.lora import adapters, count
from hyperlora_ext.problems import burgers1d, kovasznay
from hyperlora_ext.task_problem import TaskProblem
from hyperlora_ext.task_residuals import EmittedLinearization, TaskResiduals
from hyperlora_ext.task_spaces import Interval
from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    SPRING,
    GaussNewton,
    HessianFree,
    KFACStar,
    LevenbergMarquardt,
    linearize,
)
from kfac_pinn.jacobian.closure import SelfLinearizing
from kfac_pinn.jacobian.terms import total_loss
from kfac_pinn.pinn.networks import MLP, ModifiedMLP
from kfac_pinn.search.line import FixedStep
from kfac_pinn.taylor_mode.operators import taylor

F64 = torch.float64
FAMILY = kovasznay()
SIZES = {"interior": 5, "boundary": 4}


def hyper(rank: int | None = 2, base: nn.Module | None = None, spread: float = 0.1) -> HyperLoRA:
    """A small hypernetwork that is not at its start."""
    base = base or MLP((2, 6, 6, 3))
    h = HyperLoRA(base.double(), FAMILY.space, rank, hidden=(7, 5))
    with torch.no_grad():
        for p in h.network.parameters():
            p.add_(spread * torch.randn_like(p))
    return h


def closure(h: HyperLoRA, count: int = 3) -> TaskResiduals:
    tasks = FAMILY.space.nodes(count)
    points = FAMILY.sample(tasks, torch.Generator().manual_seed(1), SIZES)
    return TaskResiduals(h, tasks, lambda u: FAMILY.residuals(u, tasks, points))


def brute_force(residuals: TaskResiduals, parameters: list[torch.Tensor]) -> torch.Tensor:
    """J row by row: one backward pass through PINN and hypernetwork a row."""
    rows = []
    for r in residuals().values():
        for entry in r / len(r) ** 0.5:
            g = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([each.reshape(-1) for each in g]))
    return torch.stack(rows)


# --- many tasks in one pass ----------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["shared", "own", "none"]))
def test_task_linear_is_one_linear_layer_a_task(tasks: int, n: int, bias: str) -> None:
    x, W = torch.randn(tasks * n, 3, dtype=F64), torch.randn(tasks, 2, 3, dtype=F64)
    b = {"shared": torch.randn(2).double(), "own": torch.randn(tasks, 2).double(), "none": None}[
        bias
    ]

    def one_by_one(x: object) -> torch.Tensor:
        own = b if bias == "own" else [b] * tasks
        parts = [nn.functional.linear(x[t * n : (t + 1) * n], W[t], own[t]) for t in range(tasks)]
        return torch.tanh(torch.cat(parts))

    found = taylor(lambda x: torch.tanh(task_linear(x, W, b)), x, 3)
    for mine, right in zip(found, taylor(one_by_one, x, 3), strict=True):
        assert (mine - right).abs().max() < 1e-12


@pytest.mark.parametrize("rank", [2, None])
@pytest.mark.parametrize("base", [MLP((2, 6, 6, 3)), ModifiedMLP((2, 6, 6, 3))], ids=["mlp", "mod"])
def test_batched_fields_are_the_single_pinns(rank: int | None, base: nn.Module) -> None:
    h = hyper(rank, copy.deepcopy(base))
    tasks, x = FAMILY.space.sample(4), torch.rand(9, 2, dtype=F64)
    together = h(tasks, x)
    assert together.shape == (4, 9, 3)
    for t in range(4):
        assert (h.pinn(tasks[t])(x) - together[t]).abs().max() < 1e-13
    own = torch.rand(4, 9, 2, dtype=F64)
    assert (h(tasks, own)[2] - h.pinn(tasks[2])(own[2])).abs().max() < 1e-13


def test_a_base_may_be_parametrised() -> None:
    """weight_norm keeps direction and length, which are not what is emitted."""
    base = nn.Sequential(weight_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 3, bias=False))
    x, tasks = torch.rand(9, 2, dtype=F64), FAMILY.space.nodes(2)
    for rank in (2, None):
        h = HyperLoRA(base.double(), FAMILY.space, rank, hidden=(4,))
        with torch.no_grad():
            h.network.layers[-1].weight.zero_()
        assert (h(tasks, x) - base(x)).abs().max() < 1e-13
        v = h.pinn(50)
        assert (v(x) - base(x)).abs().max() < 1e-13
        assert torch.equal(h.numbers(v), h.factors(tasks)[0])
    assert h.size == 2 * 5 + 5 + 5 * 3


def test_a_new_hypernetwork_starts_near_the_base() -> None:
    base = MLP((2, 16, 16, 3)).double()
    x = torch.rand(50, 2, dtype=F64)
    for rank in (4, None):
        h = HyperLoRA(base, FAMILY.space, rank)
        assert (h(FAMILY.space.nodes(3), x) - base(x)).abs().max() < 0.2
        assert count(h) == count(h.network)


def test_predicted_pinn_can_be_polished() -> None:
    v = hyper(2).pinn(torch.tensor([50.0], dtype=F64))
    assert [a.rank for a in adapters(v).values()] == [2, 2, 2]
    assert count(v) == sum(a.A.numel() + a.B.numel() for a in adapters(v).values())
    whole = hyper(None).pinn(torch.tensor([50.0], dtype=F64))
    assert count(whole) == count(MLP((2, 6, 6, 3)))


def test_hypernetworks_have_the_papers_sizes() -> None:
    assert HIDDEN == (512, 512, 256, 256, 128, 128)
    base = MLP((2, *[64] * 5, 3))
    assert count(HyperLoRA(base, FAMILY.space, 4, cap=False)) == 843_028
    assert count(HyperLoRA(MLP((2, *[64] * 6, 3)), FAMILY.space, None)) == 3_243_331
    space = burgers1d().space
    assert count(HyperLoRA(MLP((2, *[64] * 5, 1)), space, 4, cap=False)) == 907_020
    assert count(HyperLoRA(MLP((2, *[64] * 6, 1)), space, None)) == 3_291_585
    # 2D Burgers of Table 2 has two inputs (see test_hyperlora_lora.py).
    assert count(HyperLoRA(MLP((2, *[64] * 5, 2)), Interval(0, 1), 4, cap=False)) == 842_512
    assert count(HyperLoRA(MLP((2, *[64] * 6, 2)), Interval(0, 1), None)) == 3_234_946


def test_hypernetwork_saves_and_loads() -> None:
    h, file = hyper(2), io.BytesIO()
    torch.save(h.state_dict(), file)
    file.seek(0)
    other = HyperLoRA(MLP((2, 6, 6, 3)).double(), FAMILY.space, 2, hidden=(7, 5))
    other.load_state_dict(torch.load(file, weights_only=True))
    tasks, x = FAMILY.space.nodes(2), torch.rand(5, 2, dtype=F64)
    assert torch.equal(h(tasks, x), other(tasks, x))
    assert torch.equal(h(tasks, x), copy.deepcopy(h)(tasks, x))


# --- the linearisation ---------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, None])
@pytest.mark.parametrize("base", [MLP((2, 6, 6, 3)), ModifiedMLP((2, 6, 6, 3))], ids=["mlp", "mod"])
def test_factored_kernel_equals_brute_force_rows(rank: int | None, base: nn.Module) -> None:
    h = hyper(rank, copy.deepcopy(base))
    residuals, parameters = closure(h), list(h.network.parameters())
    lin = linearize(residuals, parameters, check=True)
    J = brute_force(residuals, parameters)
    r = torch.cat([r / len(r) ** 0.5 for r in residuals().values()])
    v, u = torch.randn(J.shape[1], dtype=F64), torch.randn(J.shape[0], dtype=F64)
    scale = float((J @ J.T).abs().max())
    assert (lin.kernel() - J @ J.T).abs().max() < 1e-12 * scale
    for mine, right in [
        (lin.residual, r), (lin.gradient, J.T @ r), (lin @ v, J @ v),
        (lin.vjp(u), J.T @ u), (lin.rows(), J), (lin.gramian(), J.T @ J),
    ]:  # fmt: skip
        assert (mine - right).detach().abs().max() < 1e-12 * (1 + float(right.detach().abs().max()))
    assert lin.loss == pytest.approx(float(total_loss(residuals()).detach()), rel=1e-12)


class Encoder(nn.Module):
    """A hypernetwork of the user's: a convolution, a gate, a frozen weight, a trained slope."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 3, 3, padding=1)
        self.middle, self.gate = nn.Linear(3 * inputs, 6), nn.Linear(3 * inputs, 6, bias=False)
        self.slope = nn.Parameter(torch.ones(6))
        self.last = nn.Linear(6, size)
        self.middle.weight.requires_grad_(False)

    def forward(self, tasks: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.first(tasks[:, None])).flatten(1)
        return self.last(torch.tanh(self.slope * self.middle(z)) * torch.sigmoid(self.gate(z)))


class Attending(nn.Module):
    """Pieces of a function that attend to one another."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.pieces = nn.Linear(8, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, size)

    def forward(self, tasks: torch.Tensor) -> torch.Tensor:
        z = self.pieces(tasks.unflatten(1, (-1, 8)))
        return self.last((z + self.attention(z, z, z)[0]).mean(1))


class Transformer(nn.Module):
    """A whole encoder layer: attention, norms, a feed-forward network, sums around both."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.pieces, self.last = nn.Linear(16, 6), nn.Linear(6, size)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, tasks: torch.Tensor) -> torch.Tensor:
        return self.last(self.encoder(self.pieces(tasks.unflatten(1, (-1, 16)))).mean(1))


class Recurrent(nn.Module):
    """Reads a function from left to right."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.gru, self.last = nn.GRU(16, 5, batch_first=True), nn.Linear(5, size)

    def forward(self, tasks: torch.Tensor) -> torch.Tensor:
        return self.last(self.gru(tasks.unflatten(1, (-1, 16)))[0][:, -1])


class Waves(nn.Module):
    """The lowest modes of a function, and a bilinear form of them."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.form, self.last = nn.Bilinear(8, 8, 5), nn.Linear(5, size)

    def forward(self, tasks: torch.Tensor) -> torch.Tensor:
        z = torch.view_as_real(torch.fft.rfft(tasks, norm="forward")[:, 1:5]).flatten(1)
        return self.last(torch.tanh(self.form(z, z)))


FIELD = burgers1d()
USERS = {
    "a convolution over a function": (FIELD, Encoder),
    "a convolution over one number": (FAMILY, Encoder),
    "attention over a function": (FIELD, Attending),
    "a transformer's layer": (FIELD, Transformer),
    "a recurrent network": (FIELD, Recurrent),
    "modes and a bilinear form": (FIELD, Waves),
    "one matrix": (FAMILY, lambda inputs, size: nn.Linear(inputs, size, bias=False)),
    "one layer twice": (FAMILY, lambda inputs, size: nn.Sequential(
        nn.Linear(inputs, 5), again := nn.Linear(5, 5), nn.Tanh(), again, nn.Linear(5, size)
    )),
    "layer norm": (FAMILY, lambda inputs, size: nn.Sequential(
        nn.Linear(inputs, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, size)
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", USERS)
def test_any_hypernetwork_has_the_kernel_of_brute_force_rows(name: str) -> None:
    torch.manual_seed(0)
    family, make = USERS[name]
    base = MLP((2, 4, 4, 3 if family is FAMILY else 1)).double()
    h = HyperLoRA(base, family.space, 2, network=make)
    tasks = family.space.sample(3, torch.Generator().manual_seed(2))
    sizes = dict.fromkeys(family.conditions, 4)
    points = family.sample(tasks, torch.Generator().manual_seed(1), sizes)
    residuals = TaskResiduals(h, tasks, lambda u: family.residuals(u, tasks, points))
    parameters = [p for p in h.parameters() if p.requires_grad]
    lin, J = linearize(residuals, parameters, check=True), brute_force(residuals, parameters)
    v, u = torch.randn(J.shape[1], dtype=F64), torch.randn(J.shape[0], dtype=F64)
    for mine, right in [
        (lin.kernel(), J @ J.T), (lin.rows(), J), (lin @ v, J @ v), (lin.vjp(u), J.T @ u),
    ]:  # fmt: skip
        assert (mine - right).abs().max() < 1e-12 * right.abs().max()
    optimizer = LevenbergMarquardt(h.parameters())
    losses = [float(optimizer.step(residuals)) for _ in range(4)]
    assert losses[-1] < losses[0]


def test_a_hypernetwork_may_be_given_whole() -> None:
    base = MLP((2, 6, 3)).double()
    size = 2 * (2 + 6) + 2 * (6 + 3)
    network = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, size))
    h = HyperLoRA(base, FAMILY.space, 2, network=network)
    assert h.network is network and h.size == size
    tasks = FAMILY.space.nodes(3)
    assert torch.equal(h.factors(tasks), h.start + network(FAMILY.space.embed(tasks)))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Linear(1, 33), r"emits \(2, 33\) for a stack \(2, 1\) of tasks.*here to \(2, 34\)"),
        (nn.Linear(2, 34), r"takes no stack \(2, 1\) of tasks"),
        (nn.Sequential(nn.Linear(1, 34), nn.Flatten(0)), r"emits \(68,\) for a stack"),
        (nn.LSTM(1, 34), "emits tuple for a stack"),
    ],
)
def test_hypernetworks_of_another_size_are_refused(network: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HyperLoRA(MLP((2, 6, 3)).double(), FAMILY.space, 2, network=network)


class Total(nn.Module):
    """Each task's numbers and those of all before it."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.cumsum(0)


def test_hypernetworks_that_mix_tasks() -> None:
    """Means over the tasks are exact, by autograd; what depends on their order is refused."""

    def mixing(layer: nn.Module) -> HyperLoRA:
        def make(inputs: int, size: int) -> nn.Module:
            return nn.Sequential(nn.Linear(inputs, 5), layer, nn.Linear(5, size))

        return HyperLoRA(MLP((2, 6, 3)).double(), FAMILY.space, 2, network=make)

    h = mixing(nn.BatchNorm1d(5))
    parameters = [p for p in h.parameters() if p.requires_grad]
    found, J = linearize(closure(h), parameters, check=True), brute_force(closure(h), parameters)
    assert (found.kernel() - J @ J.T).abs().max() < 1e-12 * (J @ J.T).abs().max()
    assert (found @ J[0] - J @ J[0]).abs().max() < 1e-12 * (J @ J[0]).abs().max()
    h = mixing(Total())
    with pytest.raises(RuntimeError, match="does not match autograd's"):
        linearize(closure(h), [p for p in h.parameters() if p.requires_grad], check=True)


def test_residuals_whose_rows_cannot_be_told_apart_are_refused() -> None:
    h, tasks = hyper(), FAMILY.space.nodes(2)
    x = torch.rand(12, 2, dtype=F64)
    sliced = TaskResiduals(h, tasks, lambda u: {"half": u(x)[::2, 0]})
    with pytest.raises(RuntimeError, match=r"'half' has 6 entries but evaluates .* at 12 points"):
        linearize(sliced, h.network.parameters())
    twice = TaskResiduals(h, tasks, lambda u: {"jump": u(x)[:, 0] - u(x + 0.1)[:, 0]})
    found = linearize(twice, h.network.parameters(), check=True)
    J = brute_force(twice, list(h.network.parameters()))
    assert (found.kernel() - J @ J.T).abs().max() < 1e-12 * float((J @ J.T).abs().max())


def test_the_last_layer_alone_is_a_choice_of_parameters() -> None:
    h = hyper()
    residuals, parameters = closure(h), list(h.network.layers[-1].parameters())
    lin = linearize(residuals, parameters, check=True)
    J = brute_force(residuals, parameters)
    assert (lin.kernel() - J @ J.T).abs().max() < 1e-12 * float((J @ J.T).abs().max())


def test_kernel_in_blocks_is_the_kernel() -> None:
    h = hyper()
    tasks = FAMILY.space.nodes(40)
    points = FAMILY.sample(tasks, None, SIZES)
    residuals = TaskResiduals(h, tasks, lambda u: FAMILY.residuals(u, tasks, points))
    lin = residuals.linearize(list(h.network.parameters()))
    J = lin.rows()
    assert len(J) > 512
    assert (lin.kernel() - J @ J.T).abs().max() < 1e-12 * float((J @ J.T).abs().max())


OPTIMIZERS = {
    "ENGD": partial(ENGD, damping=1e-6),
    "GaussNewton": GaussNewton,
    "HessianFree": HessianFree,
    "KFAC": KFAC,
    "KFACPINN": KFACPINN,
    "KFACStar": KFACStar,
    "LevenbergMarquardt": LevenbergMarquardt,
    "SPRING": SPRING,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_runs_on_a_hypernetwork(name: str) -> None:
    h = HyperLoRA(MLP((2, 6, 6, 3)).double(), FAMILY.space, 2, hidden=(7, 5))
    residuals = closure(h)
    optimizer = OPTIMIZERS[name](h.parameters())
    losses = [float(optimizer.step(residuals)) for _ in range(5)]
    assert losses[-1] < losses[0]


def test_linearize_asks_a_closure_that_linearises_itself() -> None:
    h = hyper()
    residuals, parameters = closure(h), list(h.network.parameters())
    assert isinstance(residuals, SelfLinearizing)
    found = linearize(residuals, parameters, check=True)
    J = brute_force(residuals, parameters)
    assert type(found) is EmittedLinearization
    assert (found.kernel() - J @ J.T).abs().max() < 1e-12 * float((J @ J.T).abs().max())


def test_a_step_is_the_step_of_the_brute_force_rows() -> None:
    h = hyper()
    residuals, parameters = closure(h), list(h.network.parameters())
    J, before = brute_force(residuals, parameters), torch.cat([p.flatten() for p in parameters])
    r = torch.cat([r / len(r) ** 0.5 for r in residuals().values()])
    ENGD(parameters, damping=1e-3, search=FixedStep()).step(residuals)
    kernel = J @ J.T + 1e-3 * torch.eye(len(r), dtype=F64)
    right = -J.T @ torch.linalg.solve(kernel, r)
    step = torch.cat([p.flatten() for p in parameters]) - before
    assert (step - right).norm() < 1e-9 * right.norm()


@pytest.mark.parametrize("family", [kovasznay(), burgers1d()], ids=["number", "function"])
def test_everything_takes_the_networks_dtype(family: Family) -> None:
    """Float32 stands in for a device: whatever is made in passing must follow the network."""
    box = len(family.grid[0])
    fields = family.reference(family.splits().test[0]).shape[1]
    h = HyperLoRA(MLP((box, 6, fields)), family.space, 2, hidden=(7,))
    problem = TaskProblem(family, 3, sizes=dict.fromkeys(family.conditions, 5))
    closure = problem.sample(torch.Generator().manual_seed(0), dtype=torch.float32).residuals(h)
    assert {r.dtype for r in closure().values()} == {torch.float32}
    optimizer = LevenbergMarquardt(h.parameters())
    losses = [float(optimizer.step(closure)) for _ in range(3)]
    assert losses[-1] < losses[0]
    task = family.space.sample(1, torch.Generator().manual_seed(0))[0]
    x = family.grid[:7].float()
    assert h.pinn(task)(x).dtype == h(task, x).dtype == torch.float32
    assert family.errors(lambda t: h.fields(t), task).mse.dtype == torch.float64
    known = task[None], [h.pinn(task)]
    adam = PublishedSchedule(2, 1, 1)
    by_pinns(copy.deepcopy(h), family, known, adam, 5)


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    h = hyper()
    with pytest.raises(ValueError, match="has 1 number"):
        h.factors(torch.ones(2, 3, dtype=F64))
    with pytest.raises(ValueError, match=r"no nn\.Linear layer"):
        HyperLoRA(nn.Tanh(), FAMILY.space)
    with pytest.raises(ValueError, match="rank 9 for the largest layer"):
        HyperLoRA(MLP((2, 6, 6, 3)), FAMILY.space, rank=9)
    with pytest.raises(ValueError, match="10 points for 3 tasks"):
        h.fields(FAMILY.space.nodes(3))(torch.rand(10, 2, dtype=F64))
    with pytest.raises(RuntimeError, match="no weights of its own"):
        h.template(torch.rand(3, 2, dtype=F64))
    with pytest.warns(UserWarning, match="outside the trained range") as caught:
        h.pinn(torch.tensor([500.0], dtype=F64))
    assert caught[0].filename == __file__  # the line that asks for it, not one in the package
    with pytest.raises(ValueError, match="one task is expected, found a stack of 2"):
        h.pinn(FAMILY.space.nodes(2))
    assert torch.equal(h.pinn(50.0)(x := torch.rand(3, 2).double()), h.pinn(torch.tensor([50]))(x))
    with pytest.raises(ValueError, match="points of 4 tasks for 2 tasks"):
        h(FAMILY.space.nodes(2), torch.rand(4, 5, 2, dtype=F64))
    for other in (MLP((2, 6, 6, 3)), adapt(MLP((2, 6, 6, 3)), 1)):
        with pytest.raises(ValueError, match=r"not of the kind or rank.*hyper\.pinn\(task\)"):
            h.numbers(other)
    for wrong in (h.pinn(50), MLP((2, 6, 5, 3)).double()):
        with pytest.raises(ValueError, match="not of the kind or rank"):
            hyper(None).numbers(wrong)
    unread = TaskResiduals(h, FAMILY.space.nodes(2), lambda u: {"theta": u.theta.reshape(-1)})
    with pytest.raises(RuntimeError, match="'theta' does not evaluate the tasks' networks"):
        unread.linearize(list(h.network.parameters()))


def test_mixed_points_are_refused() -> None:
    base = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    h = HyperLoRA(base.double(), FAMILY.space, 2, hidden=(4,))
    residuals = TaskResiduals(
        h, FAMILY.space.nodes(2), lambda u: {"r": u(torch.rand(6, 2).double())[:, 0]}
    )
    with pytest.raises(RuntimeError, match="does not match autograd's"):
        linearize(residuals, h.network.parameters(), check=True)
