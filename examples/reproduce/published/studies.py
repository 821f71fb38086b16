"""Studies beside the published problems: a table (CSV), a figure, and a page of the docs each."""

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
        seen: what the figure shows, for those who do not see it.
    """

    measure: Callable[[], pd.DataFrame]
    draw: Callable[[pd.DataFrame, Path], None]
    shown: Callable[[pd.DataFrame], pd.DataFrame] | None
    seconds: float
    seen: str


SPECTRA = (
    "Eigenvalues over their index of the Gramian, its blocks, the Kronecker approximation and the "
    "preconditioned Gramian at several steps: K-FAC leaves a few orders of magnitude"
)
PICTURES = (
    "Maps of solution, error and residual at three times: Adam and SGD miss the solution that "
    "K-FAC* and KFACPINN find"
)
COST = (
    "Milliseconds and memory of a step of Adam, K-FAC* and KFACPINN against dimension, points, "
    "width and depth, beside the lines of the formulas"
)
ABLATION = (
    "Relative error against the number of steps a batch is kept, and against the EMA factor, for "
    "three batch sizes: small batches want new points, and an EMA of 0.9 to 0.95 is best"
)
STUDIES = {
    "spectra": Study(spectra.measure, spectra.draw, spectra.quantiles, 40, SPECTRA),
    "pictures": Study(pictures.measure, pictures.draw, pictures.errors, 200, PICTURES),
    "cost": Study(cost.measure_all, cost.draw, cost.constants, 200, COST),
    "ablation": Study(
        lambda: ablation.measure(RESULTS / "ablation"),
        ablation.draw,
        ablation.medians,
        750,
        ABLATION,
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
    parts = [f"![{study.seen}](../figures/{name}.png)", f"Measured on {source}."]
    if study.shown is not None:
        parts.insert(1, markdown(study.shown(rows)).rstrip())
    fill(DOCS / "experiments" / f"{name}.md", "\n\n".join(parts))
