"""The model of memory on the page "Cost of a step" counts what is there."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from kfac_pinn import MLP

WIDTHS = (4, 64, 48, 32, 1)


class Live(TorchDispatchMode):
    """Bytes of all storages that were made under it and are alive, and their largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self.note(each.untyped_storage())
        return out

    def note(self, storage: Any) -> None:
        """One more, unless it is known."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        """One less."""
        self.known.discard(key)
        self.now -= size


# Many small batches: what stays with each of them beside z and g would be seen
@pytest.mark.parametrize("way", [(), (200, True), (200, False), (50, True)])
@pytest.mark.parametrize("work", ["J", "KFACStar"])
def test_the_model_counts_what_is_there(work: str, way: tuple[Any, ...]) -> None:
    import benchmark_memory

    row = benchmark_memory.Row(work, WIDTHS, 2000, 500, *way)
    torch.manual_seed(0)
    model = MLP(WIDTHS).double()
    do, closure = row.work_of(model), row.closure(model)
    do(closure)  # compared with autograd the first time
    with Live() as live:
        do(closure)
    assert live.peak / 2**20 == pytest.approx(row.formula(), rel=0.15)


def test_report_fills_the_page(tmp_path: Path) -> None:
    import benchmark_memory

    row = benchmark_memory.ROWS[0]
    found = {"MiB": 300.0, "process": 600.0, "seconds": 1.5, "mapped": 1.1 * row.formula()}
    file, page = tmp_path / "memory.json", tmp_path / "page.md"
    file.write_text(json.dumps({"rows": {" | ".join(row.cells()): found}}))
    page.write_text(f"before\n{benchmark_memory.START}\nold\n{benchmark_memory.END}\nafter\n")
    options = ["report", "--file", str(file), "--page", str(page)]
    assert CliRunner().invoke(benchmark_memory.app, options).exit_code == 0
    text = page.read_text()
    assert "| 1.10 | 300 | 600 | 1.5 |" in text and "old" not in text
    assert text.startswith("before") and text.endswith("after\n")
