"""The runs with the way back and without are one run until the first return."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from experiments import load
from typer.testing import CliRunner

from kfac_pinn import GaussNewton, TargetSchedule
from kfac_pinn.pinn.problems import PROBLEMS


def test_runs_part_at_the_first_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = load("benchmark_stages")
    schedule = TargetSchedule(patience=3, horizon=4)
    monkeypatch.setattr(stages, "GaussNewton", partial(GaussNewton, schedule=schedule))
    monkeypatch.setattr(stages, "EVERY", 1)
    case = stages.Case(PROBLEMS["poisson_2d"], (6,), 0.04, 40)
    monkeypatch.setattr(stages, "CASES", {"small": case})
    call = partial(CliRunner().invoke, stages.app)
    folder = ("--folder", str(tmp_path))
    assert call(["measure", *folder]).exit_code == 0
    assert call(["measure", *folder]).stdout == ""  # nothing is left to do
    found = json.loads((tmp_path / "small-0.json").read_text())
    begun, back = found["changes"][:2]
    both, without = found["with_return"], found["without"]
    assert [mark["second"] for mark in both[begun - 1 : back]] == [1.0] * (back - begun) + [0.0]
    assert without[0]["step"] == back and without[0]["loss"] == both[back - 1]["loss"]
    assert all(mark["second"] for mark in without) and without[-1]["step"] == 40
    assert without[-1]["loss"] != both[-1]["loss"]
    assert "| small | 6 |" in call(["report", *folder]).output
