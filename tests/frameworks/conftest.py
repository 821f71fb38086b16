"""Other people's frameworks, each at its current release; skipped where it is not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("DDE_BACKEND", "pytorch")  # before deepxde is imported
os.environ.setdefault("MPLBACKEND", "Agg")

BODIES = Path(__file__).parent.parent.parent / "examples" / "frameworks"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Frameworks set a default dtype when imported and write checkpoints where they are started."""
    monkeypatch.chdir(tmp_path)
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(dtype)


sys.path.insert(0, str(BODIES))  # the tests train what the examples show
