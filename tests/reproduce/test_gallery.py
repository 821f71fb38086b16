"""The gallery shows every example, with what it drew and said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from experiments import EXAMPLES

DOCS = EXAMPLES.parent / "docs"


def test_every_example_is_in_the_gallery() -> None:
    import gallery

    shown = {name for names in gallery.SECTIONS.values() for name in names}
    others = {"drawing", "distributed_heat"}  # a module, and a program for torchrun
    assert shown == {path.stem for path in EXAMPLES.glob("*.py")} - others


def test_the_page_is_what_was_stored() -> None:
    import gallery

    stored = json.loads((EXAMPLES / "reproduce" / "results" / "gallery.json").read_text())
    text = (DOCS / "gallery.md").read_text()
    assert text == gallery.page(stored["verdicts"])
    pictures = re.findall(r"\]\((figures/gallery/\w+\.png)\)", text)
    assert len(pictures) == len(stored["verdicts"])
    assert all((DOCS / picture).is_file() for picture in pictures)


def test_a_verdict_is_the_last_line_that_is_no_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gallery

    (tmp_path / "examples").mkdir()
    script = tmp_path / "examples" / "some.py"
    script.write_text('"""What it does. More."""\nprint("solved: 1e-9")\nprint("picture: x.png")\n')
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    assert gallery.verdict("some", tmp_path / "x.png") == "solved: 1e-9"
    assert gallery.title("some") == "What it does. More."
