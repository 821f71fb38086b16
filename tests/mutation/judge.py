"""A run of pytest in a child process that is born with the heavy imports done.

They would take longer than most of the runs. Limits are in CPU seconds: a busy machine is no fault.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[2]
PYTEST = ["-q", "-p", "no:cacheprovider", "-p", "quick", "--hypothesis-seed=0"]
HEAVY = "torch", "torch._dynamo", "hypothesis", "linear_operator", "curvlinops", "backpack"


def pytest_in(
    clone: Path,
    arguments: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> tuple[int | None, str]:
    """Its exit code, None if it took longer than so many CPU seconds, and its output."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryFile("w+") as output:
        if (child := os.fork()) == 0:
            be_a_child(clone, arguments, variables or {}, seconds, output)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        code = os.waitstatus_to_exitcode(status)
        limits = -signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL
        return None if code in limits else code, output.read()


def be_a_child(
    clone: Path,
    arguments: Sequence[str],
    variables: Mapping[str, str],
    seconds: float | None,
    output: TextIO,
) -> None:
    """Run the tests of the clone, and end."""
    code = 3  # pytest's own for an internal error
    try:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        if seconds is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
            signal.alarm(int(20 * seconds))  # of the clock: it may wait for ever
        os.chdir(clone)
        os.environ |= {**variables, "PYTHONPATH": str(clone)}
        sys.path.insert(0, str(clone))
        import pytest

        code = int(pytest.main([*PYTEST, *arguments]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def git(*arguments: str) -> str:
    """Its output."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()
