"""Time windows: each point is answered, differentiated and trained by the network of its window."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.lora import adapters
from hyperlora_ext.serialization import state, with_factors
from kfac_pinn import CornerLayers, LevenbergMarquardt, dirichlet, early, relative_l2, taylor
from kfac_pinn.pinn.domains import Box, TimeSpace
from kfac_pinn.pinn.networks import MLP, PeriodicFeatures
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.problems import PROBLEMS
from kfac_pinn.pinn.training import fit
from kfac_pinn.pinn.windows import Continued, Shifted, Windows, march, window

F64 = torch.float64
START, END = 0.5, 2.5
DOMAIN = TimeSpace(START, END, Box((0.0,), (1.0,)))


def wave(x: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * (x[:, 1:] - x[:, :1] / 3)) * torch.exp(-x[:, :1] / 4)


def transport(initial: str = "initial") -> Problem:
    """u_t + u_x / 3 + u / 4 = 0: a wave that goes round and fades."""

    def interior(u: Any, x: Tensor) -> Tensor:
        value, (u_t, u_x) = taylor(u, x, order=1)
        return u_t + u_x / 3 + value / 4

    terms = {
        "interior": Term(DOMAIN.interior, interior, 200),
        initial: Term(DOMAIN.initial, lambda u, x: u(x) - wave(x), 40),
    }
    return Problem("transport", DOMAIN, terms, wave)


def trained(steps: int) -> Callable[[nn.Module, Problem], Any]:
    return lambda u, problem: fit(u, problem, LevenbergMarquardt(u.parameters()), steps=steps)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, 12, 12, 1))).double()
    trained(25)(network, window(transport(), (START, START + 0.5)))
    return network


def error(u: Any, start: float, end: float) -> float:
    x = DOMAIN.interior(2000, torch.Generator().manual_seed(1), F64)
    x[:, 0] = start + (end - start) * (x[:, 0] - START) / (END - START)
    with torch.no_grad():
        return float((u(x) - wave(x)).square().mean().sqrt())


def test_windows_go_on_where_one_network_stops(base: nn.Module) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    solved = march(base, transport(), 4, trained(12))
    assert error(base, START, START + 0.5) < 1e-3 < 0.1 < error(base, END - 0.5, END)
    assert error(solved, START, END) < 5e-3
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())
    judged = transport().sample(torch.Generator().manual_seed(3), {"interior": 500}, F64)
    for r in judged.residuals(solved)().values():
        assert r.abs().max() < 0.1 and r.square().mean() < 1e-3


def test_values_are_handed_over_exactly(base: nn.Module) -> None:
    solved = march(base, transport(), 4, trained(12), hard=True)
    assert error(solved, START, END) < 5e-3
    x = DOMAIN.interior(50, torch.Generator().manual_seed(1), F64)
    for before, piece, end in zip(solved.pieces, solved.pieces[1:], solved.ends, strict=False):
        x[:, 0] = end
        assert torch.equal(piece(x), before(x))
    assert all(p.requires_grad for p in solved.parameters())
    assert isinstance(solved.pieces[1], Continued) and len(list(base.parameters())) * 4 == len(
        {id(p) for p in solved.parameters()}
    )
    judged = transport().sample(torch.Generator().manual_seed(3), {"interior": 200}, F64)
    assert all(r.abs().max() < 0.2 for r in judged.residuals(solved)().values())


def test_a_later_window_trains_its_own_network_only(base: nn.Module) -> None:
    kept: list[tuple[nn.Module, list[Tensor]]] = []

    def train(u: nn.Module, problem: Problem) -> None:
        assert ("initial" in problem.terms) == (not kept)
        for module, values in kept:
            assert all(torch.equal(p, v) for p, v in zip(module.parameters(), values, strict=True))
        trained(2)(u, problem)
        kept.append((u, [p.clone() for p in u.parameters()]))

    march(base, transport(), 3, train, hard=True)
    assert len(kept) == 3


def test_velocities_are_handed_over_too() -> None:
    """u_tt = u_xx: values and velocities; a term at the start that is not named is an error."""
    problem = PROBLEMS["wave"]()
    with pytest.raises(ValueError, match="say velocity='at rest'"):
        window(problem, (0.25, 0.5), problem.solution)
    with pytest.raises(ValueError, match="and no velocity 'speed'"):
        window(problem, (0.25, 0.5), problem.solution, velocity="speed")
    later = window(problem, (0.25, 0.5), problem.solution, velocity="at rest")
    batch = later.sample(torch.Generator().manual_seed(0), dict.fromkeys(later.terms, 20), F64)
    assert all(r.abs().max() < 1e-10 for r in batch.residuals(problem.solution)().values())
    moved = batch.residuals(lambda x: problem.solution(x) + x[:, :1] - 0.25)()
    assert moved["initial 0"].abs().max() < 1e-10
    assert (moved["at rest 0"] - 10**0.5).abs().max() < 1e-9


def test_windows_are_saved_and_loaded_as_one_module(base: nn.Module) -> None:
    solved, other = (march(base, transport(), 2, trained(n)) for n in (1, 0))
    other.load_state_dict(solved.state_dict())
    x = DOMAIN.interior(50, dtype=F64)
    assert torch.equal(other(x), solved(x))


def test_windows_of_adapters_share_their_base_and_are_kept_as_factors(base: nn.Module) -> None:
    solved = march(adapt(base, 3), transport(), 4, trained(12))
    assert error(solved, START, END) < 5e-3
    for one, other in zip(solved.pieces, solved.pieces[1:], strict=False):
        shared = zip(adapters(one).values(), adapters(other).values(), strict=True)
        assert all(a.frozen.weight.data_ptr() == b.frozen.weight.data_ptr() for a, b in shared)
        assert any(not torch.equal(a, b) for a, b in zip(*map(factors, (one, other)), strict=True))
    kept = [state(piece) for piece in solved.pieces]
    again = Windows(solved.ends, [with_factors(base, factors) for factors in kept])
    x = DOMAIN.interior(50, dtype=F64)
    assert torch.equal(again(x), solved(x))


def factors(piece: nn.Module) -> list[Tensor]:
    return [factor for layer in state(piece)["factors"].values() for factor in layer.values()]


def test_a_window_has_its_own_time_and_initial_condition() -> None:
    problem = window(transport(), (1.0, 1.5), lambda x: 2 * wave(x), weight=4.0)
    batch = problem.sample(torch.Generator().manual_seed(0), dtype=F64)
    inside, first = batch.points["interior"], batch.points["initial"]
    assert inside[:, 0].min() >= 1.0 and inside[:, 0].max() <= 1.5 and (first[:, 0] == 1.0).all()
    found = batch.residuals(wave)()
    assert found["interior"].abs().max() < 1e-12
    assert (found["initial 0"] + 2 * wave(first)[:, 0]).abs().max() < 1e-12
    assert (problem.domain.start, problem.domain.end) == (1.0, 1.5)


def test_the_first_window_is_the_networks_own(base: nn.Module) -> None:
    """Wherever time begins: a network trained on the first window is its solution there."""
    solved = march(base, transport(), 4, trained(0))
    x = DOMAIN.interior(50, dtype=F64)
    x[:, 0] = START + (x[:, 0] - START) / 4
    assert torch.equal(solved(x), base(x))


def test_every_point_is_answered_by_its_window() -> None:
    constant = [nn.Linear(2, 1).double() for _ in range(3)]
    for i, layer in enumerate(constant):
        layer.weight.data.zero_()
        layer.bias.data.fill_(i)
    u = Windows((1.0, 2.0, 3.0), constant)
    x = torch.tensor([[0.0, 0.3], [0.9, 0.1], [1.5, 0.2], [2.5, 0.0], [3.0, 0.0]], dtype=F64)
    assert u(x)[:, 0].tolist() == [0, 0, 1, 2, 2]


def test_derivatives_are_those_of_each_window() -> None:
    offsets = [torch.tensor([float(i), 0.0], dtype=F64) for i in range(3)]
    pieces = [Shifted(MLP((2, 5, 2)).double(), offset) for offset in offsets]
    x = torch.rand(40, 2, dtype=F64)
    x[:, 0] *= 3
    together = taylor(Windows((1.0, 2.0, 3.0), pieces), x, 3)
    for i, piece in enumerate(pieces):
        here = (x[:, 0] > i) & (x[:, 0] <= i + 1)
        for mine, alone in zip(together, taylor(piece, x, 3), strict=True):
            assert here.any() and torch.equal(mine[..., here, :], alone[..., here, :])


def test_a_shifted_network_is_linearised() -> None:
    v = Shifted(MLP((2, 4, 1)).double(), torch.tensor([0.5, 0.0], dtype=F64))
    x = torch.rand(30, 2, dtype=F64)
    optimizer = LevenbergMarquardt(v.parameters())
    losses = [
        float(optimizer.step(lambda: taylor(v, x, order=1)[1][0] - x[:, :1])) for _ in range(5)
    ]
    assert losses[-1] < losses[0]
    assert (v(x) - v.network(x - torch.tensor([0.5, 0.0]).double())).abs().max() == 0
    last = Shifted(v.network, torch.tensor([0.25], dtype=F64))  # of the last coordinate alone
    assert torch.equal(last(x), v.network(x - torch.tensor([0.0, 0.25]).double()))


class Clock(nn.Module):
    """(t, x) -> (t, x, sqrt(t - START)): what belongs to the time of the whole problem."""

    def forward(self, x: Any) -> Any:
        return torch.cat([x, torch.sqrt(x[:, :1] - START + 1e-9)], dim=1)


def test_features_keep_the_time_of_the_whole_problem() -> None:
    network, starts = MLP((3, 4, 1)).double(), []
    solved = march(network, transport(), 4, lambda u, _: starts.append(u), features=Clock())
    x = DOMAIN.interior(40, torch.Generator().manual_seed(0), F64)
    place = ((x[:, :1] - START) / 0.5).floor()
    expected = network(torch.cat([x[:, :1] - 0.5 * place, x[:, 1:], Clock()(x)[:, 2:]], dim=1))
    torch.testing.assert_close(solved(x), expected)
    assert len(starts) == 4 and all(u[0] is starts[0][0] for u in starts)
    slopes = torch.func.vmap(torch.func.jacrev(lambda y: solved(y[None])[0, 0]))(x)
    found = taylor(solved, x, 1)[1].movedim(0, 1)[..., 0]
    torch.testing.assert_close(found, slopes)


@pytest.mark.parametrize("hard", [False, True])
def test_layers_of_the_first_moment_are_there_in_later_windows(hard: bool) -> None:
    """A solution that is one of them is found exactly by a linear network, in every window."""
    layers = CornerLayers(DOMAIN, 0.05, [(1, 1)])

    def solution(x: Tensor) -> Tensor:
        return layers(x)[:, 2:3]

    def interior(u: Any, x: Tensor) -> Tensor:
        _, (u_t, _), u_xx = taylor(u, x, weights=[0.0, 1.0])
        return u_t - 0.05 * u_xx

    terms = {
        "interior": Term(DOMAIN.interior, interior, 60),
        "initial": Term(DOMAIN.initial, dirichlet(solution), 20),
        "walls": Term(early(DOMAIN.boundary, DOMAIN), dirichlet(solution), 40),
    }
    problem = Problem("layer", DOMAIN, terms, solution)
    network = nn.Linear(layers.width, 1).double()
    solved = march(network, problem, 3, trained(12), features=layers, hard=hard)
    assert relative_l2(solved, solution, DOMAIN.interior(300, dtype=F64)) < 1e-8


def test_features_that_windows_cannot_share_are_refused() -> None:
    network = MLP((3, 4, 1)).double()

    def going(features: Any) -> None:
        march(network, transport(), 2, lambda u, problem: None, features=features)

    with pytest.raises(TypeError, match="march: features"):
        going(torch.sqrt)
    with pytest.raises(ValueError, match="parameters that are trained"):
        going(nn.Linear(2, 3).double())
    with pytest.raises(ValueError, match="must be t"):
        going(PeriodicFeatures((1.0, None)))


def test_problems_without_time_are_refused(base: nn.Module) -> None:
    problem = transport()
    with pytest.raises(ValueError, match="has domain Box; windows need a TimeSpace"):
        window(replace(problem, domain=Box.cube(2)), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"has terms \['interior'\] and none 'initial'"):
        window(replace(problem, terms={"interior": problem.terms["interior"]}), (0.0, 1.0))
    with pytest.raises(ValueError, match="march: count must be a whole number"):
        march(base, problem, 0, trained(0))
    with pytest.raises(ValueError, match="2 ends of 1 windows"):
        Windows((1.0, 2.0), [base])
    assert len(march(base, transport("start"), 2, trained(0), initial="start").pieces) == 2
