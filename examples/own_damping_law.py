"""A damping law of your own: Nielsen's (1999), which is smooth in the decrease ratio."""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save

import kfac_pinn as kp


def nielsen(damping: float, ratio: float) -> float:
    """lambda max(1/3, 1 - (2 rho - 1)^3); doubled after a failure, which is what NaN counts as."""
    return damping * max(1 / 3, 1 - (2 * ratio - 1) ** 3) if ratio > 0 else 2 * damping


def main(steps: int = 100, out: Out = Path("figures/own_damping_law.png")) -> None:
    """Poisson's equation on the square, with the default law and with this one."""
    torch.set_default_dtype(torch.float64)
    errors = {}
    for name, law in {"default": kp.Marquardt(), "nielsen": nielsen}.items():
        torch.manual_seed(0)
        model, bar = kp.MLP((2, 32, 32, 1)), [kp.Progress()]
        optimizer = kp.KFACPINN(model.parameters(), law=law)
        history = kp.fit(model, kp.poisson_2d(), optimizer, steps=steps, every=5, callbacks=bar)
        errors[name] = history.column("relative_l2")
    save(out, curves("relative L2 error", "steps", history.column("step"), **errors))
    print("relative L2 errors: " + ", ".join(f"{k} {v[-1]:.1e}" for k, v in errors.items()))


if __name__ == "__main__":
    typer.run(main)
