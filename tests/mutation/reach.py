"""Which tests execute a line, and how long they take: the only ones that can notice a fault there.

As a pytest plugin (`-p reach`) it writes both down while the tests run; `Reach` reads them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from coverage import Coverage, CoverageData

FOLDER = "REACH"  # the variable that says where to write
LINES, SECONDS = "lines.sqlite", "seconds.json"


class Recorder:
    """The plugin: a context of coverage for each test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, {}
        self.coverage = Coverage(data_file=str(folder / LINES), source=["kfac_pinn"])
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        taken = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.passed:
            self.seconds[report.nodeid] = taken

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        (self.folder / SECONDS).write_text(json.dumps(self.seconds))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(Path(os.environ[FOLDER])))


class Reach:
    """What was written down.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.seconds: dict[str, float] = json.loads((folder / SECONDS).read_text())
        self.data = CoverageData(str(folder / LINES))
        self.data.read()
        self.by_line = cache(self._by_line)

    def tests(self, path: str, lines: Iterable[int], near: str, seconds: float) -> list[str]:
        """Those that execute one of the lines of a file, the nearest and quickest first.

        A line that is executed when the module is imported (a default, a decorator) has no test of
        its own: then those of the whole file.

        Args:
            path: of the file, from the root of the repository.
            near: a folder of tests that come first.
            seconds: how much they may take together.
        """
        known = self.by_line(path)
        found = {test for line in lines for test in known.get(line, ())}
        if not found:
            found = {test for tests in known.values() for test in tests}
        passed = [test for test in found if test in self.seconds]
        passed.sort(key=lambda test: (not test.startswith(near), self.seconds[test], test))
        total, kept = 0.0, []
        for test in passed:
            total += self.seconds[test]
            if kept and total > seconds:
                break
            kept.append(test)
        return kept

    def _by_line(self, path: str) -> dict[int, list[str]]:
        """Line -> tests."""
        name = next(
            (n for n in self.data.measured_files() if Path(n).as_posix().endswith(path)), None
        )
        if name is None:
            return {}
        pairs = self.data.contexts_by_lineno(name).items()
        return {line: [test for test in tests if test] for line, tests in pairs}
