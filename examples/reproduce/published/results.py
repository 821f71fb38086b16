"""Result files: one JSON a run, complete enough to make the run again, and tables of them."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from kfac_pinn.pinn.training import History
from published.recipes import NEVER, PROBLEMS, resampling

__all__ = [
    "Experiment",
    "best_settings",
    "environment",
    "load",
    "markdown",
    "save",
    "summary",
]

COLUMNS = (
    "step", "seconds", "loss", "held_out_loss", "relative_l2", "rms",
    "damping", "step_length", "ratio",
)  # fmt: skip
RUN = [
    "problem", "network", "parameters", "optimizer", "settings", "points", "dtype", "device",
    "unit",
]  # fmt: skip
SEEDS = "*_seed*.json"


@dataclass(frozen=True)
class Experiment:
    """One run to make.

    Attributes:
        problem, optimizer: names in `recipes`.
        network: hidden widths, () for the problem's smallest published network.
        seconds, steps: the budget, whichever is spent first; seconds as `fit` counts them. It
            is no part of the name: a run given more goes on where it was.
        seed: of initialisation and points.
        points: numbers of points by term, where they differ from the problem's own.
        resample: steps after which new points are drawn; None: as the problem says.
        device, dtype: that the run is on and in.
        settings: of the optimizer.
        published_start: whether the network is the one that the published runs began with, drawn
            in single precision from seed 1; the points are still those of `seed`.
    """

    problem: str
    optimizer: str
    network: tuple[int, ...] = ()
    seconds: float | None = None
    steps: int | None = None
    seed: int = 0
    points: dict[str, int] = field(default_factory=dict)
    resample: int | None = None
    device: str = "cpu"
    dtype: str = "float64"
    settings: dict[str, float] = field(default_factory=dict)
    published_start: bool = False

    def replace(self, **changes: Any) -> Experiment:
        """The same with some fields changed."""
        return replace(self, **changes)

    @property
    def name(self) -> str:
        """What the result file is called."""
        widths = "-".join(map(str, self.network)) or "small"
        settings = [f"{key}={value:g}" for key, value in sorted(self.settings.items())]
        parts = [self.problem, widths, self.optimizer, *settings]
        parts += [f"{term}={count}" for term, count in self.points.items()]
        parts += [kept(self.resample)] if self.resample else []
        parts += ["published-start"] if self.published_start else []
        parts += [x for x in (self.device, self.dtype) if x not in ("cpu", "float64")]
        return "_".join([*parts, f"seed{self.seed}"])

    def path(self, folder: Path) -> Path:
        """The result file."""
        return folder / f"{self.name}.json"

    def checkpoint(self, folder: Path) -> Path:
        """What a run that is not finished, or is given more later, goes on from."""
        return folder / f"{self.name}.pt"

    def done(self, folder: Path) -> bool:
        """Whether there is a result that has spent this budget, or ended before for good."""
        if not self.path(folder).exists():
            return False
        content = json.loads(self.path(folder).read_text())
        last = {name: values[-1] for name, values in content["curve"].items()}
        limits = {"seconds": self.seconds or math.inf, "step": self.steps or math.inf}
        ended_for_good = not content["ended"].endswith(("are done", "are spent"))
        return ended_for_good or any(last[unit] >= limit for unit, limit in limits.items())


def kept(resample: int | None) -> str:
    """How long a batch is kept, for people and file names."""
    return "fixed" if resample == NEVER else f"every{resample}" if resample else "kept as published"


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions, hardware and the commit that a figure was measured with."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": os.environ.get("KFAC_PINN_COMMIT") or commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor() if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "malloc": os.environ.get("MALLOC_TOP_PAD_", "default"),
        "dtype": str(torch.get_default_dtype()),
    }


def commit() -> str:
    """The commit of this checkout, "-dirty" where code differs too; "" without git."""
    known = git("describe", "--always")
    results = [f":(top,exclude){folder}" for folder in ("examples/reproduce/results", "docs")]
    changed = git("status", "--porcelain", "-uno", "--", ":/", *results)
    return f"{known}-dirty" if changed else known


def git(*command: str) -> str:
    """What git says of this file's checkout."""
    asked = ["git", "-C", str(Path(__file__).parent), *command]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def processor() -> str:
    """The model of the processor, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def save(folder: Path, experiment: Experiment, model: nn.Module, history: History) -> None:
    """Write the result of a run, a line a key, numbers with four digits."""
    curve = pd.DataFrame(history.rows).reindex(columns=COLUMNS).dropna(axis=1, how="all")
    content = {
        "experiment": asdict(experiment),
        "parameters": sum(p.numel() for p in model.parameters()),
        "ended": history.reason,
        "environment": environment(experiment.device),
        "curve": {name: [rounded(v) for v in curve[name]] for name in curve},
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    experiment.path(folder).write_text("{\n" + ",\n".join(lines) + "\n}\n")


def rounded(value: float) -> float:
    """With four digits, and whole numbers whole."""
    return int(value) if value == value // 1 else float(f"{value:.4g}")


def load(folder: Path) -> pd.DataFrame:
    """All rows of all runs in a folder, with the columns of their experiments."""
    frames = [rows_of(json.loads(path.read_text())) for path in folder.glob(SEEDS)]
    if not frames:
        raise FileNotFoundError(f"no result files in {folder}")
    return pd.concat(frames, ignore_index=True).fillna({"relative_l2": math.inf, "rms": math.inf})


def rows_of(content: dict[str, Any]) -> pd.DataFrame:
    """The curve of one result file with what tells it from others."""
    experiment = content["experiment"]
    return pd.DataFrame(content["curve"]).assign(
        problem=experiment["problem"],
        network="-".join(map(str, experiment["network"])) or "small",
        optimizer=experiment["optimizer"],
        settings=json.dumps(experiment["settings"], sort_keys=True),
        points=points_of(experiment),
        seed=experiment["seed"],
        dtype=experiment["dtype"],
        device=experiment["device"],
        parameters=content["parameters"],
        unit="seconds" if experiment["seconds"] else "step",
        budget=experiment["seconds"] or experiment["steps"],
        limit=experiment["steps"] or math.inf,
        options=options_of(experiment),
    )


def options_of(experiment: dict[str, Any]) -> str:
    """What `run.py train` is given for such a run besides problem, optimizer, budget and seeds."""
    widths = "-".join(map(str, experiment["network"]))
    usual = resampling(experiment["problem"], experiment["optimizer"])
    start = " --published-start" if experiment.get("published_start") else ""
    given = {
        "network": widths,
        "settings": quoted(experiment["settings"]),
        "points": quoted(experiment["points"]),
        "keep": "" if experiment["resample"] == usual else experiment["resample"],
        "device": experiment["device"].replace("cpu", ""),
        "dtype": experiment["dtype"].replace("float64", ""),
    }
    return "".join(f" --{name} {value}" for name, value in given.items() if value) + start


def quoted(values: dict[str, Any]) -> str:
    """As an argument of a shell, "" for none."""
    return f"'{json.dumps(values)}'" if values else ""


def points_of(experiment: dict[str, Any]) -> str:
    """Which points a run had: their numbers, how long they are kept, and from which start."""
    published = {name: term.size for name, term in PROBLEMS[experiment["problem"]]().terms.items()}
    sizes = " + ".join(str(n) for n in (published | experiment["points"]).values())
    start = ", published start" if experiment.get("published_start") else ""
    return f"{sizes}, {kept(experiment['resample'])}{start}"


def last_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The final row of every run."""
    return rows.sort_values("step").groupby([*RUN, "seed"], as_index=False).tail(1)


def at_budgets(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """For every budget that runs on a network were given, the rows where they had just spent it.

    A run given 300 s is also a run of 30 s; one that came to rest earlier counts with its end.
    """
    of_network = ["problem", "parameters", "dtype", "device", "unit"]
    for (*_, unit), peers in rows.groupby(of_network):
        for budget in sorted(peers["budget"].unique()):
            for _, runs in peers[peers["budget"] >= budget].groupby(RUN):
                given = runs.sort_values("step")
                spent = given[given[unit] >= 0.999 * budget].groupby("seed").head(1)
                rest = given[~given["seed"].isin(spent["seed"])].groupby("seed").tail(1)
                yield pd.concat([spent, rest]).assign(budget=budget)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Medians, quartiles, mean and deviation of the final errors over the seeds, best first."""
    final = pd.concat(at_budgets(rows)).groupby([*RUN, "budget"])
    relative, rms = final["relative_l2"], final["rms"]
    table = pd.DataFrame(
        {
            "seeds": final["seed"].nunique(),
            "steps": final["step"].median(),
            "seconds": final["seconds"].median(),
            "loss": final["loss"].median(),
            "relative L2": relative.median(),
            "worst": relative.max(),
            "RMS": rms.median(),
            "lower quartile": rms.quantile(0.25),
            "upper quartile": rms.quantile(0.75),
            "mean": rms.mean(),
            "deviation": rms.std(),
            "limit": final["limit"].first(),
            "options": final["options"].first(),
        }
    )
    order = ["problem", "parameters", "unit", "budget", "relative L2"]
    return table.reset_index().sort_values(order, ignore_index=True)


def best_settings(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """{problem: {optimizer: settings}} with the smallest final held-out error."""
    final = last_rows(rows)
    chosen = final.loc[final.groupby(["problem", "optimizer"])["relative_l2"].idxmin()]
    best: dict[str, dict[str, dict[str, Any]]] = {}
    for row in chosen.itertuples():
        best.setdefault(row.problem, {})[row.optimizer] = json.loads(row.settings)
    return best


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown; numbers with two digits where they are not counts."""
    lines: list[Iterable[Any]] = [table.columns, ["---"] * len(table.columns)]
    lines += table.itertuples(index=False)
    return "\n".join(f"| {' | '.join(map(shown, line))} |" for line in lines) + "\n"


def shown(value: Any) -> str:
    """A cell."""
    if not isinstance(value, float):
        return re.sub(r"(?<!\\)\*", r"\\*", str(value))  # K-FAC* begins no emphasis
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    if value == round(value) and abs(value) < 1e7:
        return f"{value:.0f}"
    if 100 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.2g}" if 0.1 <= abs(value) < 100 else f"{value:.1e}"
