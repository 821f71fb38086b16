"""How a checkout is built: floors, arrows, lines, repetitions, and the way of a closure through it.

    python examples/reproduce/house.py .
    python examples/reproduce/house.py ../old . --out examples/reproduce/results/house.json

A room is a folder of the package; the modules of a flat tree count to the stage they belong to.
The way of a closure is traced in one step of KFACPINN: a move is a call or a return from one room
to another, in each direction counted once; a climb is a move to a higher room.
"""

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

PACKAGES = ("kfac_pinn", "hyperlora_ext")
# From the lowest room to the highest, with the modules that held its stage when the tree was flat.
ROOMS = {
    "linalg": {"linalg"},
    "taylor_mode": {"taylor_mode", "jets", "rules", "operators", "stochastic"},
    "jacobian": {"jacobian", "capture", "jacobians", "leaves", "residuals", "linearization",
                 "linearize", "assembly"},
    "curvature": {"curvature", "factors", "kernels", "compression", "preconditioners"},
    "search": {"search", "trust_region", "geodesic"},
    "optimizers": {"optimizers"},
    "pinn": {"pinn", "domains", "networks", "problem", "problems", "fit"},
}  # fmt: skip
ORDER = list(ROOMS)
ALIKE = 6  # lines: fewer are alike by chance (imports, signatures), more would miss what matters


def sources(root: Path, package: str) -> dict[str, str]:
    """The modules of a package by their path."""
    paths = sorted((root / package).rglob("*.py"))
    return {str(path.relative_to(root)): path.read_text() for path in paths}


def floors(root: Path) -> int:
    """How many floors the test of the architecture holds."""
    tree = ast.parse((root / "tests" / "test_layers.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return len(ast.literal_eval(node.value))
    return 0


def arrows(root: Path) -> int:
    """Pairs of modules of which one imports the other."""
    files = {path for package in PACKAGES for path in sources(root, package)}
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
               for path in files}  # fmt: skip
    found = set()
    for module, path in modules.items():
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [name if name in modules else node.module for name in names]
                found |= {(module, target) for target in targets if target in modules}
    return len(found)


def lines(source: str) -> Counter[str]:
    """Code, comments and docstrings of a module; a comment behind code counts as both."""
    documented = [n for n in ast.walk(ast.parse(source))
                  if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]  # fmt: skip
    strings = [n.body[0] for n in documented if ast.get_docstring(n) is not None]
    docstring = {i for s in strings for i in range(s.lineno, (s.end_lineno or s.lineno) + 1)}
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.string.strip():
            code |= set(range(token.start[0], token.end[0] + 1))
    return Counter(code=len(code - docstring), comment=len(comments), docstring=len(docstring))


def comments(root: Path) -> dict[str, float]:
    """Comments for a hundred lines of code, room by room."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, source in sources(root, "kfac_pinn").items():
        room = room_of(path.removeprefix("kfac_pinn/").removesuffix(".py"))
        found[room] += lines(source)
    return {room: round(100 * found[room]["comment"] / max(1, found[room]["code"]), 1)
            for room in ORDER}  # fmt: skip


def public_names(root: Path, package: str) -> int:
    """What a package lists in `__all__`."""
    for node in ast.parse((root / package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return len(ast.literal_eval(node.value))
    return 0


def bare(source: str) -> list[tuple[int, str]]:
    """The numbered lines of code, without docstrings, comments, imports and lone brackets."""
    tree = ast.parse(source)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        literal = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exported = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if literal or exported or isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    numbered = enumerate(map(str.strip, source.splitlines()), 1)
    return [(i, line) for i, line in numbered
            if i not in left_out and len(line) > 2 and line[0] != "#"]  # fmt: skip


def repetitions(root: Path, folders: tuple[str, ...]) -> list[list[str]]:
    """Pairs of places with six like lines; of a longer stretch, its beginning."""
    places: defaultdict[tuple[str, ...], list[tuple[str, int, int]]] = defaultdict(list)
    for folder in folders:
        for path, source in sources(root, folder).items():
            kept = bare(source)
            for i in range(len(kept) - ALIKE + 1):
                window = kept[i : i + ALIKE]
                places[tuple(line for _, line in window)].append((path, i, window[0][0]))
    alike = {pair for found in places.values() for pair in combinations(found, 2)}
    at = {((a, i), (b, j)) for (a, i, _), (b, j, _) in alike}
    first = [(a, b) for a, b in alike if ((a[0], a[1] - 1), (b[0], b[1] - 1)) not in at]
    return sorted([f"{a}:{i}", f"{b}:{j}"] for (a, _, i), (b, _, j) in first)


class Trace:
    """The rooms that one step of KFACPINN goes through, up to the first `propose` and in all."""

    def __init__(self, root: Path) -> None:
        self.package = str(root.resolve() / "kfac_pinn") + "/"
        self.modules: set[str] = set()
        self.moves: set[tuple[str, str]] = set()
        self.linearised: dict[str, Any] = {}

    def module_of(self, frame: FrameType | None) -> str:
        """The nearest module of the package that a frame stands in or was called from."""
        while frame is not None and not frame.f_code.co_filename.startswith(self.package):
            frame = frame.f_back
        return "" if frame is None else frame.f_code.co_filename[len(self.package) : -3]

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """A profiler: looks at calls into modules of the package, which will return."""
        if event == "call" and frame.f_code.co_filename.startswith(self.package):
            if frame.f_code.co_name == "propose" and not self.linearised:
                self.linearised = self.summary()
            self.modules.add(self.module_of(frame))
            here, there = room_of(self.module_of(frame.f_back)), room_of(self.module_of(frame))
            if here and there and here != there:  # what is below all rooms is in none
                self.moves |= {(here, there), (there, here)}

    def summary(self) -> dict[str, Any]:
        """What was entered so far."""
        climbs = [(a, b) for a, b in self.moves if ORDER.index(a) < ORDER.index(b)]
        rooms = {room for move in self.moves for room in move}
        return {
            "modules": len(self.modules),
            "rooms": len(rooms),
            "moves": len(self.moves),
            "climbs": len(climbs),
            "between": sorted(f"{b} - {a}" for a, b in climbs),
        }


def room_of(module: str) -> str:
    """The room of a module, given by its path in the package."""
    top = module.partition("/")[0]
    return next((room for room, modules in ROOMS.items() if top in modules), "")


def traced(root: Path) -> dict[str, Any]:
    """The third step on residuals by jets, when everything is warm; kfac_pinn is that of `root`."""
    import torch

    from kfac_pinn import KFACPINN, laplacian

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x, wall = torch.rand(30, 2), torch.rand(8, 2)
    optimizer, trace = KFACPINN(model.parameters(), products=10), Trace(root)
    residuals = lambda: (laplacian(model, x) + 1, model(wall))  # noqa: E731
    optimizer.step(residuals)
    optimizer.step(residuals)
    sys.setprofile(trace)
    optimizer.step(residuals)
    sys.setprofile(None)
    return {"to r and J": trace.linearised, "a whole step": trace.summary()}


def measured(root: Path) -> dict[str, Any]:
    """Everything, as plain numbers."""
    script = [sys.executable, str(Path(__file__).resolve()), str(root.resolve()), "--trace-only"]
    trace = subprocess.run(script, cwd=root, env={"PYTHONPATH": str(root.resolve())},
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root,
                            capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    everything = (*PACKAGES, "examples")
    counted = {p: [lines(text) for text in sources(root, p).values()] for p in everything}
    return {
        "commit": commit,
        "floors": floors(root),
        "arrows": arrows(root),
        "public names": {package: public_names(root, package) for package in PACKAGES},
        "lines": {p: dict(sum(each, Counter[str]())) for p, each in counted.items()},
        "comments for a hundred lines of code": comments(root),
        "modules": {p: len(each) for p, each in counted.items()},
        "longest module": max(sum(each.values()) for each in counted["kfac_pinn"]),
        "repetitions": repetitions(root, everything),
        "way of a closure": json.loads(trace),
    }


def main(
    checkouts: list[Path],
    out: Annotated[Path | None, typer.Option(help="a JSON file for the figures")] = None,
    trace_only: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Count each checkout, and print what was found."""
    if trace_only:
        print(json.dumps(traced(checkouts[0])))
        return
    found = [measured(root) for root in checkouts]
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    for each in found:
        print(json.dumps({**each, "repetitions": len(each["repetitions"])}, indent=1))


if __name__ == "__main__":
    typer.run(main)
