"""Freed memory stays with the process; what the user decided about it stays as it is."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, torch
from kfac_pinn import MLP, laplacian
from kfac_pinn.allocation import reuse_freed_memory

model, x = MLP((5, 64, 64, 1)), torch.rand(2000, 5)
def step():
    laplacian(model, x).square().mean().backward()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps([reuse_freed_memory(), faults / 5]))
"""


def run(**settings: str) -> tuple[bool, float]:
    """Whether memory is kept in a new process, and page faults of a step there."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**plain, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = json.loads(done.stdout)
    return kept, faults


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_step_uses_the_memory_of_the_last_one() -> None:
    kept, faults = run()
    given_back, others = run(MALLOC_PERTURB_="0")
    assert kept and not given_back and faults < others / 4


@pytest.mark.parametrize(
    "settings",
    [
        {"MALLOC_PERTURB_": "0"},
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"},
    ],
)
def test_what_the_environment_says_stands(settings: dict[str, str]) -> None:
    assert not run(**settings)[0]
