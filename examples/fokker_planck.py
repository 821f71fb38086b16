"""The logarithmic Fokker-Planck equation in nine dimensions of space.

    python examples/fokker_planck.py

Solved for q = log p, which is smooth where p spans forty orders of magnitude. The squared gradient
makes the equation nonlinear; new points are drawn every ten steps.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save

from kfac_pinn import KFACPINN, MLP, Every, Progress, fit, fokker_planck


def main(
    seconds: float = 60.0,
    points: int = 1000,
    seed: int = 0,
    out: Out = Path("figures/fokker_planck.png"),
) -> None:
    """Train and report the error, relative and absolute."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    model = MLP((10, 48, 48, 1))
    history = fit(
        model,
        fokker_planck(9),
        KFACPINN(model.parameters()),
        seconds=seconds,
        every=20,
        seed=seed,
        sampling=Every(10, {"interior": points, "initial": points // 3}),
        callbacks=[Progress()],
    )
    lines = {name: history.column(name) for name in ("relative_l2", "loss", "held_out_loss")}
    save(out, curves("training", "seconds", history.column("seconds"), **lines))
    last = history.last
    print(f"relative L2 error {last['relative_l2']:.1e}, absolute RMS {last['rms']:.1e}")


if __name__ == "__main__":
    typer.run(main)
