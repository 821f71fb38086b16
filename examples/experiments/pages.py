"""Pages of the docs: tables of results, written between two marks of a page that a person wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

from experiments.published import RMS, SECONDS
from experiments.results import markdown, summary

__all__ = ["comparison", "fill", "hardware"]

BEGIN, END = "<!-- results -->", "<!-- end -->"


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured medians beside the published values: RMS is absolute, as published."""
    table = summary(rows)
    keys = table[["problem", "parameters", "optimizer"]].itertuples(index=False, name=None)
    table["published RMS"] = [RMS.get(key, float("nan")) for key in keys]
    table["published s"] = table["problem"].map(SECONDS)
    table["factor"] = table["RMS"] / table["published RMS"]
    columns = (
        "parameters", "optimizer", "settings", "budget", "seeds", "steps", "relative L2",
        "worst", "RMS", "published RMS", "factor", "published s",
    )  # fmt: skip
    return table[list(columns)].sort_values(["parameters", "RMS"])


def hardware(folder: Path) -> str:
    """What the results of a folder were measured with, a sentence."""
    seen = set()
    for path in folder.glob("*_seed*.json"):
        e = json.loads(path.read_text())["environment"]
        malloc = "as in the user guide" if e["malloc"] != "default" else "untouched"
        seen.add(
            f"{e['processor']}, {e['threads']} thread, Python {e['python']}, "
            f"PyTorch {e['torch']}, {e['dtype'].removeprefix('torch.')}, malloc settings {malloc}, "
            f"commit {e['commit']}"
        )
    return "; ".join(sorted(seen)) + "."


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


def section(rows: pd.DataFrame, folder: Path, figure: str) -> str:
    """Table, figure and hardware of one problem."""
    return f"{markdown(comparison(rows))}\n![Error against seconds]({figure})\n\n{hardware(folder)}"
