"""A pytest plugin: few examples a property, the same every time.  A mutant that they miss is met
by all the tests that execute its line; more examples of one of them would rarely change that.
"""

from __future__ import annotations

from hypothesis import settings


def pytest_configure() -> None:
    settings.register_profile(
        "quick",
        settings.get_profile("default"),
        max_examples=8,
        derandomize=True,
        database=None,
    )
    settings.load_profile("quick")
