"""Warnings at the line of the user's code that led here, each once."""

from __future__ import annotations

import sys
import warnings

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Notices", "outside"]


class Notices:
    """What has been remarked on, so that a training loop does not hear it in every step.

    Python's own filter forgets: it starts afresh whenever any code touches the filters, as torch
    does in every step.
    """

    def __init__(self) -> None:
        self.sites: set[tuple[str, int, str]] = set()
        self.owned = WeakTensorKeyDictionary()

    def once_a_line(self, message: str) -> None:
        """Warn, unless done before at this line of the user's code."""
        level = outside()
        frame = sys._getframe(level - 1)
        site = (frame.f_code.co_filename, frame.f_lineno, message)
        if site not in self.sites:
            self.sites.add(site)
            warnings.warn(message, stacklevel=level)

    def once_of(self, owner: Tensor, subject: str, message: str) -> None:
        """Warn, unless done before of this subject for a tensor, the first of some parameters."""
        made = self.owned.setdefault(owner, set())
        if subject not in made:
            made.add(subject)
            warnings.warn(message, stacklevel=outside())

    def forget_lines(self) -> None:
        """A new run hears everything again."""
        self.sites.clear()


NOTICES = Notices()


def outside(*packages: str) -> int:
    """The `stacklevel`, seen from the caller, of the first frame outside this package and torch.

    Args:
        packages: others that are not the user's code, "name.".
    """
    ours = ("kfac_pinn.", "torch.", *packages)
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if not str(frame.f_globals.get("__name__", "")).startswith(ours):
            break
        level, frame = level + 1, frame.f_back
    return level
