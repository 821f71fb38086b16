"""What an optimizer remarks on once: nothing is wrong with the step, but perhaps with its use."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

__all__ = ["notice"]

INSIDE = ("kfac_pinn.", "torch.")


def notice(message: str) -> None:
    """Warn at the line of the user's code that led here."""
    warnings.warn(message, stacklevel=outside())


def outside(modules: Sequence[str] = INSIDE) -> int:
    """The `stacklevel`, seen from the caller, of the first frame outside these packages."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(tuple(modules)):
            break
        level, frame = level + 1, frame.f_back
    return level
