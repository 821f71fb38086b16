"""Train a hypernetwork over a family, predict, polish: any Reynolds number. About three minutes.

python examples/hyperlora_family.py
"""

from pathlib import Path

import torch
import typer
from drawing import Out, field, save

import hyperlora_ext as hl
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP, Progress


def main(seconds: float = 180.0, out: Out = Path("figures/hyperlora_family.png")) -> None:
    """Half of the seconds for one network at Re 40, half for the hypernetwork."""
    torch.manual_seed(0)
    family, Re40, Re73 = kovasznay(), torch.tensor([40.0]), torch.tensor([73.0])
    few, many = {"interior": 300, "boundary": 100}, {"interior": 1000, "boundary": 200}
    spent = {"seconds": seconds / 2, "callbacks": [Progress()]}
    base = MLP((2, 64, 64, 64, 64, 64, 3)).double()
    LevenbergSchedule(few, many, start=0.25)(base, family.problem(Re40), **spent)

    h = hl.HyperLoRA(base, family.space, rank=4)
    tasks = hl.TaskProblem(family, 20, sizes={"interior": 24, "boundary": 8})  # new ones every time
    LevenbergSchedule(every=10)(h, tasks, **spent)
    v = h.pinn(Re73)  # milliseconds
    solved = hl.solve(h, family, Re73, tolerance=1e-9, steps=5, sizes=few)

    found = {"predicted": v, "polished": solved.model}
    errors = {name: (w(family.grid) - family.reference(Re73))[:, :1] for name, w in found.items()}
    panels = [
        field(f"log10 error, {name}", family.grid, error.abs().clamp(min=1e-16).log10())
        for name, error in errors.items()
    ]
    save(out, *panels)
    print(f"held-out loss {solved.predicted:.1e} predicted, {solved.loss:.1e} polished")
    last = float(family.errors(lambda task: solved.model, Re73).relative)
    print(f"at Re 73: relative L2 error {last:.1e} after {solved.steps} steps of polishing")


if __name__ == "__main__":
    typer.run(main)
