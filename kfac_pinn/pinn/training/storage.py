"""Files that are whole or refused: written aside, then put in place; a checksum at their end.

A file is what `torch.save` writes, a zip archive, and its SHA-256 as the archive's comment:
`torch.load(path, weights_only=True)` reads it as any other.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["load", "save", "writable"]

_MARK = b"sha256 "
_COMMENT = len(_MARK) + 64  # and the digest in hexadecimal
_BLOCK = 2**20  # bytes read at once: a checkpoint may be larger than the memory


def save(content: Any, path: Path) -> None:
    """Write beside the file, then replace it: an interruption leaves the old one whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(content, partial)
        _seal(partial)
        # Atomic within one folder
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load(path: Path) -> Any:
    """What was saved: tensors, numbers, strings and containers, on the CPU.

    Raises:
        RuntimeError: if the file is empty, cut off, changed, or was not written by `save`; or if
            it holds objects of other types.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = _digest(file, size - _COMMENT) if size > _COMMENT else ""
        sealed = file.read() == _MARK + digest.encode()
    if not sealed:
        raise RuntimeError(
            f"{path} ({size} bytes) is damaged, or no file of this kind: the checksum at its end "
            "does not match. Delete it, or restore it from a copy"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RuntimeError(
            f"{path} holds more than tensors, numbers, strings and containers: {error}"
        ) from error


def writable(path: Path) -> None:
    """Find out now, not when there is something to lose, whether the file can be written.

    Raises:
        OSError: if its folder is missing or does not take new files, or if it is a folder itself.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}: create it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(f"cannot write {path.name} into {path.parent}: {error}") from error


def _seal(path: Path) -> None:
    """Append the digest as the comment of the zip archive, and wait until all is on the disk."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # the length of the comment, none so far
        file.write(struct.pack("<H", _COMMENT))
        end = file.seek(0, os.SEEK_CUR)
        file.seek(0)
        digest = _digest(file, end)
        file.write(_MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _digest(file: Any, size: int) -> str:
    """Of the first bytes, in blocks."""
    found = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        found.update(block)
        size -= len(block)
    return found.hexdigest()
