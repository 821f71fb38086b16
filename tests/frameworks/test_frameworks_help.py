"""Every script of examples/frameworks says what it does and takes a number of steps."""

from __future__ import annotations

import importlib

import pytest
from conftest import BODIES
from typer import Typer
from typer.testing import CliRunner

SCRIPTS = sorted(path.stem for path in BODIES.glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_asked_for_help(name: str) -> None:
    pytest.importorskip(name.partition("_")[0])
    app = Typer()
    app.command()(importlib.import_module(name).main)
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "KFACPINN" in result.output or "demo" in result.output
    assert "--steps" in result.output
