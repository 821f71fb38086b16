"""Seconds are those of the training thread: neither waiting nor other threads count."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.training import clock, fit

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")
BOX = Box.cube(2)


def compute(seconds: float) -> None:
    """Until this thread has worked for so long."""
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        sum(range(1000))


def spent(residual_does: object) -> float:
    def residual(u: object, x: Tensor) -> Tensor:
        residual_does()  # type: ignore[operator]
        return u(x) - 1  # type: ignore[operator, no-any-return]

    model = MLP((2, 4, 1))
    problem = Problem("mine", BOX, {"all": Term(BOX.interior, residual, 10)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, problem, optimizer, steps=1)  # what is loaded at the first step
    return float(fit(model, problem, optimizer, steps=3).last["seconds"])


def test_work_counts_and_waiting_does_not() -> None:
    assert spent(lambda: time.sleep(0.1)) < 0.3 <= spent(lambda: compute(0.1))


def test_evaluation_does_not_count() -> None:
    """Three steps of one evaluation each, though the history's rows take four more."""
    assert 0.3 <= spent(lambda: compute(0.1)) < 0.6


def test_other_threads_do_not_count() -> None:
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            sum(range(1000))

    other = threading.Thread(target=busy)
    other.start()
    start = clock.now(CPU)
    time.sleep(0.5)
    found = clock.now(CPU) - start
    over.set()
    other.join()
    assert found < 0.25


def test_there_is_one_notion_of_seconds() -> None:
    """Only the clock reads a clock, what says that both differ, and what runs with commits that
    had none; a wall clock is called so."""
    compare = ("clock.py", "threads.py", "timed_steps.py", "timed_processes.py", "five_minutes.py")
    folders = ("kfac_pinn", "hyperlora_ext", "examples")
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for line in path.read_text().splitlines():
            reads = re.search(r"perf_counter|process_time|thread_time|\btime\.time\(", line)
            allowed = path.name in compare or "wall" in line
            assert allowed or not reads, f"{path}: {line}"
