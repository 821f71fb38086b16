"""Results of long runs, kept in a folder: what is there is not made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kfac_pinn.pinn.training import Callback, Checkpoint

__all__ = ["Cache", "Row"]

Row = dict[str, Any]


class Cache:
    """A folder of measured rows, tensors and checkpoints, by name.

    An interrupted measurement continues where it was, the run under way bit for bit.

    Args:
        folder: made if need be; None: nothing is kept.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)

    def row(self, name: str, make: Callable[[], Row]) -> Row:
        """The numbers of that name, made unless they are there."""
        if (path := self._path(name, "json")) is None:
            return make()
        if not path.exists():
            path.write_text(json.dumps(make()))
        found: Row = json.loads(path.read_text())
        return found

    def tensor(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of that name, made unless it is there."""
        if (path := self._path(name, "pt")) is None:
            return make()
        if not path.exists():
            torch.save(make(), path)
        found: Tensor = torch.load(path, weights_only=True)
        return found

    def callbacks(self, name: str, every: int = 10) -> list[Callback]:
        """For `fit`: a checkpoint of the run of that name, from which it also resumes."""
        path = self._path(name, "run")
        return [] if path is None else [Checkpoint(path, every)]

    def _path(self, name: str, suffix: str) -> Path | None:
        if self.folder is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name.replace(' ', '-').replace('*', 'whole')}.{suffix}"
