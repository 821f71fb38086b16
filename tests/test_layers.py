"""The floors of the architecture: a module imports only strictly lower ones.

Reads the sources with ``ast``; nothing is imported, so a lazy import inside a function counts too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A package named without its modules is one unit: its files may import each other.
FLOORS = [
    ["allocation", "notices", "processes", "settings", "threads"],
    ["linalg"],
    ["taylor_mode.detached", "taylor_mode.rule_table", "taylor_mode.basis"],
    ["taylor_mode.jets"],
    ["taylor_mode.rules"],
    ["taylor_mode.arguments", "taylor_mode.polarisation"],
    ["taylor_mode.operators"],
    ["taylor_mode.stochastic"],
    ["taylor_mode"],
    [
        "jacobian.losses",
        "jacobian.layers",
        "jacobian.dense_rows",
        "jacobian.backward",
        "jacobian.batches",
    ],
    ["jacobian.blocks"],
    ["jacobian.capture", "jacobian.partition", "jacobian.matrix_free"],
    ["jacobian.sampled", "jacobian.squares", "jacobian.residual_graph"],
    ["jacobian.products"],
    ["jacobian.quadratic_forms", "jacobian.robust_losses"],
    ["jacobian.heads"],
    ["jacobian.scalar_losses"],
    ["jacobian.term_jacobian"],
    ["jacobian.linearization", "jacobian.terms"],
    ["jacobian.assembly", "jacobian.check"],
    ["jacobian.graph_assembly"],
    ["jacobian.sources"],
    ["jacobian.running", "jacobian.sharded"],
    ["jacobian.share"],
    ["jacobian.closure"],
    ["jacobian.slopes"],
    ["jacobian.objective"],
    ["jacobian"],
    [
        "curvature.fisher",
        "curvature.weight_sharing",
        "curvature.factor_damping",
        "curvature.shared_inverses",
    ],
    ["curvature.decomposition", "curvature.kronecker_factors", "curvature.sample_space"],
    ["curvature.compression", "curvature.preconditioners"],
    ["curvature"],
    ["search.step"],
    ["search.line", "search.model", "search.geodesic", "search.wolfe"],
    ["search.damping"],
    ["search.one_evaluation", "search.trust_region"],
    ["search"],
    [
        "optimizers.arguments",
        "optimizers.flat",
        "optimizers.precision",
        "optimizers.reading",
        "optimizers.record",
        "optimizers.remarks",
        "optimizers.saving",
    ],
    ["optimizers.source", "optimizers.stateful"],
    ["optimizers.base", "optimizers.affordable"],
    ["optimizers.direction", "optimizers.damped"],
    [
        "optimizers.kfac",
        "optimizers.engd",
        "optimizers.spring",
        "optimizers.self_scaled",
        "optimizers.hessian_free",
        "optimizers.gauss_newton",
        "optimizers.levenberg_marquardt",
    ],
    ["optimizers.kfac_pinn"],
    ["optimizers"],
    ["pinn.domains"],
    ["pinn.networks", "pinn.wrappers"],
    ["pinn.problem"],
    ["pinn.conditions", "pinn.corner_layers"],
    ["pinn.problems", "pinn.windows"],
    ["pinn.training"],
    ["pinn"],
]
FLOOR = {f"kfac_pinn.{unit}": i for i, units in enumerate(FLOORS, 1) for unit in units}
FLOOR |= {"kfac_pinn": 100, "hyperlora_ext": 101}


def module_name(path: Path) -> str:
    """kfac_pinn/optimizers/base.py -> kfac_pinn.optimizers.base."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("kfac_pinn", "hyperlora_ext")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def unit_of(module: str) -> str | None:
    """The row of the table a module belongs to: the longest prefix that has a floor."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    found = next((prefix for prefix in prefixes if prefix in FLOOR), None)
    # Only kfac_pinn/__init__.py is the package; any other file needs a row of its own.
    return None if found == "kfac_pinn" and module != "kfac_pinn" else found


def targets(module: str, node: ast.AST) -> Iterator[str]:
    """The modules an import statement reads: a submodule where there is one, else its package."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = absolute(module, node)
        for alias in node.names:
            submodule = f"{source}.{alias.name}"
            yield submodule if submodule in MODULES else source


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module named by ``from .x import``, whole."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    drop = node.level - (MODULES[module].name == "__init__.py")
    return ".".join([*package[: len(package) - drop], *filter(None, [node.module])])


def imports(module: str) -> set[str]:
    """Every module of ours that a module reads."""
    tree = ast.parse(MODULES[module].read_text())
    found = {target for node in ast.walk(tree) for target in targets(module, node)}
    return {target for target in found if target.split(".")[0] in ("kfac_pinn", "hyperlora_ext")}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_floor(module: str) -> None:
    assert unit_of(module), f"{module} stands on no floor: give it a row in FLOORS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_strictly_down(module: str) -> None:
    here = unit_of(module)
    for target in imports(module) - {module}:
        there = unit_of(target)
        assert there == here or FLOOR[there] < FLOOR[here], (
            f"{module} (floor {FLOOR[here]}) imports {target} (floor {FLOOR[there]})"
        )


def test_imports_are_seen() -> None:
    assert "kfac_pinn.taylor_mode.rule_table" in imports("kfac_pinn.taylor_mode.rules")
    assert "kfac_pinn.taylor_mode.rules" in imports("kfac_pinn.taylor_mode.operators")


def public_names(module: str) -> set[str]:
    """What a module lists in ``__all__``."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("hyperlora_ext")])
def test_the_extension_uses_public_names_only(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and absolute(module, node).startswith("kfac_pinn"):
            private = {alias.name for alias in node.names} - public_names(absolute(module, node))
            assert not private, f"{module}: {ast.unparse(node)}: {private} is not in __all__"


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.stem)
def test_a_file_of_tests_opens_with_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_called_like_what_it_defines(module: str) -> None:
    """Where the package exports the function too, it would hide the module."""
    defined = {getattr(node, "name", "") for node in ast.parse(MODULES[module].read_text()).body}
    assert module.rpartition(".")[2] not in defined


@pytest.mark.parametrize("module", MODULES)
def test_no_text_is_told_apart_by_its_type(module: str) -> None:
    """Variants are objects; where isinstance(..., str) decides, it is to raise."""
    tree = ast.parse(MODULES[module].read_text())
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If) and asks_for_str(node)]
    assert all(isinstance(node.body[0], ast.Raise) for node in branches), module


def asks_for_str(node: ast.If) -> bool:
    """Whether a condition asks if something is a string."""
    calls = [call for call in ast.walk(node.test) if isinstance(call, ast.Call)]
    return any(ast.unparse(call).startswith("isinstance(") and "str" in ast.unparse(call.args[1])
               for call in calls if len(call.args) == 2)  # fmt: skip


# Where a name is compared, it is one of torch's (a node of the graph, a device, an error's text).
STEERED = ("linalg", "curvature", "search", "optimizers")


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith(tuple(f"kfac_pinn.{room}" for room in STEERED))]
)
def test_no_text_steers_a_step(module: str) -> None:
    """Outcomes are codes, state is typed: no comparison with a literal text, no `vars`."""
    tree = ast.parse(MODULES[module].read_text())
    compared = [ast.unparse(node) for node in ast.walk(tree) if compares_text(node)]
    torchs = re.compile(r"\.type [!=]= |in str\(error\)")
    assert not [each for each in compared if not torchs.search(each)]
    assert "vars" not in {getattr(node, "id", "") for node in ast.walk(tree)}


def compares_text(node: ast.AST) -> bool:
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    return any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in sides)
