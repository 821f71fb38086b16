"""Published values, recipes and the queue agree with each other."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from experiments import TINY, invoke, load


def test_every_optimizer_has_its_own_line() -> None:
    styles = load("published.figures").STYLES
    assert set(styles) == set(load("published.recipes").OPTIMIZERS)
    assert len(set(styles.values())) == len(styles)


def test_published_runs_can_be_made_and_end_at_the_published_error() -> None:
    published, recipes = load("published.recorded"), load("published.recipes")
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    for (problem, size, optimizer), run in published.RECORDED.items():
        recipes.OPTIMIZERS[optimizer].build(parameters, **run.settings)
        counts, errors = zip(*run.curve, strict=True)
        assert list(counts) == sorted(set(counts))
        assert [run.after(n) for n in counts] == pytest.approx(errors)
        assert run.after(counts[-1] + 1) == pytest.approx(errors[-1])
        assert errors[-1] == pytest.approx(published.RMS[problem, size, optimizer], rel=0.05)
    run = published.RECORDED["heat_1d", 257, "kfac"]
    (a, low), (b, high) = run.curve[5:7]
    assert run.after((a * b) ** 0.5) == pytest.approx((low * high) ** 0.5)
    assert published.steps("heat_1d", 257, "kfac") == 13878
    assert math.isnan(published.steps("poisson_5d", 10065, "sgd"))  # not recorded


def test_the_queue_tunes_trains_and_says_what_is_left(tmp_path: Path) -> None:
    queue = load("published.queue")
    folders = queue.Folders(tmp_path / "results", tmp_path / "sweeps", tmp_path / "best.json")
    stage = {"network": (4,), "points": TINY["points"], "tuning": 0.02, "trials": 1}
    stages = (queue.Stage("heat_1d", optimizers=("adam",), seconds=0.02, seeds=2, **stage),)
    assert list(queue.plan(stages, folders)["due"]) == [3]  # tuning, and two seeds
    queue.work(stages, folders, hours=0)
    assert list(queue.plan(stages, folders)["due"]) == [3]
    queue.work(stages, folders, hours=1)
    assert list(queue.plan(stages, folders)["due"]) == [0]
    assert "lr" in json.loads(folders.best.read_text())["heat_1d 4 adam"]["settings"]
    longer = tuple(dataclasses.replace(stage, seconds=0.05) for stage in stages)
    assert list(queue.plan(longer, folders)["due"]) == [2]


def test_every_item_of_the_queue_can_be_built(tmp_path: Path) -> None:
    queue = load("published.queue")
    folders = queue.Folders(tmp_path, tmp_path, tmp_path / "best.json")
    for item in queue.QUEUE:
        for job in item.due(folders):
            assert job.seconds > 0
    shown = invoke(load("run").app, "queue", "--plan", "--only", "100d", "--folder", tmp_path)
    assert "poisson_100d" in shown
    assert "heat" not in shown


def test_the_queue_calls_networks_as_the_command_does() -> None:
    """One name for one network: a run of the queue is found by the command, and its settings."""
    queue, run = load("published.queue"), load("run")
    stages = [item for item in queue.QUEUE if isinstance(item, queue.Stage)]
    assert stages
    for stage in stages:
        assert run.widths("-".join(map(str, stage.network)), stage.problem) == stage.network


def test_a_run_at_rest_holds_its_last_value() -> None:
    """Two of three runs end early, far below the third: the median stays where they are."""
    figures, pandas = load("published.figures"), load("pandas")
    ends = {0: (10, 1e-14), 1: (20, 3e-14), 2: (100, 3e-9)}
    rows = pandas.DataFrame(
        [
            {"seed": seed, "step": step, "relative_l2": error}
            for seed, (last, least) in ends.items()
            for step, error in ((1, 1.0), (last, least))
        ]
    )
    times, (low, middle, high) = figures.quartiles(rows, "step")
    assert times[-1] == pytest.approx(100)
    assert middle[-1] == pytest.approx(3e-14) and high[-1] > low[-1] > 1e-15
    assert (middle[1:] <= middle[:-1] * (1 + 1e-9)).all(), "no median jumps up"


@pytest.mark.parametrize(("budget", "end"), [(10, 10), (11, 100)])
def test_a_median_ends_where_a_run_was_cut_short(budget: int, end: int) -> None:
    """A run of 10 s cut short says nothing about later; one at rest before its budget does."""
    figures, pandas = load("published.figures"), load("pandas")
    rows = pandas.DataFrame(
        [
            {"seed": seed, "step": s, "seconds": s, "unit": "seconds", "budget": given}
            for seed, last, given in ((0, 10, budget), (1, 100, 100))
            for s in (1, last)
        ]
    )
    assert figures.shared_end(rows, "seconds") == end
