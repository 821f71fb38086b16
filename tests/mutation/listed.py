"""Faults that once passed the suite, each with the tests that notice it now.

    python tests/mutation/listed.py            # a few minutes; `listed.py sobol` for one of them

Every fault is put into a clone of the last commit, and its tests must fail; without it they pass
(the suite says so).
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from judge import ROOT, git, pytest_in


@dataclass(frozen=True)
class Fault:
    """In a file of the package a text, which stands there once, becomes another.

    Attributes:
        file: below kfac_pinn/, or from the root for another package.
        old, new: the text.
        tests: of which one must fail.
    """

    file: str
    old: str
    new: str
    tests: str

    def path(self, root: Path) -> Path:
        """Of the file in a checkout."""
        inside = root / "kfac_pinn" / self.file
        return inside if inside.exists() else root / self.file


ENGD, FISHER = "optimizers/engd.py", "curvature/fisher.py"
SEEDS = "tests/optimizers/test_random_parts.py"
SPACE = "tests/curvature/test_sample_space.py"
FAULTS: dict[str, Fault] = {
    "rollback of groups": Fault(
        "optimizers/stateful.py",
        "            group.clear()  # settings that were added\n            group.update(old)",
        "            pass",
        "tests/optimizers/test_rollback.py",
    ),
    "patience forgets": Fault(
        "pinn/training/callbacks.py",
        'self.best, self.since = state["best"], state["since"]',
        "pass",
        "tests/pinn/test_checkpoints.py::test_patience_goes_on_waiting",
    ),
    "checkpoint in place": Fault(
        "pinn/training/storage.py",
        "os.replace(partial, path)",
        "path.write_bytes(partial.read_bytes()), partial.unlink()",
        "tests/pinn/test_checkpoints.py::test_the_file_is_never_written_in_place",
    ),
    "seconds of a resumed run": Fault(
        "pinn/training/run.py",
        'self.seconds, self.loss = state["seconds"], state["loss"]',
        'self.loss = state["loss"]',
        "tests/pinn/test_checkpoints.py::test_seconds_go_on",
    ),
    "siren without omega": Fault(
        "pinn/networks.py",
        "math.sqrt(6 / width) / omega",
        "math.sqrt(6 / width)",
        "tests/pinn/test_networks.py",
    ),
    "sobol seed": Fault(
        "pinn/domains/samplers.py", "seed=int(seed))", "seed=0)", "tests/pinn/test_domains.py"
    ),
    "burgers without its start": Fault(
        "pinn/problems/burgers_equation.py",
        "together(domain.boundary, domain.initial)",
        "domain.boundary",
        "tests/pinn/test_problems.py",
    ),
    "heat without its boundary": Fault(
        "pinn/problems/heat_equation.py",
        "together(domain.boundary, domain.initial)",
        "domain.initial",
        "tests/pinn/test_problems.py",
    ),
    "fokker-planck at the wrong time": Fault(
        "pinn/problems/fokker_planck_equation.py",
        "Term(domain.initial,",
        "Term(domain.interior,",
        "tests/pinn/test_problems.py",
    ),
    "a family's face": Fault(
        "hyperlora_ext/problems/navier_stokes.py",
        "face = torch.arange(n) % 4",
        "face = torch.arange(n) % 3",
        "tests/hyperlora/test_hyperlora_terms.py",
    ),
    "root of t": Fault(
        "hyperlora_ext/problems/scalar_burgers.py",
        "return x[:, :1].sqrt() * residual",
        "return residual",
        "tests/hyperlora/test_hyperlora_families.py",
    ),
    "kernel of a frozen weight": Fault(
        "jacobian/blocks.py",
        "        if weight:\n            for z, g",
        "        if True:\n            for z, g",
        SPACE,
    ),
    "engd's count of steps": Fault(ENGD, "damping, self.steps)", "damping, 0)", SEEDS),
    "engd's memory of a layer": Fault(
        ENGD,
        "averages.get(p), linearization.gramian(block)",
        "None, linearization.gramian(block)",
        "tests/optimizers/test_engd.py",
    ),
    "engd's merge": Fault(
        ENGD,
        "        for p, average in averages.items():\n",
        '        for p in self.parameters:\n            self.state[p].pop("gramian", None)\n'
        "        for p, average in averages.items():\n",
        "tests/optimizers/test_engd.py",
    ),
    "diagonal of the identity": Fault(
        "curvature/kronecker_factors.py",
        "torch.ones_like(like)",
        "torch.zeros_like(like)",
        "tests/optimizers/test_engd.py",
    ),
    "monte carlo's step": Fault(
        FISHER, "generator_for(self.seed, step)", "generator_for(self.seed, 0)", SPACE
    ),
    "monte carlo's seed": Fault(
        FISHER, "generator_for(self.seed, step)", "generator_for(0, step)", SPACE
    ),
    "nystrom's step": Fault(
        "curvature/sample_space.py",
        "generator_for(self.seed, step, ",
        "generator_for(self.seed, 0, ",
        SPACE,
    ),
    "nystrom's seed": Fault(
        "curvature/sample_space.py",
        "generator_for(self.seed, step, ",
        "generator_for(0, step, ",
        SPACE,
    ),
    "the preconditioner's seed": Fault(
        "curvature/preconditioners.py", "generator_for(self.seed, 0", "generator_for(0, 0", SPACE
    ),
    "every sketch the same": Fault(
        "optimizers/gauss_newton.py", "manual_seed(number)", "manual_seed(0)", SEEDS
    ),
    "kfac's count of steps": Fault(
        "optimizers/kfac.py",
        "linearization, optimizer.steps, level",
        "linearization, 0, level",
        SEEDS,
    ),
    "spring's count of steps": Fault(
        "optimizers/spring.py",
        "self.kernel.factor(linearization, damping, step)",
        "self.kernel.factor(linearization, damping, 0)",
        SEEDS,
    ),
    "offset of blocks": Fault(
        "linalg/dense.py", "start = stop", "start = len(rows)", "tests/linalg/test_dense.py"
    ),
    "offset of the ridge": Fault(
        "curvature/compression.py", "start += len(part)", "start = len(part)", SPACE
    ),
    "a trial that is no number": Fault(
        "jacobian/objective.py",
        "return loss if math.isfinite(loss) else math.inf",
        "return loss",
        "tests/search/test_search.py",
    ),
    "pairs after a refused step": Fault(
        "optimizers/kfac_pinn.py",
        "replace(self.memory, pairs=None)",
        "self.memory",
        "tests/optimizers/test_damped_steps.py",
    ),
    "promise of a shortened step": Fault(
        "optimizers/damped.py",
        "predicted=whole.predicted if step.length == 1 else step.predicted",
        "predicted=whole.predicted",
        "tests/optimizers/test_damped_steps.py",
    ),
    "ratio of a failed step": Fault(
        "search/model.py",
        "return ratio if math.isfinite(ratio) else -math.inf",
        "return ratio",
        "tests/search/test_damping.py",
    ),
    "promise of the last iterate": Fault(
        "optimizers/hessian_free.py",
        "solution.model_values[index]",
        "solution.model_values[-1]",
        "tests/optimizers/test_hessian_free.py",
    ),
    "ascent": Fault(
        "optimizers/hessian_free.py",
        "if not linearization.gradient @ p < 0:",
        "if False:",
        "tests/optimizers/test_hessian_free.py",
    ),
    "ascent is promised nothing": Fault(
        "optimizers/hessian_free.py",
        "predicted=-math.inf",
        "predicted=1.0",
        "tests/optimizers/test_hessian_free.py",
    ),
    "no damping at all": Fault(
        "linalg/dense.py",
        "if failed or not shift.all():",
        "if failed:",
        "tests/linalg/test_dense.py",
    ),
    "negative eigenvalues": Fault(
        "linalg/dense.py",
        "kept = values.abs() >",
        "kept = values >",
        "tests/linalg/test_dense.py",
    ),
    "the bend of a shortened step": Fault(
        "optimizers/levenberg_marquardt.py",
        '0.5 * self.expand("lr").square() * a',
        '0.5 * self.expand("lr") * a',
        "tests/search/test_geodesic.py",
    ),
    "chunks of dense rows": Fault(
        "jacobian/dense_rows.py",
        "broadcast.rows(some)",
        "broadcast.rows(slice(some.start, 2 * some.stop))",
        "tests/jacobian/test_few_rows_at_once.py",
    ),
    "create_graph": Fault(
        "jacobian/capture/unsupported.py",
        "return bool(create_graph)",
        "return False",
        "tests/test_bad_input.py",
    ),
    "slack of the veto": Fault(
        "optimizers/levenberg_marquardt.py",
        "bound = (1 + self.slack) *",
        "bound = 1 *",
        "tests/optimizers/test_levenberg_marquardt.py",
    ),
    "too much slack": Fault(
        "optimizers/levenberg_marquardt.py",
        "bound = (1 + self.slack) *",
        "bound = (1 + 2 * self.slack) *",
        "tests/optimizers/test_levenberg_marquardt.py",
    ),
    "rows of an absent block": Fault(
        "jacobian/term_jacobian.py",
        "return self.residual.new_zeros(len(self.residual[points]), block.size)",
        "return self.residual.new_ones(len(self.residual[points]), block.size)",
        "tests/jacobian/test_few_rows_at_once.py",
    ),
    "batch norm's eps": Fault(
        "taylor_mode/rules/normalisation.py",
        "training: bool = False, momentum: float = 0.1, eps: float = 1e-5,",
        "training: bool = False, momentum: float = 0.1, eps: float = 1e-6,",
        "tests/taylor_mode/test_rules.py::test_defaults_in_the_signatures_are_those_of_torch",
    ),
}


def main() -> None:
    """Which of them the tests do not notice."""
    wanted = [
        name for name in FAULTS if not sys.argv[1:] or any(part in name for part in sys.argv[1:])
    ]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        git("clone", "--quiet", str(ROOT), str(clone))
        missed = [name for name in wanted if not noticed(clone, name)]
    print(f"{len(wanted) - len(missed)} of {len(wanted)} faults are noticed")
    sys.exit(bool(missed))


def noticed(clone: Path, name: str) -> bool:
    """Whether a test fails."""
    fault = FAULTS[name]
    file = fault.path(clone)
    source = file.read_text()
    if source.count(fault.old) != 1:
        raise ValueError(f"{name}: {fault.file} does not hold its text once")
    file.write_text(source.replace(fault.old, fault.new))
    try:
        code, output = pytest_in(clone, ["-x", fault.tests])
    finally:
        file.write_text(source)
    found = code == 1
    print("noticed" if found else f"NOT NOTICED ({code})", name, flush=True)
    if code not in (0, 1):
        print(output)
    return found


if __name__ == "__main__":
    main()
