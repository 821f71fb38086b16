"""The notebooks run from top to bottom, and show what they printed and drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    """Their assertions hold: each ends with what it promises."""
    from matplotlib import pyplot as plt

    backend, dtype = matplotlib.get_backend(), torch.get_default_dtype()
    plt.switch_backend("agg")
    names: dict[str, Any] = {"__name__": path.stem}
    try:
        for cell in cells(path):
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    finally:
        plt.close("all")
        plt.switch_backend(backend)
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_their_outputs(path: Path) -> None:
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
