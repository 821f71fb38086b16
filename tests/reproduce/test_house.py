"""What `house.py` counts, on trees small enough to count by hand; what this one must not exceed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPT = runpy.run_path(str(ROOT / "examples" / "reproduce" / "house.py"))
bare, lines, repetitions = (SCRIPT[name] for name in ("bare", "lines", "repetitions"))

MODULE = '''"""A module.

Of three lines."""

# why
X = 1  # one
TEXT = """two
lines"""
'''


def test_lines_are_told_apart() -> None:
    assert lines(MODULE) == {"code": 3, "comment": 2, "docstring": 3}


def test_imports_and_docstrings_are_no_repetition() -> None:
    source = '"""Doc."""\nimport os\n\nx = str(\n    os.name,\n)\n'
    assert bare(source) == [(4, "x = str("), (5, "os.name,")]


def test_a_repetition_is_found_once_however_long(tmp_path: Path) -> None:
    body = "".join(f"value_{i} = {i}\n" for i in range(9))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.py").write_text("first = 0\n" + body)
    (tmp_path / "folder" / "b.py").write_text(body)
    (tmp_path / "folder" / "c.py").write_text(body[: len(body) // 2])  # four lines and a half
    assert repetitions(tmp_path, ("folder",)) == [["folder/a.py:2", "folder/b.py:1"]]


@pytest.fixture(scope="module")
def house() -> dict[str, Any]:
    return SCRIPT["measured"](ROOT)


def test_a_closure_does_not_go_up_and_down(house: dict[str, Any]) -> None:
    """From `step` to the linearisation: optimizers, jacobian, taylor_mode, linalg and back."""
    way = house["way of a closure"]["to r and J"]
    assert way["climbs"] <= 3, way["between"]
    assert way["moves"] <= 6


def test_nothing_is_written_twice(house: dict[str, Any]) -> None:
    assert house["repetitions"] == []


@pytest.mark.parametrize("package", SCRIPT["PACKAGES"])
def test_no_file_grows_beyond_one_idea(package: str) -> None:
    long = {path: n for path, text in SCRIPT["sources"](ROOT, package).items()
            if (n := len(text.splitlines())) > 350}  # fmt: skip
    assert not long, f"divide by idea: {long}"


def test_what_is_stored_has_what_is_printed(house: dict[str, Any]) -> None:
    stored = json.loads((ROOT / "examples/reproduce/results/house.json").read_text())
    assert [set(each) for each in stored] == [set(house)] * 2
