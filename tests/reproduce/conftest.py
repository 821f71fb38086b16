"""The modules of examples/reproduce can be imported, as if started from their folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from experiments import EXAMPLES


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default dtype that a run sets is taken back, and what it imported is forgotten."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "reproduce"))
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    for name in [n for n in sys.modules if n.partition(".")[0] in ("run", "compare", "published")]:
        del sys.modules[name]
