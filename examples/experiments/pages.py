"""Pages of the docs: tables of results, written between two marks of a page that a person wrote."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.figures import errors
from experiments.published import RMS, SCALE, SECONDS, TEN_SEEDS, steps
from experiments.recipes import OPTIMIZERS, PROBLEMS
from experiments.results import SEEDS, load, markdown, summary

__all__ = ["circumstances", "comparison", "fill", "hardware", "missing", "report"]

BEGIN, END = "<!-- results -->", "<!-- end -->"
NAN = float("nan")


def report(folder: Path, pages: Path) -> None:
    """Table, figure, hardware and what is missing, on the page of every problem."""
    everything = load(folder)
    for problem in PROBLEMS:
        rows, page = everything[everything["problem"] == problem], pages / f"{problem}.md"
        if page.exists():
            fill(page, section(problem, rows, folder, pages))


def section(problem: str, rows: pd.DataFrame, folder: Path, pages: Path) -> str:
    """What the runs of one problem say."""
    if rows.empty:
        return f"No run is committed yet. {missing(problem, rows)}"
    figure = f"../figures/{problem}.png"
    errors(rows, pages / figure)
    return "\n\n".join(
        [
            markdown(comparison(rows)),
            f"![Held-out error against seconds and against the training loss]({figure})",
            f"Measured on {hardware(folder, problem)}",
            missing(problem, rows),
        ]
    )


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured errors beside the published ones: RMS is absolute, as published."""
    table = summary(rows)
    keys = list(table[["problem", "parameters", "optimizer"]].itertuples(index=False, name=None))
    published = [RMS.get(key, NAN) for key in keys]
    shown = pd.DataFrame(
        {
            "parameters": table["parameters"],
            "optimizer": table["optimizer"],
            "settings": table["settings"],
            "points": table["points"],
            "seeds": table["seeds"],
            "seconds": table["seconds"].round(),
            "steps": table["steps"].round(),
            "relative L2": table["relative L2"],
            "RMS": table["RMS"],
            "quartiles": spread(table["lower quartile"], table["upper quartile"], "to"),
            "mean": spread(table["mean"], table["deviation"], "±"),
            "published RMS": published,
            "factor": table["relative L2"] * table["problem"].map(SCALE).astype(float) / published,
            "published s": table["problem"].map(SECONDS).astype(float),
            "published steps": [steps(*key) for key in keys],
        }
    )
    if any(key[:2] == ("heat_4d", 10065) for key in keys):
        shown["published mean"] = [ten_seeds(*key) for key in keys]
    return shown.sort_values(["parameters", "RMS"])


def spread(first: pd.Series, second: pd.Series, between: str) -> list[str]:
    """Two numbers a cell; the second is nan of a single seed."""
    pairs = zip(first, second, strict=True)
    return [f"{a:.1e} {between} {b:.1e}" if b == b else f"{a:.1e}" for a, b in pairs]


def ten_seeds(problem: str, parameters: int, optimizer: str) -> str:
    """Mean and deviation of the published ten seeds, where there are any."""
    if (problem, parameters) != ("heat_4d", 10065) or optimizer not in TEN_SEEDS:
        return "–"
    return "{:.1e} ± {:.1e}".format(*TEN_SEEDS[optimizer])


def missing(problem: str, rows: pd.DataFrame) -> str:
    """Which of the published networks and optimizers have no result, a sentence."""
    parts = []
    for sizes in PROBLEMS[problem]().networks:
        parameters = sum((a + 1) * b for a, b in pairwise(sizes))
        there = set(rows.loc[rows["parameters"] == parameters, "optimizer"]) if len(rows) else ()
        absent = [name for name in OPTIMIZERS if name not in there]
        if absent:
            names = ", ".join(absent) if there else "all optimizers"
            parts.append(f"{names} with {parameters:,} parameters")
    return f"Not run: {'; '.join(parts)}." if parts else "Every optimizer has been run."


def hardware(folder: Path, problem: str = "") -> str:
    """What the results of a folder were measured with, a sentence."""
    paths = folder.glob(f"{problem}_{SEEDS}" if problem else SEEDS)
    contents = [json.loads(path.read_text())["environment"] for path in paths]
    return "; ".join(sorted({circumstances(content) for content in contents})) + "."


def circumstances(environment: dict[str, Any]) -> str:
    """One environment, for people."""
    e, untouched = environment, environment["malloc"] == "default"
    return (
        f"{e['processor']}, {e['threads']} thread, Python {e['python']}, PyTorch {e['torch']}, "
        f"{e['dtype'].removeprefix('torch.')}, malloc settings "
        f"{'untouched' if untouched else 'as in the user guide'}, commit {e['commit']}"
    )


def fill(page: Path, text: str) -> None:
    """Replace what stands between the marks of a page.

    Raises:
        ValueError: if the page has no marks.
    """
    old = page.read_text()
    new, count = re.subn(
        f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{text}\n{END}", old, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{page} needs one pair of lines {BEGIN} and {END}, found {count}")
    page.write_text(new)
