"""Threads that do not wait for each other, on cores that have other work.

A parallel loop ends when its slowest thread does. A thread whose core another program uses has its
turn some milliseconds later, in each of a step's thousands of loops: on two cores, one of them
taken, a step takes several times as long on two threads as on one
(examples/reproduce/benchmark_threads.py --busy 1).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["GRAIN", "THREADS", "Stopwatch", "Threads", "decided", "look", "waited"]

GRAIN = 2**15  # numbers that PyTorch gives a thread at least
LOOPS = 4  # of a look
WAITS = 1e-3, 1 / 3  # seconds, and share of them, that a thread does not wait by accident
PAUSE, SHARE = 1.0, 0.05  # seconds between two looks at least, share of the time that they take
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Stopwatch:
    """Seconds since it was made: of the wall, and of work of this thread."""

    def __init__(self) -> None:
        self.start = self.now()

    def read(self) -> tuple[float, float]:
        """(wall, work)."""
        wall, work = self.now()
        return wall - self.start[0], work - self.start[1]

    @staticmethod
    def now() -> tuple[float, float]:
        """Both clocks."""
        # Of this thread alone: other threads of the process would hide that this one waits
        return time.perf_counter(), time.thread_time()


def decided() -> bool:
    """Whether the environment says how many threads there are."""
    return any(name in os.environ for name in NAMES)


def look(threads: int) -> tuple[float, float]:
    """(wall, work): seconds of four short loops on so many threads."""
    numbers = torch.zeros(threads * GRAIN, dtype=torch.uint8)
    usual = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        watch = Stopwatch()
        for _ in range(LOOPS):
            numbers.bitwise_not_()
        return watch.read()
    finally:
        torch.set_num_threads(usual)


def waited(wall: float, work: float) -> bool:
    """Whether a thread that worked so long of the time waited for others."""
    seconds, share = WAITS
    return wall - work > max(seconds, share * wall)


class Threads:
    """PyTorch's threads, or a half, a quarter, ... of them: as many as do not wait.

    A look, once a second, takes a tenth of a millisecond on free cores. Nothing is done where the
    environment says how many threads there are (OMP_NUM_THREADS, MKL_NUM_THREADS).

    Args:
        look: seconds that short loops on so many threads take, and that this one works in them.
        watch: a new clock of both.

    Attributes:
        found: how many do not wait, by how many there are.
    """

    def __init__(
        self,
        look: Callable[[int], tuple[float, float]] = look,
        watch: Callable[[], Stopwatch] = Stopwatch,
    ) -> None:
        self._look, self._watch = look, watch
        self.found: dict[int, int] = {}
        self._due = -math.inf

    @contextmanager
    def lent(self, processes: int = 1) -> Iterator[None]:
        """As many threads as do not wait; afterwards as many as before.

        Args:
            processes: that step together, and have to round alike: several keep their threads.
        """
        usual = torch.get_num_threads()
        if usual == 1 or processes > 1 or decided():
            yield
            return
        count = self._count(usual)
        try:
            torch.set_num_threads(count)
            watch = self._watch()
            yield
            wall, work = watch.read()
            # A look may meet a quiet moment
            if count > 1 and waited(wall, work):
                self._note(usual, count // 2, wall)
        finally:
            # Unless the closure itself has said how many from now on
            if torch.get_num_threads() == count:
                torch.set_num_threads(usual)

    def _count(self, usual: int) -> int:
        """How many of them do not wait: as found before, or now where a look is due."""
        watch = self._watch()
        if usual not in self.found or watch.start[0] > self._due:
            count = usual
            while count > 1 and waited(*self._look(count)):
                count //= 2
            self._note(usual, count, watch.read()[0])
        return self.found[usual]

    def _note(self, usual: int, count: int, seconds: float) -> None:
        """So many do not wait, which it took so long to find out."""
        self.found = {usual: count}
        self._due = self._watch().start[0] + max(PAUSE, seconds / SHARE)


THREADS = Threads()  # of the process: what one optimizer has found holds for the others
