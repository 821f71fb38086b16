from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperlora_ext.frames import Shifted
from hyperlora_ext.levenberg import LevenbergMarquardt
from hyperlora_ext.lora import adapters
from hyperlora_ext.saved import load, state
from hyperlora_ext.training import Levenberg
from hyperlora_ext.windows import Windows, delay, march, window
from kfac_pinn import taylor
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures
from kfac_pinn.pinn.problem import Problem, Term

F64 = torch.float64
DOMAIN = TimeSpace(0.0, 2.0, Box((0.0,), (1.0,)))


def wave(x: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * (x[:, 1:] - x[:, :1] / 3)) * torch.exp(-x[:, :1] / 4)


def transport() -> Problem:
    """u_t + u_x / 3 + u / 4 = 0: a wave that goes round and fades."""

    def interior(u: Any, x: Tensor) -> Tensor:
        value, (u_t, u_x) = taylor(u, x, order=1)
        return u_t + u_x / 3 + value / 4

    terms = {
        "interior": Term(DOMAIN.interior, interior, 200),
        "initial": Term(DOMAIN.initial, lambda u, x: u(x) - wave(x), 40),
    }
    return Problem("transport", DOMAIN, terms, wave)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, 12, 12, 1))).double()
    Levenberg()(network, window(transport(), (0.0, 0.5)), steps=25)
    return network


def error(u: Any, start: float, end: float) -> float:
    x = DOMAIN.interior(2000, torch.Generator().manual_seed(1), F64)
    x[:, 0] = start + (end - start) * x[:, 0] / 2
    with torch.no_grad():
        return float((u(x) - wave(x)).square().mean().sqrt())


def test_windows_go_on_where_one_network_stops(base: nn.Module) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    solved = march(base, transport(), 4, Levenberg(), rank=3, steps=12)
    assert error(base, 0, 0.5) < 1e-3 < 0.1 < error(base, 1.5, 2.0)
    assert error(solved, 0, 2) < 5e-3
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    for one, other in zip(solved.pieces, solved.pieces[1:], strict=False):
        shared = zip(adapters(one).values(), adapters(other).values(), strict=True)
        assert all(a.frozen.weight.data_ptr() == b.frozen.weight.data_ptr() for a, b in shared)
        assert any(not torch.equal(a, b) for a, b in zip(*map(factors, (one, other)), strict=True))
    judged = transport().sample(torch.Generator().manual_seed(3), {"interior": 500}, F64)
    for r in judged.residuals(solved)().values():
        assert r.abs().max() < 0.1 and r.square().mean() < 1e-3
    kept = [state(piece) for piece in solved.pieces]
    again = Windows(solved.ends, tuple(load(base, factors) for factors in kept))
    x = torch.rand(50, 2, dtype=F64) * torch.tensor([2.0, 1.0], dtype=F64)
    assert torch.equal(again(x), solved(x))


def factors(piece: nn.Module) -> list[Tensor]:
    return [value for name, value in state(piece).items() if name != "offset"]


def test_a_window_has_its_own_time_and_initial_condition() -> None:
    problem = window(transport(), (0.5, 1.0), lambda x: 2 * wave(x), weight=4.0)
    batch = problem.sample(torch.Generator().manual_seed(0), dtype=F64)
    inside, first = batch.points["interior"], batch.points["initial"]
    assert inside[:, 0].min() >= 0.5 and inside[:, 0].max() <= 1.0 and (first[:, 0] == 0.5).all()
    found = batch.residuals(wave)()
    assert found["interior"].abs().max() < 1e-12
    assert (found["initial 0"] + 2 * wave(first)[:, 0]).abs().max() < 1e-12
    assert (problem.domain.start, problem.domain.end) == (0.5, 1.0)


def test_every_point_is_answered_by_its_window() -> None:
    constant = [nn.Linear(2, 1).double() for _ in range(3)]
    for i, layer in enumerate(constant):
        layer.weight.data.zero_()
        layer.bias.data.fill_(i)
    u = Windows(
        (1.0, 2.0, 3.0), tuple(Shifted(c, delay(float(i), 2)) for i, c in enumerate(constant))
    )
    x = torch.tensor([[0.0, 0.3], [0.9, 0.1], [1.5, 0.2], [2.5, 0.0], [3.0, 0.0]], dtype=F64)
    assert u(x)[:, 0].tolist() == [0, 0, 1, 2, 2]


def test_derivatives_are_those_of_each_window() -> None:
    pieces = tuple(Shifted(MLP((2, 5, 2)).double(), delay(float(i), 2)) for i in range(3))
    x = torch.rand(40, 2, dtype=F64)
    x[:, 0] *= 3
    together = taylor(Windows((1.0, 2.0, 3.0), pieces), x, 3)
    for i, piece in enumerate(pieces):
        here = (x[:, 0] > i) & (x[:, 0] <= i + 1)
        for mine, alone in zip(together, taylor(piece, x, 3), strict=True):
            assert here.any() and torch.equal(mine[..., here, :], alone[..., here, :])


def test_a_shifted_network_is_linearised(base: nn.Module) -> None:
    v = Shifted(MLP((2, 4, 1)).double(), delay(0.5, 2))
    x = torch.rand(30, 2, dtype=F64)
    optimizer = LevenbergMarquardt(v.parameters())
    losses = [
        float(optimizer.step(lambda: taylor(v, x, order=1)[1][0] - x[:, :1])) for _ in range(5)
    ]
    assert losses[-1] < losses[0]
    assert (v(x) - v.network(x - torch.tensor([0.5, 0.0]).double())).abs().max() == 0


def test_problems_without_time_are_refused() -> None:
    problem = transport()
    with pytest.raises(ValueError, match="windows need a TimeSpace"):
        window(replace(problem, domain=Box.cube(2)), (0.0, 1.0))
    with pytest.raises(ValueError, match='a term "initial"'):
        window(replace(problem, terms={"interior": problem.terms["interior"]}), (0.0, 1.0))
