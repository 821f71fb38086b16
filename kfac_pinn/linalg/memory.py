"""How much memory a temporary may take: every loop over rows of J asks here, and only here."""

from __future__ import annotations

__all__ = ["NUMBERS", "rows_at_once"]

# 256 MiB in float64: little of any machine, and enough rows for products to run at full speed.
NUMBERS = 2**25


def rows_at_once(columns: int) -> int:
    """How many rows of so many numbers a batch may hold, at least one."""
    return max(1, NUMBERS // max(columns, 1))
