"""Experiments resume bit for bit, count their seconds on, and end where they should."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import experiment, load, smaller

CURVE = ("step", "loss", "held_out_loss", "relative_l2")


OPTIMIZERS = (
    "sgd", "adam", "lbfgs", "kfac", "kfac_star", "engd", "engd_layers", "engd_diagonal",
    "kernel_engd", "spring", "hessian_free", "kfac_pinn", "gauss_newton",
)  # fmt: skip


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As if Ctrl-C were pressed during a step."""
    training = load("published.training")
    original = training.Milestones.on_step

    def on_step(self: Any, run: Any) -> None:
        if run.step == step:
            signal.raise_signal(signal.SIGINT)
        original(self, run)

    monkeypatch.setattr(training.Milestones, "on_step", on_step)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_recipe_resumes_bit_by_bit_and_goes_on(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = load("published.training")
    run = experiment(optimizer, steps=6, resample=2)
    whole = training.train(run, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, step=3)
        training.train(run, tmp_path / "parts")
    training.train(run.replace(steps=4), tmp_path / "parts")
    assert not run.done(tmp_path / "parts")
    parts = training.train(run, tmp_path / "parts")
    assert run.done(tmp_path / "parts")
    assert [parts[key] for key in CURVE] == [whole[key] for key in CURVE]


@pytest.mark.usefixtures("a_step_is_a_second")
def test_seconds_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, run = load("published.training"), experiment("adam", seconds=10.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, step=7)
        training.train(run, tmp_path)
    assert training.train(run, tmp_path)["step"] == 10


def test_a_run_at_rest_ends_early(tmp_path: Path) -> None:
    training = load("published.training")
    run = experiment("gauss_newton", steps=1000, points={"interior": 2, "conditions": 2})
    assert training.train(run, tmp_path)["step"] < 1000
    assert run.replace(steps=2000).done(tmp_path)


def test_tables_show_what_longer_runs_had_reached_before(tmp_path: Path) -> None:
    training, results = load("published.training"), load("published.results")
    for seed, steps in ((0, 4), (1, 8)):
        training.train(experiment("adam", steps=steps, seed=seed), tmp_path)
    table = results.summary(results.load(tmp_path))
    assert sorted(zip(table["seeds"], table["steps"], strict=True)) == [(1, 8), (2, 6)]


@pytest.mark.usefixtures("a_step_is_a_second")
def test_errors_are_compared_at_every_budget_that_some_run_had(tmp_path: Path) -> None:
    training, results = load("published.training"), load("published.results")
    for name, seconds in (("adam", 2.0), ("sgd", 4.0)):
        training.train(experiment(name, seconds=seconds), tmp_path)
    table = results.summary(results.load(tmp_path))
    found = sorted(zip(table["budget"], table["optimizer"], strict=True))
    assert found == [(2.0, "adam"), (2.0, "sgd"), (4.0, "sgd")]


def test_every_published_problem_and_network_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, training = load("published.recipes"), load("published.training")
    for name, problem in list(recipes.PROBLEMS.items()):
        monkeypatch.setitem(recipes.PROBLEMS, name, smaller(problem, size=3))
        for sizes in problem().networks:
            run = experiment("adam", problem=name, network=sizes[1:-1], points={}, steps=1)
            assert training.train(run, tmp_path)["relative_l2"] > 0


def test_the_published_start_is_drawn_in_single_precision_from_seed_1() -> None:
    training = load("published.training")
    run = experiment("kfac", problem="heat_1d", network=(), points={}).replace(published_start=True)
    torch.manual_seed(1)
    first = torch.nn.Linear(2, 64, dtype=torch.float32).weight
    for seed in range(2):
        torch.manual_seed(seed)
        model = training.network_of(run)
        assert torch.equal(next(model.parameters()), first.to(torch.get_default_dtype()))
    assert run.name.endswith("published-start_seed0")
    assert training.network_of(run).layers[0].weight.dtype == torch.get_default_dtype()
