"""What is handed out: public names from one place, typed, described without dead links."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hyperlora_ext
import kfac_pinn

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
STAGES = [m.name for m in pkgutil.iter_modules(kfac_pinn.__path__) if m.ispkg]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
# Where a user looks; families to start from and schedules are modules of the extension.
OBVIOUS = {"kfac_pinn", "hyperlora_ext", "hyperlora_ext.problems", "hyperlora_ext.schedules"}
FENCE = re.compile(r"^([ ]*)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def imports(source: str) -> Iterator[tuple[str, str]]:
    """What is imported from our packages: the module, and each name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def ours(source: str) -> set[tuple[str, str]]:
    packages = ("kfac_pinn", "hyperlora_ext")
    return {pair for pair in imports(source) if pair[0].partition(".")[0] in packages}


def snippets(page: Path) -> str:
    """The code of a page, each snippet without its indentation."""
    found = []
    for block in FENCE.finditer(page.read_text()):
        found += [line[len(block[1]) :] for line in block[2].splitlines()]
    return "\n".join(found)


@pytest.mark.parametrize("path", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_and_examples_import_from_the_obvious_place(path: Path) -> None:
    source = path.read_text() if path.suffix == ".py" else snippets(path)
    for module, name in ours(source):
        assert module in OBVIOUS, f"{path.name}: from {module} import {name}"
        assert not name or name in importlib.import_module(module).__all__, f"{path.name}: {name}"


@pytest.mark.parametrize("package", [kfac_pinn, hyperlora_ext])
def test_every_public_name_is_on_one_page_of_the_api_and_in_its_index(package: Any) -> None:
    pages = {path.name: path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")}
    pattern = re.compile(rf"^::: {package.__name__}\.(\w+)$", re.MULTILINE)
    shown = [name for text in pages.values() for name in pattern.findall(text)]
    names = [name for name in shown if not isinstance(getattr(package, name, None), ModuleType)]
    assert sorted(names) == sorted(package.__all__)
    for name in package.__all__:
        assert f".md#{package.__name__}.{name})" in pages["index.md"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_exports_what_the_package_exports_of_it(stage: str) -> None:
    """Each public name is defined in one stage, which exports it too."""
    module = importlib.import_module(f"kfac_pinn.{stage}")
    for name in kfac_pinn.__all__:
        source = getattr(getattr(kfac_pinn, name), "__module__", "")
        if source.startswith(f"kfac_pinn.{stage}."):
            assert name in module.__all__, f"{name} is missing in kfac_pinn.{stage}"
            assert getattr(module, name) is getattr(kfac_pinn, name)


@pytest.mark.parametrize("module", ["", *(f".{stage}" for stage in STAGES)])
def test_only_what_is_listed_is_exported(module: str) -> None:
    """All names that are listed exist, once, and all others are modules or private."""
    package = importlib.import_module(f"kfac_pinn{module}")
    assert len(package.__all__) == len(set(package.__all__))
    submodules = {m.name for m in pkgutil.iter_modules(package.__path__)}
    public = {name for name in vars(package) if not name.startswith("_")}
    assert public - submodules <= set(package.__all__) <= public


@pytest.mark.parametrize("package", [kfac_pinn, hyperlora_ext], ids=lambda p: p.__name__)
def test_no_exported_function_hides_a_module(package: Any) -> None:
    """`import a.b` is the module b whatever a exports, so that b cannot be a function as well."""
    names = [m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    for name in names:
        module, (above, _, last) = importlib.import_module(name), name.rpartition(".")
        assert getattr(sys.modules[above], last) is module


def test_an_import_loads_no_more_than_it_needs() -> None:
    """Neither the bar's library, nor what examples and tests need, nor the extension, nor
    torch's compiler, which takes seconds."""
    code = "import sys, torch; torch_s = set(sys.modules); import kfac_pinn; "
    code += "names = set(sys.modules) - torch_s; "
    code += "print(*{m.partition('.')[0] for m in names}, *names & {'torch._dynamo', 'sympy'})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"tqdm", "matplotlib", "scipy", "pandas", "typer", "hyperlora_ext", "asyncio"}
    heavy |= {"torch._dynamo", "sympy"}
    assert not heavy & set(answer.stdout.split())


def test_numpy_is_not_needed() -> None:
    """As torch itself, which only says that it is not there."""
    code = """
import sys
sys.modules["numpy"] = None  # an import of it fails
import hyperlora_ext
from kfac_pinn import KFACPINN, MLP, Fixed, GaussNewton, fit, poisson_2d
for kind in (KFACPINN, GaussNewton):
    model = MLP((2, 4, 1))
    few = Fixed({"interior": 12, "boundary": 8})
    print(fit(model, poisson_2d(), kind(model.parameters()), steps=1, sampling=few).reason)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n")[:2] == ["1 steps are done"] * 2


@pytest.mark.parametrize("package", [kfac_pinn, hyperlora_ext])
def test_packages_say_that_they_are_typed(package: Any) -> None:
    assert (Path(package.__file__).parent / "py.typed").exists()


def test_the_description_of_the_package_has_no_dead_links() -> None:
    """The substitutions of pyproject.toml leave addresses and anchors, and the text of the rest."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = (ROOT / "README.md").read_text()
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert all(re.match(r"https?:|mailto:|#", link) for link in links)
    assert "User guide" in text and "docs/figures" not in text


def test_one_place_says_the_version() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "kfac_pinn/__init__.py"
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == kfac_pinn.__version__  # type: ignore[index]


def test_the_archive_leaves_the_measurements_behind() -> None:
    archive = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert "examples/reproduce/results" in archive["exclude"]
    assert {"tests", "docs", "examples", "kfac_pinn", "hyperlora_ext"} <= set(archive["include"])


def test_the_readme_sets_nothing() -> None:
    """Its commands need no variable of the environment."""
    commands = re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 4  # a CPU build, the package, the example, the tests
    assert not any(re.search(r"\b[A-Z_]{4,}=", command) for command in commands)
