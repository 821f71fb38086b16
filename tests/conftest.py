"""What every test shares: one thread, a Hypothesis profile, a seed."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Two busy threads on two busy cores can be ten times slower than one each.
torch.set_num_threads(1)

settings.register_profile(
    "default",
    deadline=None,  # the first call of a torch function is slow
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.getenv("CI") else "default"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same random numbers, in whatever order tests run."""
    torch.manual_seed(0)
