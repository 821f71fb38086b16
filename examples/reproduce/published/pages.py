"""Pages of the docs: tables of results, written between two marks of a page that a person wrote."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from published.figures import NAMES, errors
from published.headline import draw
from published.recipes import OPTIMIZERS, PROBLEMS
from published.recorded import RECORDED, RMS, SCALE, SECONDS, TEN_SEEDS, steps
from published.results import RUN, SEEDS, load, markdown, summary

__all__ = [
    "circumstances",
    "commands",
    "comparison",
    "fill",
    "hardware",
    "headline",
    "missing",
    "plain",
    "report",
    "row",
    "winners",
]

NAN = float("nan")


def report(folder: Path, root: Path) -> None:
    """Tables, figures, hardware and what is missing, on all pages of a checkout that have them."""
    everything, docs = load(folder), root / "docs"
    fill(docs / "choosing.md", winners(everything), "published")
    fill(docs / "experiments" / "index.md", headline(everything), "headline")
    draw(everything, docs / "figures" / "headline.png")
    for problem in PROBLEMS:
        rows, page = (
            everything[everything["problem"] == problem],
            docs / f"experiments/{problem}.md",
        )
        if page.exists():
            fill(page, section(problem, rows, folder, page.parent))


def section(problem: str, rows: pd.DataFrame, folder: Path, pages: Path) -> str:
    """What the runs of one problem say."""
    if rows.empty:
        return f"No run is committed yet. {missing(problem, rows)}"
    figure = f"../figures/{problem}.png"
    errors(rows, pages / figure)
    return "\n\n".join(
        [
            markdown(short(rows)).rstrip(),
            f"![{seen(problem, rows)}]({figure})",
            "*Medians and quartiles over the runs; thin lines: single runs trained for longer.*",
            missing(problem, rows),
            "<details markdown>\n<summary>All rows, settings and commands</summary>",
            markdown(comparison(rows)).rstrip(),
            "Reproduce a row with its command, which prints it and draws the figure into `mine`:",
            f"```\n{commands(rows)}\n```",
            f"Measured on {hardware(folder, problem)}",
            "</details>",
        ]
    )


def short(rows: pd.DataFrame) -> pd.DataFrame:
    """One row an optimizer and network: the best settings at the longest budget."""
    table = distinct(summary(rows)).sort_values(["parameters", "budget", "relative L2"])
    keys = ["parameters", "optimizer"]
    longest = table["budget"] == table.groupby(keys)["budget"].transform("max")
    best = table[longest].drop_duplicates(keys).sort_values(["parameters", "relative L2"])
    scale = best["problem"].map(SCALE).astype(float)
    ends = [
        RMS.get(key, NAN) for key in best[["problem", *keys]].itertuples(index=False, name=None)
    ]
    return pd.DataFrame(
        {
            "parameters": [f"{n:,}" for n in best["parameters"]],
            "optimizer": best["optimizer"].map(NAMES),
            "CPU seconds": best["seconds"].round(),
            "runs": best["seeds"],
            "relative L2": best["relative L2"],
            "published": ends / scale,
        }
    )


def seen(problem: str, rows: pd.DataFrame) -> str:
    """What the figure of a problem shows, for those who do not see it."""
    names = ", ".join(NAMES[name] for name in NAMES if name in set(rows["optimizer"]))
    best = short(rows).sort_values("relative L2").iloc[0]
    return (
        f"Relative error against CPU seconds and against steps on {PROBLEMS[problem]().name}, for "
        f"{names}; {best['optimizer']} has the smallest error, {best['relative L2']:.0e}"
    )


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """Measured errors beside the published ones: RMS is absolute, as published."""
    table = distinct(summary(rows))
    keys = list(table[["problem", "parameters", "optimizer"]].itertuples(index=False, name=None))
    published = [RMS.get(key, NAN) for key in keys]
    then = [
        RECORDED[key].after(n) if key in RECORDED else NAN
        for key, n in zip(keys, table["steps"], strict=True)
    ]
    unit = table["problem"].map(SCALE).astype(float)  # a published RMS is relative times this
    shown = pd.DataFrame(
        {
            "parameters": table["parameters"],
            "optimizer": table["optimizer"],
            "settings": table["settings"].map(plain),
            "points": table["points"],
            "seeds": table["seeds"],
            "seconds": table["seconds"].round(),
            "steps": table["steps"].round(),
            "relative L2": table["relative L2"],
            "RMS": table["RMS"],
            "quartiles": spread(
                table["lower quartile"], table["upper quartile"].where(table["seeds"] > 1), "to"
            ),
            "mean": spread(table["mean"], table["deviation"], "±"),
            "published RMS": published,
            "factor": table["relative L2"] * unit / published,
            "published s": table["problem"].map(SECONDS).astype(float),
            "published steps": [steps(*key) for key in keys],
            "published then": then,
            "factor then": table["relative L2"] * unit / then,
        }
    )
    if any(key[:2] == ("heat_4d", 10065) for key in keys):
        shown["published mean"] = [ten_seeds(*key) for key in keys]
    return shown.dropna(axis=1, how="all")


def row(rows: pd.DataFrame) -> str:
    """The rows of some runs of one problem, as much of them as fits a terminal."""
    wide = ["quartiles", "mean", "published s", "published steps", "published then"]
    return markdown(comparison(rows).drop(columns=wide, errors="ignore"))


def commands(rows: pd.DataFrame) -> str:
    """A line a row of the table: the command that reproduces it."""
    return "\n".join(dict.fromkeys(command(run) for run in distinct(summary(rows)).itertuples()))


def distinct(table: pd.DataFrame) -> pd.DataFrame:
    """Without runs that ended before several budgets: they stay once, at the longest."""
    return table[~table.duplicated([*RUN, "seeds", "steps", "seconds"], keep="last")]


def command(run: Any) -> str:
    """What makes all seeds of a row of the summary."""
    budget = f"--{'seconds' if run.unit == 'seconds' else 'steps'} {run.budget:g}"
    if run.unit == "seconds" and run.steps >= run.limit:
        budget += f" --steps {run.limit:g}"
    name = f"python examples/reproduce/run.py train {run.problem} {run.optimizer}{run.options}"
    return f"{name} {budget} --seeds {run.seeds} --folder mine"


def winners(rows: pd.DataFrame, places: int = 3) -> str:
    """A table of the optimizers with the smallest median error at every budget of every network:
    each with the best of its settings and samplings.
    """
    lines = []
    keys = ["problem", "parameters", "dtype", "device", "unit", "budget"]
    for (problem, parameters, dtype, device, unit, budget), runs in summary(rows).groupby(keys):
        best = runs.sort_values("relative L2").drop_duplicates("optimizer")
        named = best.head(places)[["optimizer", "relative L2", "seeds"]]
        other = [x for x in (dtype, device) if x not in ("float64", "cpu")]
        lines.append(
            {
                "problem": PROBLEMS[problem]().name,
                "parameters": f"{parameters:,}",
                "budget": " ".join([f"{budget:g} {'s' if unit == 'seconds' else 'steps'}", *other]),
                "smallest errors (runs)": ", ".join(
                    f"{NAMES[name]} {error:.1e} ({k})" for name, error, k in named.to_numpy()
                ),
                "of": len(best),
            }
        )
    return markdown(pd.DataFrame(lines))


HEADLINE = {
    "adam": "Adam",
    "lbfgs": "L-BFGS",
    "kfac_star": "K-FAC\\*",
    "kfac_pinn": "`KFACPINN`",
    "gauss_newton": "`GaussNewton`",
}


def headline(rows: pd.DataFrame) -> str:
    """Median errors at equal seconds: of each network at the budget that most optimizers had, and
    at the longest that several had.
    """
    timed = rows[(rows["unit"] == "seconds") & rows["optimizer"].isin(HEADLINE)]
    if timed.empty:
        return ""
    table, lines = summary(timed), []
    for (problem, parameters), runs in table.groupby(["problem", "parameters"]):
        had = runs.groupby("budget")["optimizer"].nunique()
        had = had[had > 1]
        for budget in sorted({*had[had == had.max()].index[-1:], *had.index[-1:]}):
            equal = runs[runs["budget"] == budget]
            errors = equal.groupby("optimizer")["relative L2"].min().reindex(HEADLINE)
            line = {"problem": PROBLEMS[problem]().name, "parameters": f"{parameters:,}"}
            line |= {"seconds": f"{budget:g}", "seeds": seeds(equal)}
            lines.append({**line, **errors.rename(HEADLINE)})
    if not lines:
        return ""
    return markdown(pd.DataFrame(lines).sort_values("parameters", key=counts, kind="stable"))


def seeds(runs: pd.DataFrame) -> str:
    """How many, the fewest and the most of an optimizer."""
    return "–".join(str(n) for n in sorted({runs["seeds"].min(), runs["seeds"].max()}))


def counts(column: pd.Series) -> pd.Series:
    """1,234 as a number."""
    return column.str.replace(",", "").astype(int)


def plain(settings: str) -> str:
    """Settings without the punctuation of JSON."""
    return ", ".join(f"{name} {value:g}" for name, value in json.loads(settings).items())


def spread(first: pd.Series, second: pd.Series, between: str) -> list[str]:
    """Two numbers a cell; the second is nan of a single seed."""
    pairs = zip(first, second, strict=True)
    return [f"{a:.1e} {between} {b:.1e}" if b == b else f"{a:.1e}" for a, b in pairs]


def ten_seeds(problem: str, parameters: int, optimizer: str) -> str:
    """Mean and deviation of the published ten seeds, where there are any."""
    if (problem, parameters) != ("heat_4d", 10065) or optimizer not in TEN_SEEDS:
        return "–"
    return "{:.2e} ± {:.2e}".format(*TEN_SEEDS[optimizer])


def missing(problem: str, rows: pd.DataFrame) -> str:
    """Which of the published networks and optimizers have no result, with their published RMS."""
    parts = []
    for sizes in PROBLEMS[problem]().networks:
        parameters = sum((a + 1) * b for a, b in pairwise(sizes))
        there = set(rows.loc[rows["parameters"] == parameters, "optimizer"]) if len(rows) else ()
        absent = [known(problem, parameters, name) for name in OPTIMIZERS if name not in there]
        if absent:
            parts.append(f"with {parameters:,} parameters {', '.join(absent)}")
    text = f"Missing (published RMS in brackets): {'; '.join(parts)}."
    return text if parts else "Every optimizer has been run."


def known(problem: str, parameters: int, optimizer: str) -> str:
    """An optimizer with its published error."""
    rms = RMS.get((problem, parameters, optimizer))
    return f"{optimizer} ({rms:.1e})" if rms else optimizer


def hardware(folder: Path, problem: str = "") -> str:
    """What the results of a folder were measured with, a sentence."""
    commits: dict[str, set[str]] = {}
    for content in (json.loads(path.read_text()) for path in folder.glob(SEEDS)):
        environment = content["environment"]
        if problem in ("", content["experiment"]["problem"]):
            commits.setdefault(circumstances(environment), set()).add(environment["commit"])
    return "; ".join(f"{what}, commit {', '.join(sorted(c))}" for what, c in commits.items()) + "."


def circumstances(environment: dict[str, Any]) -> str:
    """One environment but for its commit, for people."""
    e, untouched = environment, environment["malloc"] == "default"
    return (
        f"{e['processor']}, {e['threads']} thread, Python {e['python']}, PyTorch {e['torch']}, "
        f"{e['dtype'].removeprefix('torch.')}, malloc settings "
        f"{'untouched' if untouched else 'as in the user guide'}"
    )


def fill(page: Path, text: str, mark: str = "results") -> None:
    """Replace what stands between <!-- mark --> and the next <!-- end --> of a page.

    Raises:
        ValueError: if the page has no such pair, or several.
    """
    begin, end = f"<!-- {mark} -->", "<!-- end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    new, count = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", page.read_text())
    if count != 1:
        raise ValueError(f"{page} needs one pair of lines {begin} and {end}, found {count}")
    page.write_text(new)
