"""The gallery of the documentation: every example run as it stands, its picture and its verdict.

    python examples/reproduce/gallery.py                  # all of them, a quarter of an hour
    python examples/reproduce/gallery.py --only poisson --only heat

Pictures go to docs/figures/gallery, verdicts to results/gallery.json, and both to docs/gallery.md.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from benchmark_step import versions
from rich.progress import track

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOLVED = (
    *("poisson", "heat", "burgers", "fokker_planck", "inverse_heat", "deep_ritz", "second_stage"),
)
INTEGRALS = ("integral_fokker_planck", "integral_volterra", "integral_boundary")
OWN = ("own_problem", "own_operator", "own_activation", "own_damping_law", "own_optimizer")
FAMILIES = ("hyperlora_adapt", "hyperlora_family", "hyperlora_own_family")
SECTIONS = {
    "Equations": SOLVED,
    "Integral equations": INTEGRALS,
    "Of your own": OWN,
    "Families of equations": FAMILIES,
}
OPENING = """# Gallery

Every picture is what one script of `examples/` draws, and the line below it what it prints last.
`python examples/reproduce/gallery.py` runs them all again.
"""


def title(name: str) -> str:
    """The first sentence of a script's docstring."""
    text = ast.get_docstring(ast.parse((ROOT / "examples" / f"{name}.py").read_text())) or name
    return text.splitlines()[0]


def verdict(name: str, picture: Path) -> str:
    """Run an example, and return the last line that it printed beside that on its picture."""
    command = [sys.executable, f"examples/{name}.py", "--out", str(picture)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return [line for line in said if not line.startswith("picture:")][-1]


def page(verdicts: dict[str, str]) -> str:
    """The page of all that have run."""
    parts = [OPENING]
    for section, names in SECTIONS.items():
        parts.append(f"## {section}\n")
        for name in names:
            if name in verdicts:
                parts.append(
                    f"**{title(name)}** `python examples/{name}.py`\n\n"
                    f"![{title(name)}](figures/gallery/{name}.png)\n\n{verdicts[name]}\n"
                )
    return "\n".join(parts)


def main(
    only: Annotated[list[str], typer.Option(help="Names of examples; else all.")] = [],  # noqa: B006
    docs: Annotated[Path, typer.Option(help="Where the page and its pictures go.")] = ROOT / "docs",
    results: Annotated[Path, typer.Option(help="Folder of the result file.")] = HERE / "results",
) -> None:
    """Run examples one after the other, and write the page anew after each."""
    file = results / "gallery.json"
    verdicts = json.loads(file.read_text())["verdicts"] if file.exists() else {}
    chosen = [name for names in SECTIONS.values() for name in names if not only or name in only]
    (docs / "figures" / "gallery").mkdir(parents=True, exist_ok=True)
    for name in track(chosen, description="examples"):
        with TemporaryDirectory() as folder:  # some store more beside their picture
            drawn = Path(folder) / f"{name}.png"
            verdicts[name] = verdict(name, drawn)
            shutil.copy(drawn, docs / "figures" / "gallery")
        found = {"verdicts": verdicts, **versions(__file__)}
        file.write_text(json.dumps(found, indent=2) + "\n")
        (docs / "gallery.md").write_text(page(verdicts))


if __name__ == "__main__":
    typer.run(main)
