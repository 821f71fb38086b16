"""The paper's own way: network, points, optimizer, and its schedule within our seconds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from configs import CONFIGS
from published_schedule import PUBLISHED_HYPER, PUBLISHED_PINN

from hyperlora_ext.adaptation import adapt
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.problems.coupled_burgers import in_front
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP
from kfac_pinn.pinn.training import Callback, Run
from kfac_pinn.pinn.training.clock import now


@dataclass
class Rates(Callback):
    """The learning rate of every step."""

    seen: list[float] = field(default_factory=list)

    def on_step(self, run: Run) -> None:
        self.seen.append(run.optimizer.param_groups[0]["lr"])


def test_the_published_schedule_is_run_through_within_the_seconds() -> None:
    """However few epochs fit into them: all decays, then L-BFGS, and no longer than that."""
    rates, problem = Rates(), kovasznay().problem(45.0)
    sizes = {"interior": 12, "boundary": 8}
    long = replace(PUBLISHED_PINN, polish=10**6, sizes=sizes)
    start = now()
    v = adapt(MLP((2, 8, 8, 3)).double(), 2)
    history = long(v, problem, seconds=1.0, callbacks=[rates])
    assert 0.9 < now() - start < 3 and 4 < len(rates.seen) < long.epochs
    assert rates.seen[0] == pytest.approx(1e-3) and rates.seen[-1] == pytest.approx(1e-7)
    assert sorted(rates.seen, reverse=True) == rates.seen
    assert history.reason.count("seconds") == 2 and "L-BFGS" in history.reason


PUBLISHED = {"kovasznay": 21187, "burgers1d": 21057, "burgers2d": 21186}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_way_is_a_config_too(name: str) -> None:
    """Its network (Table 1's count), points, optimizer, start of adapters and training set."""
    ours, config = CONFIGS[name](), CONFIGS[f"{name}_published"]()
    assert sum(p.numel() for p in config.network().parameters()) == PUBLISHED[name]
    assert config.train is config.train_new is PUBLISHED_PINN and not config.aimed
    assert config.hyper_train is PUBLISHED_HYPER and config.printed == name
    assert isinstance(ours.train, LevenbergSchedule) and ours.aimed
    whole = {k: c.size for k, c in config.family.conditions.items()}
    # A hundred tasks of 10,256 points do not fit into memory
    fewer = {"interior": 200, "initial": 32, "periodic": 32}
    assert config.hyper_step == (fewer if name == "burgers1d" else whole)
    tasks = config.family.splits().train
    assert config.by_physics(tasks)(None) is tasks
    assert not torch.equal(ours.by_physics(tasks)(None)[:1], tasks[:1])


def test_the_papers_points_of_the_moving_front_are_even() -> None:
    """Few lie on the front; half of ours do, which the error is to be read beside."""
    task = torch.tensor([[2e-4]], dtype=torch.float64)

    def share(name: str) -> float:
        points = CONFIGS[name]().family.sample(task, torch.Generator().manual_seed(0))
        assert {k: x.shape[1] for k, x in points.items()} == {
            "interior": 10_000, "initial": 500, "boundary": 400
        }  # fmt: skip
        return float(in_front(points["interior"][0], task[0]).double().mean())

    # |z| < 4 is two thirds of |z| < 6, where half of ours are drawn
    assert share("burgers2d") > 0.3 and share("burgers2d_published") < 0.02
