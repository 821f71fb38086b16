"""Every ``python`` snippet of the README and the docs runs, in one namespace a page."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kfac_pinn
from kfac_pinn import KFACPINN, LeastSquaresOptimizer
from kfac_pinn.taylor_mode.rule_table import RULES

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^([ ]*)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """The page as a test is called."""
    return str(page.relative_to(ROOT))


def program(text: str) -> str:
    """The snippets of a page as one program that keeps their line numbers."""
    lines = [""] * text.count("\n")
    for block in FENCE.finditer(text):
        first = text.count("\n", 0, block.start(2))
        indent = len(block[1])
        code = [line[indent:] for line in block[2].splitlines()]
        lines[first : first + len(code)] = code
    return "\n".join(lines)


@pytest.fixture
def untouched() -> Iterator[None]:
    """A page may choose a default dtype and add rules; the tests after it see neither."""
    dtype, rules = torch.get_default_dtype(), dict(RULES)
    yield
    torch.set_default_dtype(dtype)
    RULES.clear()
    RULES.update(rules)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("page", [p for p in PAGES if FENCE.search(p.read_text())], ids=name_of)
def test_snippets_run(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # what a snippet writes is left there
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "reproduce"))
    howto, names = importlib.import_module("howto"), {"__name__": "__main__"}
    exec(compile(program(page.read_text()), str(page), "exec"), names)
    if page.name == "README.md":  # its number, which rounding may change a little elsewhere
        (said,) = re.findall(r"# (\S+) after \d+ s", page.read_text())
        (found,) = re.findall(r"relative error (\S+)", capsys.readouterr().out)
        assert 1 / 4 < float(found) / float(said) < 4
    if page.parent.name == "howto" and page.stem in howto.PICTURES:  # what is left can be drawn
        howto.save(tmp_path / "drawn.png", *howto.PICTURES[page.stem](names))
        assert f"](../figures/howto/{page.stem}.png)" in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    gone = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not gone, f"{name_of(page)} links to {gone}"


FILE = re.compile(r"(?:examples|tests|kfac_pinn|hyperlora_ext)/[\w/.-]+\.(?:py|json|csv|ipynb)\b")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_exist(page: Path) -> None:
    """Results are in the repository, not in the source distribution."""
    named = {path for path in FILE.findall(page.read_text()) if "/results/" not in path}
    gone = [path for path in named if not (ROOT / path).exists()]
    assert not gone, f"{name_of(page)} names {gone}"


def test_the_keys_of_stats_are_those_of_the_table() -> None:
    table = (ROOT / "docs" / "api" / "optimizers.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", table, re.MULTILINE)
    said = {key for row in rows for key in re.findall(r"\w+", row)}
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model, x = model.double(), torch.rand(20, 2, dtype=torch.float64)
    found: set[str] = set()
    public = [getattr(kfac_pinn, name) for name in kfac_pinn.__all__]
    kinds = [kind for kind in public if inspect.isclass(kind) and not inspect.isabstract(kind)]
    for kind in (k for k in kinds if issubclass(k, LeastSquaresOptimizer)):
        optimizer = kind(model.parameters())
        for _ in range(2):  # a first step has less to tell
            optimizer.step(lambda: kfac_pinn.laplacian(model, x) + 1)
            found |= set(optimizer.stats)
    assert found == said


def test_equations_are_numbered_in_order() -> None:
    text = (ROOT / "docs" / "mathematics.md").read_text()
    numbers = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", text)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_equation_is_cited_by_the_code_and_every_citation_exists() -> None:
    text = (ROOT / "docs" / "mathematics.md").read_text()
    numbered = {int(n) for n in re.findall(r"\\tag\{(\d+)\}", text)}
    cited = {
        int(n)
        for source in (ROOT / "kfac_pinn").rglob("*.py")
        for group in re.findall(r"[Ee]qs?\. (\(\d+\)(?:, \(\d+\))*)", source.read_text())
        for n in re.findall(r"\d+", group)
    }
    assert cited == numbered


def test_one_recommendation_in_the_same_words_everywhere() -> None:
    words = (ROOT / "docs" / "recommendation.md").read_text().split()
    pages = ("README.md", "docs/choosing.md", "docs/algorithms/kfac_pinn.md")
    said = {page: (ROOT / page).read_text() for page in pages} | {"KFACPINN": KFACPINN.__doc__}
    for where, text in said.items():
        assert " ".join(words) in " ".join((text or "").split()), where


def test_no_page_refers_to_another_machine_for_its_looks() -> None:
    """The site works offline: MathJax is shipped, fonts are the system's."""
    site = (ROOT / "mkdocs.yml").read_text()
    assert "http" not in site and "font: false" in site


def test_pictures_say_what_is_seen() -> None:
    for page in PAGES:
        for words in re.findall(r"!\[([^\]]*)\]\(", page.read_text()):
            assert len(words.split()) >= 5, f"{name_of(page)}: alt text {words!r}"


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert there == listed


def test_pages_cited_exist() -> None:
    for source in (ROOT / "kfac_pinn").rglob("*.py"):
        for page in re.findall(r"docs/[\w/]+\.md", source.read_text()):
            assert (ROOT / page).exists(), f"{source.name} cites {page}"


@pytest.mark.skipif(
    not (ROOT / "examples" / "reproduce" / "results").exists(),
    reason="the measurements are in the repository, not in the source distribution",
)
def test_figures_in_the_docs_are_those_of_the_result_files() -> None:
    docs, results = ROOT / "docs", ROOT / "examples" / "reproduce" / "results"
    choosing, notes = (docs / f"{name}.md" for name in ("choosing", "design_notes"))
    for path in results.glob("gauss_newton_*.json"):
        found = json.loads(path.read_text())
        (line,) = [x for x in choosing.read_text().splitlines() if f"`{path.name}`" in x]
        median = f"{found['median_relative_l2']:.1e}".replace("e-0", "e-")
        assert f"| {median} ({len(found['relative_l2'])} seeds)" in line
        assert ", ".join(f"{error:.1e}" for error in found["relative_l2"]) in notes.read_text()
    ratios = json.loads((results / "step_cost.json").read_text())["ratio"].values()
    shown = [f"**{ratio:.2f}**" for ratio in ratios if ratio != 1]
    assert all(ratio in (docs / "design_notes.md").read_text() for ratio in shown)
    cost = (docs / "experiments" / "cost.md").read_text()
    for row in json.loads((results / "laplacian.json").read_text())["rows"]:
        taylor, nested = row["taylor"], row["nested"]
        cells = [f"{x['seconds']:.2f} s, {x['MiB']:.0f} MiB" for x in (taylor, nested)]
        cells += [f"{taylor[unit] / nested[unit]:.2f}" for unit in ("seconds", "MiB")]
        assert f"| {' | '.join(cells)} |" in cost


def test_the_readme_says_what_each_file_is_for() -> None:
    text = (ROOT / "README.md").read_text()
    for path in sorted((ROOT / "kfac_pinn").iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"| `kfac_pinn/{path.name}/` |" in text
        elif path.suffix == ".py" and path.stem != "__init__":
            assert f"| `kfac_pinn/{path.name}` |" in text
