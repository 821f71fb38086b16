"""How many small faults would the tests notice?  A random sample of mutants, one package at a time.

    python tests/mutation/run.py linalg --sample 40
    python tests/mutation/run.py all --sample 40

A mutant is the package with one operator, number, comparison, condition or decorator changed
(Cosmic Ray, `pip install -e ".[mutation]"`).  It is killed if the package's own tests fail, or,
should those pass, the tests of the floors above.  Works on a clone of the last commit, so that the
checkout stays as it is; outside CI, since a mutant takes tens of seconds.  Survivors are printed
with their change.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
JUDGE = "tests/mutation/judge.py"

# package -> (what is mutated, the tests nearest to it, then those that a survivor also meets)
PACKAGES = {
    "linalg": ("kfac_pinn/linalg", ["tests/linalg"], ["tests/curvature"]),
    "jacobian": ("kfac_pinn/jacobian", ["tests/jacobian"], ["tests/test_bad_input.py"]),
    "curvature": ("kfac_pinn/curvature", ["tests/curvature"], ["tests/optimizers/test_kfac.py"]),
    "search": ("kfac_pinn/search", ["tests/search"], ["tests/optimizers/test_one_evaluation.py"]),
    "optimizers": ("kfac_pinn/optimizers", ["tests/optimizers"], ["tests/test_bad_input.py"]),
    "training": ("kfac_pinn/pinn/training", ["tests/pinn"], ["tests/test_examples.py"]),
}

# `X | None` in an annotation is not code.
EQUIVALENT = ["core/ReplaceBinaryOperator_BitOr_.*"]

CONFIGURATION = """
[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{command}"

[cosmic-ray.distributor]
name = "local"

[cosmic-ray.filters.operators-filter]
exclude-operators = {equivalent}
"""


def main() -> None:
    """Sample, mutate, test, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("package", choices=[*PACKAGES, "all"])
    parser.add_argument("--sample", type=int, default=40, help="mutants a package")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a test run")
    parser.add_argument("--out", type=Path, help="a JSON file of the result")
    options = parser.parse_args()
    chosen = PACKAGES if options.package == "all" else [options.package]
    results = {name: measure(name, options) for name in chosen}
    for name, result in results.items():
        print(f"{name}: {result['killed']} of {result['mutants']} killed")
        print("\n".join(result["survivors"]))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


def measure(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Kill counts and the survivors of one package."""
    module, near, far = PACKAGES[name]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        run("git", "clone", "--quiet", str(ROOT), str(clone), where=ROOT)
        configuration = clone / "mutation.toml"
        configuration.write_text(
            CONFIGURATION.format(
                module=module,
                timeout=options.timeout,
                command=" ".join([sys.executable, JUDGE, ",".join(near), ",".join(far)]),
                equivalent=json.dumps(EQUIVALENT),
            )
        )
        run("cosmic-ray", "init", "mutation.toml", "session.sqlite", where=clone)
        run("cr-filter-operators", "session.sqlite", "mutation.toml", where=clone)
        keep_sample(clone / "session.sqlite", options.sample, options.seed)
        run("cosmic-ray", "exec", "mutation.toml", "session.sqlite", where=clone)
        return report(run("cosmic-ray", "dump", "session.sqlite", where=clone))


def run(*command: str, where: Path) -> str:
    """Its output; torch on one thread, the clone's own package."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(where)}
    return subprocess.run(
        command, cwd=where, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def keep_sample(session: Path, size: int, seed: int) -> None:
    """Mark all mutants but a random sample as skipped."""
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    with use_db(session, WorkDB.Mode.open) as database:
        pending = sorted(item.job_id for item in database.pending_work_items)
        random.Random(seed).shuffle(pending)
        for job in pending[size:]:
            database.set_result(job, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def report(dump: str) -> dict[str, object]:
    """Counts, and of each survivor the changed lines."""
    pairs = [json.loads(line) for line in dump.splitlines()]
    done = [(item, result) for item, result in pairs if result["worker_outcome"] == "normal"]
    alive = [(item, result) for item, result in done if result["test_outcome"] == "survived"]
    return {
        "mutants": len(done),
        "killed": len(done) - len(alive),
        "survivors": [describe(item, result) for item, result in alive],
    }


def describe(item: dict, result: dict) -> str:  # type: ignore[type-arg]
    """path:line and the two lines that differ."""
    mutation = item["mutations"][0]
    changed = [
        line
        for line in result["diff"].splitlines()
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return "\n".join([f"  {mutation['module_path']}:{mutation['start_pos'][0]}", *changed])


if __name__ == "__main__":
    main()
