"""The numbers on the README, the landing page and two more pages are those of the result files."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from experiments import EXAMPLES, load

ROOT = EXAMPLES.parent
DOCS, RESULTS = ROOT / "docs", EXAMPLES / "reproduce" / "results"
WORDS = {"seven": 7, "nine": 9, "twelve": 12}
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="results are in the repository only")


@pytest.fixture(scope="module")
def lines() -> list[Any]:
    """The comparisons that the dot plot shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES / "reproduce"))
        return load("published.headline").lines(
            load("published.results").load(RESULTS / "published")
        )


def gains(lines: list[Any]) -> dict[str, tuple[float, float]]:
    """Adam's error and the better one of ours, where Adam was run."""
    found = {}
    for line in lines:
        errors = line["relative L2"]
        if "adam" in errors:
            ours = min(errors[name] for name in ("kfac_pinn", "gauss_newton") if name in errors)
            found[line["problem"].iloc[0]] = (errors["adam"], ours)
    return found


def short(number: float, digits: int = 1) -> str:
    """3.4e-2."""
    return f"{number:.{digits}e}".replace("e-0", "e-")


def test_the_first_sentences(lines: list[Any]) -> None:
    factors = [adam / ours for adam, ours in gains(lines).values()]
    for page in (ROOT / "README.md", DOCS / "index.md"):
        text = " ".join(page.read_text().split())
        said = re.search(r"On (\w+) published .* by a factor of (\d+) .* to (\w+) orders", text)
        assert said, page
        assert WORDS[said[1]] == len(factors)
        assert int(said[2]) == round(min(factors))
        assert 10 ** WORDS[said[3]] <= max(factors) < 10 ** (WORDS[said[3]] + 1)
        seen = re.search(r"Dot plot of relative errors on (\w+) problems", text)
        assert seen and WORDS[seen[1]] == len(lines)


def test_what_the_dot_plot_is_said_to_show(lines: list[Any]) -> None:
    """Ours lie left of the others or level with them; the two errors that are named."""
    for line in lines:
        errors = line["relative L2"]
        ours = min(errors[name] for name in ("kfac_pinn", "gauss_newton") if name in errors)
        assert ours <= min(errors)
    (poisson,) = [line["relative L2"] for line in lines if line["problem"].iloc[0] == "poisson_2d"]
    text = (ROOT / "README.md").read_text()
    said = re.search(r"GaussNewton is at (\S+) and Adam at ([^\s\]]+)", text)
    assert said
    assert said[1] == short(poisson["gauss_newton"], 0) and said[2] == short(poisson["adam"], 0)


def test_the_table_of_factors(lines: list[Any]) -> None:
    text = (DOCS / "numbers.md").read_text()
    names = load("published.recipes").PROBLEMS
    for problem, (adam, ours) in gains(lines).items():
        name = names[problem]().name.replace("Fokker-Planck", "Fokker–Planck")
        row = re.search(rf"\| {re.escape(name)} \| (\S+) \| (\S+) \| (\S+) \|", text)
        assert row and row.groups()[:2] == (short(adam), short(ours)), problem
        assert float(row[3]) == pytest.approx(adam / ours, rel=0.3)


def test_the_comparison_with_deepxde() -> None:
    rows = json.loads((RESULTS / "frameworks" / "deepxde.json").read_text())["Burgers"]["rows"]
    known = {(f"{row['error']:.1e}".replace("e-0", "e-"), round(row["seconds"])) for row in rows}
    text = " ".join((DOCS / "comparison.md").read_text().partition("**Measured")[2].split())
    said = re.findall(r"(\d\.\de-\d) after (\d+)", text)
    assert said and {(error, int(seconds)) for error, seconds in said} <= known
