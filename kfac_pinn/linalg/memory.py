"""How much memory a temporary may take: every loop over rows of J asks here, and only here."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["NUMBERS", "batches_of_rows", "rows_at_once"]

# 256 MiB in float64: little of any machine, and enough rows for products to run at full speed.
NUMBERS = 2**25


def rows_at_once(columns: int) -> int:
    """How many rows of so many numbers a batch may hold, at least one."""
    return max(1, NUMBERS // max(columns, 1))


def batches_of_rows(rows: int, columns: int, most: int | None = None) -> Iterator[slice]:
    """The places 0, ..., rows - 1 in order, so many at once as the memory, or `most`, allows."""
    size = most or rows_at_once(columns)
    return (slice(start, start + size) for start in range(0, rows, size))
