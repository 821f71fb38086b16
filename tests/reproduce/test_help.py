"""Every command of examples/reproduce can be asked what it does and which options it has."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import pytest
import typer
from experiments import EXAMPLES, load
from typer.testing import CliRunner

FOLDER = EXAMPLES / "reproduce"
INNER = {"suite_rows", "timed_processes", "timed_steps"}  # started by others, one measurement each
COMMANDS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem not in INNER and "__main__" in path.read_text()
)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Other tests import some of these anew, from patched folders."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name in COMMANDS:
            del sys.modules[name]


def app_of(name: str) -> typer.Typer:
    """The commands of a module, or its only one."""
    module = load(name)
    if hasattr(module, "app"):
        return module.app
    app = typer.Typer()
    app.command()(module.main)
    return app


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_can_be_asked_for_help(name: str) -> None:
    app = app_of(name)
    several = [str(c.name or c.callback.__name__) for c in app.registered_commands]
    asked = [["--help"]] + [[each, "--help"] for each in several if len(several) > 1]
    for command in asked:
        result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
        assert result.exit_code == 0, (command, result.output)
        assert "Usage" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_how_they_are_called(name: str) -> None:
    text = inspect.getdoc(load(name)) or ""
    assert f"python examples/reproduce/{name}.py" in text


@pytest.mark.parametrize("name", ["tables", "plots"])
def test_the_tables_of_hyperlora_can_be_asked_too(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(name).main(["--help"])
    assert ended.value.code == 0 and "--folder" in capsys.readouterr().out
