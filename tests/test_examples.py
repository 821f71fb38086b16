"""Every example runs, on a budget of seconds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "heat": {"seconds": 0.1},
    "burgers": {"steps": 1, "points": 200},
    "fokker_planck": {"seconds": 0.1, "points": 60},
    "inverse_heat": {"steps": 2},
    "deep_ritz": {"steps": 2, "points": 256},
    "own_operator": {"steps": 2},
    "own_activation": {"steps": 1},
    "own_problem": {"steps": 2},
    "own_optimizer": {"steps": 2},
}


@pytest.fixture(autouse=True)
def _examples_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if started from their folder; the default dtype that a script sets is taken back."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    for name in [
        n for n in sys.modules if n in {*SCRIPTS, "run", "compare"} or n.startswith("experiments")
    ]:
        del sys.modules[name]


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(name).main(**SCRIPTS[name])
    assert "error" in capsys.readouterr().out


def invoke(app: Any, *arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_runner_trains_keeps_what_is_done_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("run")
    monkeypatch.setattr(run, "PAGES", tmp_path / "experiments")
    monkeypatch.setattr(run, "BEST", tmp_path / "settings.json")
    train = ("train", "heat_1d", "kfac_star", "--steps", 3, "--seeds", 2, "--folder", tmp_path)
    assert invoke(run.app, *train, "--settings", '{"damping": 1e-6}').count("relative L2") == 2
    assert "relative L2" not in invoke(run.app, *train, "--settings", '{"damping": 1e-6}')
    page = tmp_path / "experiments" / "heat_1d.md"
    page.parent.mkdir()
    page.write_text("# Heat\n<!-- results -->\n<!-- end -->\nends\n")
    invoke(run.app, "report", "--folder", tmp_path)
    assert "| 257 | kfac_star |" in page.read_text()
    assert "8.8e-07" in page.read_text()  # the published value stands beside the measured one
    assert (tmp_path / "figures" / "heat_1d.png").exists()


def test_runner_resumes_an_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, results = load("experiments.training"), load("experiments.results")
    experiment = results.Experiment("heat_1d", "adam", steps=6, settings={"lr": 1e-3})
    whole = training.train(experiment, tmp_path / "whole")

    class Interrupted(training.Checkpoint):
        def on_step(self, run: Any) -> None:
            super().on_step(run)
            if run.step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "Checkpoint", lambda path, every: Interrupted(path, every=1))
        training.train(experiment, tmp_path / "parts")
    parts = training.train(experiment, tmp_path / "parts")
    assert parts["loss"] == whole["loss"]
    assert parts["step"] == 6


def test_sweep_remembers_the_best_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load("run")
    monkeypatch.setattr(run, "BEST", tmp_path / "settings.json")
    budget = ("--seconds", 0.03, "--trials", 2, "--folder", tmp_path)
    invoke(run.app, "sweep", "poisson_2d", "adam", "--network", "8", *budget)
    assert 1e-4 <= json.loads(run.BEST.read_text())["poisson_2d 8 adam"]["lr"] <= 1


def test_side_by_side_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = load("compare")
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "FIGURE", tmp_path / "figure.png")
    monkeypatch.setattr(compare, "PAGE", tmp_path / "page.md")
    compare.PAGE.write_text("<!-- results -->\n<!-- end -->\n")
    monkeypatch.setattr(compare, "TASKS", {"poisson_2d": {"network": (4,)}})
    monkeypatch.setattr(compare, "COMPARED", ["adam", "kfac_pinn"])
    monkeypatch.setattr(compare, "run_all", one_after_the_other)
    invoke(compare.app, "tune", "--seconds", 0.02)
    invoke(compare.app, "train", "--seconds", 0.02, "--seeds", 1, "--optimizer", "adam")
    assert "| poisson_2d | 4 | 17 | adam |" in invoke(compare.app, "report")
    assert (tmp_path / "figure.png").exists()


def one_after_the_other(experiments: Any, folder: Path, jobs: int) -> None:
    """What `run_all` does, without the seconds that new processes take to start."""
    for experiment in experiments:
        load("experiments.training").train(experiment, folder)
