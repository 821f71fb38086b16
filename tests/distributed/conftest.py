"""Processes that stay for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.pool import Pool


@pytest.fixture(scope="session")
def pools() -> Iterator[Callable[[int], Pool]]:
    """The pool of so many processes."""
    known: dict[int, Pool] = {}

    def pool(count: int) -> Pool:
        if count not in known:
            known[count] = Pool(count)
        return known[count]

    yield pool
    for each in known.values():
        each.close()
