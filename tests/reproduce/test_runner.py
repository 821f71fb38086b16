"""The commands of `run.py`: what they make, keep, print and refuse."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiments import EXAMPLES, experiment, invoke, load, smaller
from typer.testing import CliRunner


def test_runner_trains_keeps_what_is_done_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("run")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    recipes = load("published.recipes")
    monkeypatch.setitem(recipes.PROBLEMS, "heat_1d", smaller(recipes.PROBLEMS["heat_1d"], 20))
    monkeypatch.setattr(run, "BEST", tmp_path / "settings.json")
    train = ("train", "heat_1d", "kfac_star", "--steps", 3, "--seeds", 2, "--folder", tmp_path)
    train = (*train, "--settings", '{"damping": 1e-6}')
    first = invoke(run.app, *train)
    assert "| 257 | kfac_star | damping 1e-06 |" in first
    assert "done" not in first
    assert invoke(run.app, *train).count(": done, ") == 2
    assert (tmp_path / "heat_1d.png").exists()
    page = tmp_path / "docs" / "experiments" / "heat_1d.md"
    page.parent.mkdir(parents=True)
    (tmp_path / "docs" / "choosing.md").write_text("<!-- published -->\n<!-- end -->\n")
    (page.parent / "index.md").write_text("<!-- headline -->\n<!-- end -->\n")
    page.write_text("# Heat\n<!-- results -->\n<!-- end -->\nends\n")
    invoke(run.app, "report", "--folder", tmp_path)
    assert "| 257 | kfac_star |" in page.read_text()
    assert "with 257 parameters sgd (2.8e-04), adam (1.2e-04), lbfgs" in page.read_text()
    assert "8.8e-07" in page.read_text()  # the published value stands beside the measured one
    assert (tmp_path / "docs" / "figures" / "heat_1d.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network 64,48", "whole numbers, as in 64-64-48-48"),
        ("--settings {lr:1}", "is no JSON"),
        ("--settings [1]", "does not map names to numbers"),
        ('--settings {"lrr":1}', "argument 'lrr'; a sweep tunes ['lr']"),
        ('--points {"interor":9}', "has points for ['interior', 'conditions'], not ['interor']"),
        ("--device nowhere", "--device nowhere"),
        ("--dtype float31", "is not one of 'float64', 'float32'"),
        ("--steps -3", "--steps"),
        ("--seeds 0", "--seeds"),
    ],
)
def test_the_runner_says_what_is_wrong_in_one_line(options: str, said: str, tmp_path: Path) -> None:
    run = load("run")
    asked = ["train", "heat_1d", "adam", "--steps", "1", "--folder", str(tmp_path)]
    result = CliRunner().invoke(run.app, asked + options.split(" "), env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("train heat_1d adam", "the run has no end"),
        ("sweep heat_1d kfac_pinn", "nothing to tune"),
        ("queue --plan --only 1000d", "nothing in the queue"),
        ("report --folder nowhere", "no result files in nowhere"),
    ],
)
def test_a_command_that_cannot_be_done_says_so(asked: str, said: str) -> None:
    result = CliRunner().invoke(load("run").app, asked.split(" "), env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.output


def test_every_row_comes_with_the_command_that_remakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a page prints makes the same run again, under the same name."""
    run, pages, results = load("run"), load("published.pages"), load("published.results")
    points = '{"interior": 9, "conditions": 5}'
    asked = ["train", "heat_4d", "kfac_star", "--network", "4-3", "--steps", 2, "--keep", 1]
    asked += ["--settings", '{"damping": 1e-06}', "--points", points, "--dtype", "float32"]
    invoke(run.app, *asked, "--folder", tmp_path / "a")
    printed = pages.commands(results.load(tmp_path / "a"))
    assert printed.startswith("python examples/reproduce/run.py train heat_4d kfac_star")
    monkeypatch.chdir(tmp_path)
    invoke(run.app, *shlex.split(printed)[2:])
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("a", "mine")]
    assert files[0] == files[1]


def test_the_smallest_network_has_one_name() -> None:
    run = load("run")
    assert run.widths("", "heat_1d") == run.widths("64", "heat_1d") == ()
    assert run.widths("64-48", "heat_1d") == (64, 48)


def test_report_fills_every_page_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes, training, pages = (
        load(f"published.{name}") for name in ("recipes", "training", "pages")
    )
    docs = shutil.copytree(EXAMPLES.parent / "docs", tmp_path / "docs")
    monkeypatch.setitem(recipes.PROBLEMS, "heat_4d", smaller(recipes.PROBLEMS["heat_4d"], 3))
    for name, seed in itertools.product(("adam", "kfac_star"), range(2)):
        run = experiment(name, problem="heat_4d", network=(64, 64, 48, 48), points={}, steps=2)
        training.train(run.replace(seed=seed, seconds=99.0), tmp_path / "results")
    pages.report(tmp_path / "results", tmp_path)
    page = (docs / "experiments" / "heat_4d.md").read_text()
    assert "3.10e-03 ± 2.45e-03" in page  # the ten published seeds
    assert "with 449 parameters sgd (8.4e-03), adam (1.0e-03)" in page
    assert "--network 64-64-48-48 --seconds 99 --steps 2 --seeds 2 --folder mine" in page
    assert "No run is committed yet" in (docs / "experiments" / "poisson_100d.md").read_text()
    assert re.search(r"4\+1d heat .* 99 s .* Adam .* \(2\)", (docs / "choosing.md").read_text())
    line = r"\| 4\+1d heat \| 10,065 \| 99 \| 2 \| \S+ \| – \| \S+ \| – \| – \|"
    assert re.search(line, (docs / "experiments" / "index.md").read_text())
    assert (docs / "figures" / "headline.png").exists()
    assert (docs / "figures" / "heat_4d.png").exists()


def test_sweep_remembers_the_best_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load("run")
    monkeypatch.setattr(run, "BEST", tmp_path / "settings.json")
    budget = ("--seconds", 0.03, "--trials", 2, "--folder", tmp_path)
    invoke(run.app, "sweep", "poisson_2d", "adam", "--network", "8", *budget)
    best = json.loads(run.BEST.read_text())["poisson_2d 8 adam"]
    assert 1e-4 <= best["settings"]["lr"] <= 1
    assert best["trials"] == 2
    better = json.dumps({"poisson_2d 8 adam": {**best, "relative_l2": 1e-9}})
    run.BEST.write_text(better)
    assert "not kept" in invoke(run.app, "sweep", "poisson_2d", "adam", "--network", "8", *budget)
    assert run.BEST.read_text() == better


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = load("published.sweeps")
    errors = iter([0.2, KeyboardInterrupt(), 0.1, 0.3])

    def error(*_: Any) -> float:
        if isinstance(found := next(errors), BaseException):
            raise found
        return found

    monkeypatch.setattr(sweeps, "error", error)
    base = experiment("adam", seconds=1.0)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(base, 3, tmp_path)
    study = sweeps.sweep(base, 3, tmp_path)
    assert [trial.value for trial in sweeps.completed(study)] == [0.2, 0.1, 0.3]


def one_after_the_other(experiments: Any, folder: Path, jobs: int) -> None:
    """What `run_all` does, without the seconds that new processes take to start."""
    for each in experiments:
        load("published.training").train(each, folder)


def test_side_by_side_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = load("compare")
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    monkeypatch.setattr(compare, "FIGURE", tmp_path / "figure.png")
    monkeypatch.setattr(compare, "PAGE", tmp_path / "page.md")
    compare.PAGE.write_text("<!-- results -->\n<!-- end -->\n")
    monkeypatch.setattr(compare, "CHOOSING", tmp_path / "choosing.md")
    compare.CHOOSING.write_text("<!-- compare -->\n<!-- end -->\n")
    monkeypatch.setattr(compare, "TASKS", {"poisson_2d": {"network": (4,)}})
    some = {name: compare.OPTIMIZERS[name] for name in ("adam", "kfac_pinn")}
    monkeypatch.setattr(compare, "OPTIMIZERS", some)
    monkeypatch.setattr(compare, "run_all", one_after_the_other)
    invoke(compare.app, "tune", "--seconds", 0.02)
    invoke(compare.app, "train", "--seconds", 0.02, "--seeds", 1, "--optimizer", "adam")
    assert "| poisson_2d | 4 | 17 | adam |" in invoke(compare.app, "report")
    assert (tmp_path / "figure.png").exists()
    assert CliRunner().invoke(compare.app, ["train", "--optimizer", "foo"]).exit_code == 2
