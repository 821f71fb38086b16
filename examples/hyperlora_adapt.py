"""Adapt a pretrained PINN to a new task: Kovasznay flow from Re 40 to Re 60. About two minutes.

python examples/hyperlora_adapt.py
"""

from pathlib import Path

import torch
import typer
from drawing import Out, field, save

import hyperlora_ext as hl
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP, Progress


def main(
    seconds: float = 90.0, adapting: float = 5.0, out: Out = Path("figures/hyperlora_adapt.png")
) -> None:
    """Train at Re 40, adapt to Re 60; the factors alone are saved beside the picture."""
    torch.manual_seed(0)
    family, Re40, Re60 = kovasznay(), torch.tensor([40.0]), torch.tensor([60.0])
    train = LevenbergSchedule(
        {"interior": 300, "boundary": 100}, {"interior": 1000, "boundary": 200}, start=0.25
    )
    u = MLP((2, 64, 64, 64, 64, 64, 3)).double()
    train(u, family.problem(Re40), seconds=seconds, callbacks=[Progress()])
    v = hl.adapt(u, rank=4, aimed=family.problem(Re60))  # u is untouched, its tensors are shared
    train(v, family.problem(Re60), seconds=adapting, callbacks=[Progress()])

    found = {"W0 as it is": u, "LoRA, rank 4": v}
    errors = {name: (w(family.grid) - family.reference(Re60))[:, :1] for name, w in found.items()}
    panels = [
        field(f"log10 error, {name}", family.grid, error.abs().clamp(min=1e-16).log10())
        for name, error in errors.items()
    ]
    save(out, *panels)
    hl.save(v, out.with_suffix(".lora"))  # 20 kB
    before, after = (float(family.errors(lambda task, w=w: w, Re60).relative) for w in (u, v))
    print(f"at Re 60: relative L2 error {before:.1e} as it is, {after:.1e} adapted")


if __name__ == "__main__":
    typer.run(main)
