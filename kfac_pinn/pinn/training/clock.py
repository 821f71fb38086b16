"""The one notion of seconds, of `fit`, its rows and the experiments: those an idle machine needs.

On a CPU they are the CPU seconds of the thread that trains. That thread takes part in every
operation of torch, however many others help it, so they are what a wall clock would show were
nothing else running: other programs do not shorten a budget, nor do more threads (the CPU seconds
of the whole process would count each of them). What waits (`time.sleep`, files) does not count.

On a GPU they are seconds of the wall clock, after all queued work is done: a busy GPU counts.
"""

from __future__ import annotations

import time

import torch

__all__ = ["now"]

_CPU = torch.device("cpu")


def now(device: torch.device = _CPU) -> float:
    """Seconds since some moment; only differences mean something."""
    if device.type in ("cuda", "mps", "xpu"):
        torch.accelerator.synchronize(device)
    if device.type == "cpu":
        return time.thread_time()
    return time.perf_counter()
