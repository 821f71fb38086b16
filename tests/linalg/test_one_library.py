"""All arithmetic goes through torch: two BLAS thread pools in a process spin against each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [p for package in ("kfac_pinn", "hyperlora_ext") for p in (ROOT / package).rglob("*.py")]
OTHERS = {"numpy", "scipy", "pandas", "jax"}

STEPS = """
import sys
sys.modules["numpy"] = sys.modules["scipy"] = None  # any import of them fails, as any `.numpy()`
import torch
import hyperlora_ext
from kfac_pinn import *

torch.set_default_dtype(torch.float64)
x, edge = torch.rand(30, 2), torch.rand(8, 2).round()
for make in (
    KFAC, KFACStar, KFACPINN, GaussNewton, ENGD, SPRING, HessianFree, LevenbergMarquardt,
    lambda p: GaussNewton(p, compression=Sketch(20, hashes=2)),
    lambda p: ENGD(p, gramian=Diagonal()),
    lambda p: SPRING(p, kernel=NystromKernel()),
):
    model = torch.nn.Sequential(torch.nn.Linear(2, 80), torch.nn.Tanh(), torch.nn.Linear(80, 1))
    optimizer = make(model.parameters())
    for _ in range(2):
        optimizer.step(lambda: (laplacian(model, x) + 1, model(edge)))
print("done")
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_imports_another_array_library(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    assert not OTHERS & {name.split(".")[0] for name in names}


def test_every_optimizer_steps_without_numpy():
    command = [sys.executable, "-W", "ignore", "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "done\n", done.stderr
