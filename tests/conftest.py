"""What every test shares: one thread, a seed, and properties that are tried on new cases in CI."""

from __future__ import annotations

import os

# Before anything loads a numerical library: two busy threads on two busy cores can be ten times
# slower than one each, and the tests run side by side.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "default",
    deadline=None,  # the first call of a torch function is slow
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# New cases every time; a failure prints its seed and how to run that case again, and is kept in
# .hypothesis/, where the next run tries it first.
settings.register_profile(
    "ci", settings.get_profile("default"), max_examples=50, derandomize=False, print_blob=True
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=400)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.getenv("CI") else "default"))

CASES = "cases"  # a user property of a test's report: how many cases of its property were tried


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, help="run the tests in the random order of this seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """No test may lean on another one's leftovers."""
    if (seed := config.getoption("shuffle")) is not None:
        random.Random(seed).shuffle(items)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed here, to print it; what starts the workers hands it on."""
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = random.SystemRandom().randrange(2**32)


def pytest_report_header(config: pytest.Config) -> str:
    return f"the cases of the properties: --hypothesis-seed={config.option.hypothesis_seed}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Count the cases of a property that were tried to their end."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return (yield)
    test, counted = handle.inner_test, [0]
    handle.inner_test = counting(test, counted)
    try:
        return (yield)
    finally:
        handle.inner_test = test
        item.user_properties.append((CASES, counted[0]))


def counting(test: Callable[..., Any], counted: list[int]) -> Callable[..., Any]:
    """The test, counted: cases that it rejects (`assume`) are not."""

    @functools.wraps(test)
    def count(*args: Any, **kwargs: Any) -> Any:
        found = test(*args, **kwargs)
        counted[0] += 1
        return found

    return count


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    reports = [r for kind in terminalreporter.stats.values() for r in kind]
    counts = [
        count
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, count in report.user_properties
        if name == CASES
    ]
    seed = config.option.hypothesis_seed
    terminalreporter.write_line(f"Hypothesis: {sum(counts)} cases of {len(counts)} properties")
    terminalreporter.write_line(f"to draw the same again: --hypothesis-seed={seed}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same random numbers, in whatever order tests run."""
    torch.manual_seed(0)


@pytest.fixture
def a_step_is_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Budgets in seconds end at the same step on every machine."""
    from kfac_pinn.pinn.training import clock

    ticks = itertools.count()
    monkeypatch.setattr(clock, "now", lambda device=None: float(next(ticks)))
