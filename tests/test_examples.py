"""Every example runs, says what came out, and draws it where it is told to."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS: dict[str, dict[str, Any]] = {
    "poisson": {"seconds": 0.1},
    "heat": {"seconds": 0.1},
    "distributed_heat": {"steps": 2, "points": 400},
    "burgers": {"steps": 2, "points": 200},
    "fokker_planck": {"seconds": 0.1, "points": 60},
    "inverse_heat": {"steps": 2},
    "deep_ritz": {"steps": 2, "points": 256},
    "second_stage": {"first_steps": 2, "steps": 2},
    "integral_fokker_planck": {"steps": 2},
    "integral_volterra": {"steps": 2},
    "integral_boundary": {"steps": 2},
    "own_operator": {"steps": 2},
    "own_activation": {"steps": 2},
    "own_problem": {"steps": 2},
    "own_optimizer": {"steps": 2},
    "hyperlora_adapt": {"seconds": 0.1, "adapting": 0.1},
    "hyperlora_family": {"seconds": 0.2},
    "hyperlora_own_family": {"steps": 2, "shown": 1},
    "own_damping_law": {"steps": 2},
}


@pytest.fixture(autouse=True)
def _examples_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if started from their folder; the default dtype that a script sets is taken back."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    for name in {*SCRIPTS, "drawing"} & set(sys.modules):
        del sys.modules[name]


def test_every_example_is_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "drawing"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture, a bar, and the result in the last line."""
    monkeypatch.chdir(tmp_path)
    module, picture = importlib.import_module(name), tmp_path / "new" / "picture.png"
    module.main(**SCRIPTS[name], out=picture)
    shown = capsys.readouterr()
    assert re.search(r"(error|loss).* [0-9.]+e[-+][0-9]+", shown.out.splitlines()[-1])
    assert "%|" in shown.err  # a bar
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_asked_for_help(name: str) -> None:
    typer = importlib.import_module("typer")
    app = typer.Typer()
    app.command()(importlib.import_module(name).main)
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"figures/{name}.png" in result.output  # in the folder of whoever starts it


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name.startswith("own_")])
def test_what_is_ones_own_takes_thirty_lines(name: str) -> None:
    """Everything in one file, blank lines aside; that it is right is checked as it runs."""
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 30


@pytest.mark.parametrize("name", [*SCRIPTS, "drawing"])
def test_scripts_fit_on_a_page(name: str) -> None:
    source = (EXAMPLES / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 100
    assert ast.get_docstring(ast.parse(source))
