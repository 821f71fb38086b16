"""Small experiments of examples/reproduce, for its tests."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from typer.testing import CliRunner

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = {"problem": "heat_1d", "network": (4,), "points": {"interior": 12, "conditions": 6}}


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def invoke(app: Any, *arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def experiment(optimizer: str = "kfac_star", **changes: Any) -> Any:
    return load("published.results").Experiment(optimizer=optimizer, **{**TINY, **changes})


def smaller(problem: Callable[[], Any], size: int) -> Callable[[], Any]:
    """The same problem with so many points a term, and ten times as many held out."""
    terms = {k: dataclasses.replace(term, size=size) for k, term in problem().terms.items()}
    return lambda: dataclasses.replace(problem(), terms=terms)
