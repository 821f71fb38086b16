"""The faults of `tests/mutation/listed.py` can still be put in, and their tests are still there."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def listed() -> dict[str, Any]:
    """The table, without what else the script does."""
    folder = str(ROOT / "tests" / "mutation")
    sys.path.insert(0, folder)
    try:
        return runpy.run_path(f"{folder}/listed.py")["FAULTS"]  # type: ignore[no-any-return]
    finally:
        sys.path.remove(folder)


@pytest.mark.parametrize(("name", "fault"), listed().items(), ids=str)
def test_it_can_be_put_in(name: str, fault: Any) -> None:
    assert fault.path(ROOT).read_text().count(fault.old) == 1, name
    file, _, test = fault.tests.partition("::")
    assert f"def {test}" in (ROOT / file).read_text()
