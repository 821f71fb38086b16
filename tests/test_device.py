"""Nothing assumes the CPU: the same numbers on a second device, all tensors of which stay there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import regimes
import second_device
import torch
from second_device import Elsewhere, SecondDevice, SecondGenerator
from small_problems import flat, network, points, poisson, relative
from torch import Tensor, nn

import hyperlora_ext as hl
import kfac_pinn.pinn.problems
from hyperlora_ext.problems import (
    burgers1d,
    burgers1d_potential,
    burgers1d_published,
    burgers2d,
    kovasznay,
)
from hyperlora_ext.schedules import LevenbergSchedule, StochasticSchedule
from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    MLP,
    SPRING,
    GaussNewton,
    HessianFree,
    KFACStar,
    PeriodicFeatures,
    taylor,
)
from kfac_pinn.curvature.compression import Sketch
from kfac_pinn.curvature.sample_space import NystromKernel
from kfac_pinn.optimizers.engd import Diagonal, PerLayer, SampleSpace
from kfac_pinn.pinn.training import fit

pytestmark = pytest.mark.skipif(
    not second_device.AVAILABLE, reason="this torch cannot have a device written in Python"
)

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "KFACPINN": KFACPINN,
    "GaussNewton": GaussNewton,
    "GaussNewton, sketched": lambda p: GaussNewton(p, compression=Sketch(30)),
    "KFAC": KFAC,
    "KFACStar": KFACStar,
    "ENGD": ENGD,
    "ENGD per layer": lambda p: ENGD(p, gramian=PerLayer()),
    "ENGD diagonal": lambda p: ENGD(p, gramian=Diagonal()),
    "ENGD kernel": lambda p: ENGD(p, gramian=SampleSpace()),
    "SPRING": SPRING,
    "SPRING, Nystrom": lambda p: SPRING(p, kernel=NystromKernel(5)),
    "HessianFree": HessianFree,
}


@pytest.fixture(scope="module")
def registered() -> torch.device:
    """The second device, known to torch from now on."""
    return second_device.register()


@pytest.fixture
def device(registered: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The second device, entered."""
    monkeypatch.setattr("kfac_pinn.linalg.sketches.Generator", SecondGenerator)
    # the threads of autograd are those of the devices that there were at its first use
    with torch.autograd.set_multithreading_enabled(False), SecondDevice():
        yield registered


def test_two_devices_do_not_mix(device: torch.device) -> None:
    """The emulation would notice: it refuses what a GPU refuses."""
    here = torch.ones(3)
    there = here.to(device)
    assert isinstance(there + 1.0, Elsewhere) and there.device == device
    assert (there * torch.tensor(2.0)).tolist() == [2.0] * 3  # scalars of the CPU are welcome
    with pytest.raises(RuntimeError, match="two devices"):
        there + here


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_optimizers(make: Callable[[Any], Any], device: torch.device) -> None:
    def trained(place: Any) -> Tensor:
        model = network(2, 5, 1).to(place)
        optimizer, boundary = make(model.parameters()), points(9, seed=9).to(place)
        for seed in (0, 0, 1):  # the points of the last step are new
            closure = poisson(model, points(40, seed=seed).to(place), boundary)
            assert optimizer.step(closure).device == torch.device(place)
        tensors = [t for entry in optimizer.state.values() for t in leaves(entry) if t.ndim]
        assert all(t.device == torch.device(place) for t in tensors)
        return flat(model).cpu()

    # sums are rounded in another order, and dampings of 1e-10 let that grow by up to 1e10
    assert relative(trained(device), trained("cpu")) < 1e-5


def leaves(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (t for entry in value.values() for t in leaves(entry))
    elif isinstance(value, (list, tuple)):
        yield from (t for entry in value for t in leaves(entry))


def test_a_run_moves_between_devices(device: torch.device) -> None:
    """State that was saved there is loaded here, and the run goes on as it would have."""

    def steps(model: nn.Module, optimizer: Any, place: Any, n: int) -> None:
        closure = poisson(model, points(12).to(place), points(3, seed=1).to(place))
        for _ in range(n):
            optimizer.step(closure)

    there, here = network(2, 5, 1).to(device), network(2, 5, 1)
    first, second = KFACPINN(there.parameters()), KFACPINN(here.parameters())
    steps(there, first, device, 2)
    second.load_state_dict(first.state_dict())
    here.load_state_dict(there.state_dict())
    steps(there, first, device, 1)
    steps(here, second, "cpu", 1)
    assert relative(flat(there).cpu(), flat(here)) < 1e-9


@pytest.mark.parametrize(
    "name", ["poisson_2d", "poisson_100d", "heat_1d", "heat_4d", "burgers", "fokker_planck"]
)
def test_problems(name: str, device: torch.device) -> None:
    """Points, conditions and the solution: the whole training loop."""
    problem = getattr(kfac_pinn.pinn.problems, name)()
    inputs = problem.domain.interior(1).shape[1]

    def last(place: Any) -> dict[str, Any]:
        model = network(inputs, 4, 1).to(place)
        rows = fit(model, few(problem), SPRING(model.parameters()), steps=1, every=1).rows
        return {
            key: value
            for key, value in rows[-1].items()
            if isinstance(value, float) and "second" not in key
        }

    assert last(device) == pytest.approx(last("cpu"), rel=1e-8)


def few(problem: Any) -> Any:
    """The problem with six points a condition."""
    terms = {name: replace(term, size=6) for name, term in problem.terms.items()}
    return replace(problem, terms=terms)


FAMILIES: dict[str, tuple[Callable[[], hl.Family], Callable[[], nn.Module]]] = {
    "Kovasznay": (kovasznay, lambda: MLP((2, 5, 5, 3))),
    "1D Burgers": (
        burgers1d,
        lambda: nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, 5, 5, 1))),
    ),
    "1D Burgers, potential": (
        burgers1d_potential,
        lambda: nn.Sequential(PeriodicFeatures((None, 1.0)), MLP((3, 5, 5, 1))),
    ),
    "1D Burgers, published": (burgers1d_published, lambda: MLP((2, 5, 5, 1))),
    "2D Burgers": (burgers2d, lambda: MLP((3, 5, 5, 2))),
}


def small(family: hl.Family) -> tuple[dict[str, int], LevenbergSchedule]:
    """Four points a condition, and a schedule with them."""
    sizes = dict.fromkeys(family.conditions, 4)
    return sizes, LevenbergSchedule(sizes, sizes, every=2)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, device: torch.device) -> None:
    """Points, residuals and solutions of many tasks: a hypernetwork, certified and polished."""
    make, new = FAMILIES[name]
    family, tasks = make(), make().splits().train[:2]
    sizes, train = small(family)
    hyper = hl.HyperLoRA(new().double().to(device), family.space, rank=1, hidden=(4, 4)).to(device)
    regimes.by_physics(hyper, family, lambda _: tasks, train, sizes, steps=1)
    regimes.by_data(hyper, family, tasks, LevenbergSchedule(every=2), 5, steps=1)
    regimes.by_physics(
        hyper, family, lambda g: family.space.sample(2, g), StochasticSchedule(), sizes, steps=1
    )
    solved = hl.solve(hyper, family, tasks[0], tolerance=0.0, sizes=sizes, steps=1)
    assert solved.model(family.grid[:5].to(device)).device == device
    assert all(p.device == device for p in solved.model.parameters())
    assert family.errors(lambda task: hyper.pinn(task), tasks).mse.isfinite().all()


def test_regimes(device: torch.device) -> None:
    """What is trained a task at a time, and a hypernetwork from it."""
    family, tasks = kovasznay(), kovasznay().splits().train[:2]
    _, train = small(family)
    base = regimes.pinn(
        MLP((2, 5, 5, 3)).double().to(device), family.problem(tasks[0]), train, steps=1
    )
    adapted = regimes.l_pinn(base, family.problem(tasks[1]), train, rank=1, steps=1)
    whole = regimes.f_pinn(base, family.problem(tasks[1]), train, steps=1)
    hyper = hl.HyperLoRA(base, family.space, rank=1, hidden=(4, 4)).to(device)
    teachers = regimes.teachers(hyper, family, tasks, train, steps=1)
    regimes.by_pinns(hyper, family, (tasks, teachers), LevenbergSchedule(), 5, steps=1)
    regimes.by_weights(hyper, family, (tasks, teachers))
    for model in (adapted, whole, hyper):
        assert all(p.device == device for p in model.parameters())


def test_taylor_series_stay_there(device: torch.device) -> None:
    model, x = network(3, 4, 1).to(device), points(5, 3).to(device)
    series = taylor(model, x, weights=[1.0, 0.5, 2.0])
    assert all(entry.device == device for entry in series)
