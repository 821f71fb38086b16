"""How many small faults would the tests notice?  A random sample of mutants, a package at a time.

    python tests/mutation/run.py linalg --sample 25
    python tests/mutation/run.py all --sample 25

A mutant is the package with one operator, number, comparison, condition or decorator changed
(Cosmic Ray, `pip install -e ".[mutation]"`).  It meets the tests that execute the changed line,
the nearest and quickest first, and is killed if one of them fails.  All of it happens in a folder
beside the checkout, with a clone of the last commit: first the package's tests run once, to see
what each executes, then the mutants (some seconds each, a minute for one that survives).  What is
done is written down line by line, so that a run that was stopped goes on where it was; `--again`
tries the survivors once more, with the last commit's tests.  What became of them: survivors.json.
"""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from judge import ROOT, git, pytest_in
from mutants import Mutant, sample
from reach import FOLDER, SECONDS, Reach

# package -> (what is mutated, the tests that are asked: those of the first folder come first)
PACKAGES = {
    "linalg": ("kfac_pinn/linalg", ["tests/linalg", "tests/curvature"]),
    "jacobian": ("kfac_pinn/jacobian", ["tests/jacobian", "tests/test_bad_input.py"]),
    "curvature": ("kfac_pinn/curvature", ["tests/curvature", "tests/optimizers/test_kfac.py"]),
    "search": ("kfac_pinn/search", ["tests/search", "tests/optimizers/test_one_evaluation.py"]),
    "optimizers": ("kfac_pinn/optimizers", ["tests/optimizers"]),
    "training": ("kfac_pinn/pinn/training", ["tests/pinn"]),
}
HOUSE = [  # what imports alone decide: no test executes such a line
    "tests/test_settings.py",
    "tests/optimizers/test_optimizer_contract.py::test_what_a_subclass_must_say",
]
STAGES = 5.0, 40.0  # seconds of tests: of the nearest, and of all that execute the line


def main() -> None:
    """Sample, mutate, test, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", choices=[*PACKAGES, "all"])
    parser.add_argument("--sample", type=int, default=25, help="mutants a package")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--again", action="store_true", help="the survivors, with new tests")
    parser.add_argument("--only", default="", help="mutants whose path:line holds this text")
    parser.add_argument("--tests", nargs="*", help="instead of those that execute the line")
    parser.add_argument("--folder", type=Path, default=ROOT.with_name(ROOT.name + "-mutants"))
    options = parser.parse_args()
    bench = Bench(options.folder, options.tests)
    names = PACKAGES if options.package == "all" else [options.package]
    for name in names:
        bench.reach(name)  # before anything is changed
        chosen = sample(bench.clone, PACKAGES[name][0], options.sample, options.seed)
        chosen = [mutant for mutant in chosen if options.only in f"{mutant.path}:{mutant.first}"]
        found = [bench.verdict(mutant, name, options.again) for mutant in chosen]
        print(summary(name, found), flush=True)


def summary(name: str, found: Sequence[dict[str, Any]]) -> str:
    """How many were killed, and which were not."""
    counts = Counter(each["outcome"] for each in found)
    lines = [f"{name}: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))]
    for each in found:
        if each["outcome"] == "survived":
            lines += [f"  {each['path']}:{each['line']}", *(f"    {c}" for c in each["change"])]
    return "\n".join(lines)


class Bench:
    """A clone to work on, what its tests execute, and the verdicts so far.

    Args:
        folder: of all that.
        tests: run these, whatever they execute.
    """

    def __init__(self, folder: Path, tests: list[str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clone, self.results, self.chosen = folder / "clone", folder / "results.jsonl", tests
        self.commit = git("rev-parse", "--short", "HEAD")
        shutil.rmtree(self.clone, ignore_errors=True)
        git("clone", "--quiet", str(ROOT), str(self.clone))
        self.reach = cache(self.reach_of)
        self.known: dict[str, dict[str, Any]] = {}
        if self.results.exists():
            rows = map(json.loads, self.results.read_text().splitlines())
            self.known = {row["key"]: row for row in rows}

    def reach_of(self, package: str) -> Reach:
        """What the tests of a package execute, written down the first time."""
        folder = self.clone.with_name(package)
        if not (folder / SECONDS).exists():
            folder.mkdir(exist_ok=True)
            code, output = pytest_in(
                self.clone, ["-p", "reach", *PACKAGES[package][1]], {FOLDER: str(folder)}
            )
            print(f"{package}: {output.splitlines()[-1]}", flush=True)
            if code:
                raise RuntimeError(f"the tests must pass before a fault is put in:\n{output}")
        return Reach(folder)

    def verdict(self, mutant: Mutant, package: str, again: bool = False) -> dict[str, Any]:
        """Known, or found now and written down."""
        file = self.clone / mutant.path
        source = file.read_text()
        changed = mutant.applied(source)
        change = [] if changed is None else difference(source, changed)
        key = " ".join([mutant.path, mutant.operator, *change])
        known = self.known.get(key)
        if known and not (again and known["outcome"] == "survived"):
            return known
        start = time.monotonic()
        outcome, test = "no change", ""
        if changed is not None:
            file.write_text(changed)
            try:
                outcome, test = self.judged(mutant, package)
            finally:
                file.write_text(source)
        row = {
            "key": key,
            "package": package,
            "path": mutant.path,
            "line": mutant.first,
            "operator": mutant.operator,
            "change": change,
            "outcome": outcome,
            "test": test,
            "commit": self.commit,
            "seconds": round(time.monotonic() - start, 1),
        }
        self.known[key] = row
        with self.results.open("a") as results:
            results.write(json.dumps(row) + "\n")
        print(outcome, f"{mutant.path}:{mutant.first}", *change, test, flush=True)
        return row

    def judged(self, mutant: Mutant, package: str) -> tuple[str, str]:
        """killed (and by which test), timeout or survived."""
        lines, near = range(mutant.first, mutant.last + 1), PACKAGES[package][1][0]
        done: list[str] = []
        for seconds in STAGES:
            found = self.chosen or self.reach(package).tests(mutant.path, lines, near, seconds)
            if tests := [test for test in found if test not in done]:
                code, output = pytest_in(self.clone, ["-x", *tests], None, 3 * seconds + 60)
                if code is None:
                    return "timeout", ""
                if code:
                    return "killed", failed_in(output)
            done += tests
        code, output = pytest_in(self.clone, ["-x", *HOUSE], None, 60)
        return ("killed", failed_in(output)) if code else ("survived", "")


def failed_in(output: str) -> str:
    """The test that failed, or the last line."""
    lines = output.splitlines()
    found = [line for line in lines if line.startswith(("FAILED", "ERROR"))] or lines[-1:]
    return found[0].split(" - ")[0] if found else ""


def difference(source: str, changed: str) -> list[str]:
    """The lines that differ, as - and +."""
    lines = difflib.ndiff(source.splitlines(), changed.splitlines())
    return [f"{line[0]} {line[2:].strip()}" for line in lines if line[0] in "+-"]


if __name__ == "__main__":
    main()
