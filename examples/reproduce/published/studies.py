"""What reviewers asked for, a study each: a table (CSV), a figure, and a page of the docs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from published import ablation, cost, pictures, spectra
from published.pages import circumstances, fill
from published.results import environment, markdown

__all__ = ["SECONDS", "STUDIES", "make", "publish", "table"]

REPRODUCE = Path(__file__).parents[1]
RESULTS = REPRODUCE / "results" / "studies"
DOCS = REPRODUCE.parents[1] / "docs"


@dataclass(frozen=True)
class Study:
    """One question.

    Attributes:
        measure: makes the table.
        draw: (table, path) -> the figure.
        shown: what of the table stands on the page, if anything.
        seconds: about how long it takes.
    """

    measure: Callable[[], pd.DataFrame]
    draw: Callable[[pd.DataFrame, Path], None]
    shown: Callable[[pd.DataFrame], pd.DataFrame] | None
    seconds: float


STUDIES = {
    "spectra": Study(spectra.measure, spectra.draw, spectra.quantiles, 40),
    "pictures": Study(pictures.measure, pictures.draw, pictures.errors, 200),
    "cost": Study(cost.measure_all, cost.draw, cost.constants, 200),
    "ablation": Study(
        lambda: ablation.measure(RESULTS / "ablation"), ablation.draw, ablation.medians, 750
    ),
}
SECONDS = {name: study.seconds for name, study in STUDIES.items()}


def table(name: str) -> Path:
    """Where its table is."""
    return RESULTS / f"{name}.csv"


def make(name: str) -> str:
    """Measure, and publish."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    rows = STUDIES[name].measure()
    rows.to_csv(table(name), index=False, float_format="%.4g")
    facts = json.dumps(environment(), indent=1)
    table(name).with_suffix(".json").write_text(facts + "\n")
    publish(name)
    return str(table(name))


def publish(name: str) -> None:
    """Draw the figure and fill the page from the table that is there."""
    study, rows = STUDIES[name], pd.read_csv(table(name))
    study.draw(rows, DOCS / "figures" / f"{name}.png")
    facts = json.loads(table(name).with_suffix(".json").read_text())
    source = f"{circumstances(facts)}, commit {facts['commit']}"
    parts = [f"![{name}](../figures/{name}.png)", f"Measured on {source}."]
    if study.shown is not None:
        parts.insert(1, markdown(study.shown(rows)).rstrip())
    fill(DOCS / "experiments" / f"{name}.md", "\n\n".join(parts))
