"""The bodies of examples/frameworks, or a skip that names what is missing."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch


def body(name: str) -> Any:
    """The script examples/frameworks/NAME.py as a module.

    With FRAMEWORKS=required, as in CI, a missing package is a failure and no skip.
    """
    torch.set_default_dtype(torch.float32)  # neurodiffeq, imported before, sets another
    if os.environ.get("FRAMEWORKS") == "required":
        return importlib.import_module(name)
    reason = f"{name} needs a framework: pip install -e '.[frameworks]'"
    return pytest.importorskip(name, reason=reason)
