"""The heat equation in four dimensions of space, u_t = 1/4 Laplace u, with `fit`.

python examples/heat.py
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save
from matplotlib.axes import Axes

from kfac_pinn import KFACPINN, MLP, Progress, fit, heat_4d


def main(seconds: float = 60.0, seed: int = 0, out: Out = Path("figures/heat.png")) -> None:
    """Train, then say how far the network is from u* = exp(-t) sum_i sin(2 x_i)."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    problem, model = heat_4d(), MLP((5, 24, 24, 1))
    optimizer = KFACPINN(model.parameters())
    callbacks = [Progress()]
    history = fit(
        model, problem, optimizer, seconds=seconds, every=20, seed=seed, callbacks=callbacks
    )

    def along_a_diagonal(axis: Axes) -> None:
        """Draw u and u* at x = (s, s, s, s), at three times."""
        s = torch.linspace(0, 1, 101)
        for t in (0.0, 0.5, 1.0):
            x = torch.stack([torch.full_like(s, t), s, s, s, s], 1)
            axis.plot(s, model(x).detach(), label=f"t = {t}")
            axis.plot(s, problem.solution(x), "k:", linewidth=1)
        axis.set(title="u at (s, s, s, s); dotted: u*", xlabel="s")
        axis.legend()

    times, errors = history.column("seconds"), history.column("relative_l2")
    error = curves("on held-out points", "seconds", times, relative_L2_error=errors)
    save(out, along_a_diagonal, error)
    last = history.last
    print(f"relative L2 error {last['relative_l2']:.1e} on held-out points, {last['step']} steps")


if __name__ == "__main__":
    typer.run(main)
