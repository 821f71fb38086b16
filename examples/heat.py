"""The heat equation in four dimensions of space, u_t = 1/4 Laplace u, with `fit`.

python examples/heat.py
"""

import torch
import typer

from kfac_pinn import KFACPINN
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import heat_4d
from kfac_pinn.pinn.training import Progress, fit


def main(seconds: float = 60.0, seed: int = 0) -> None:
    """Train, then say how far the network is from u* = exp(-t) sum_i sin(2 x_i)."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    model = MLP((5, 24, 24, 1))
    optimizer = KFACPINN(model.parameters())
    history = fit(
        model, heat_4d(), optimizer, seconds=seconds, every=20, seed=seed, callbacks=[Progress()]
    )
    last = history.last
    print(f"{last['step']} steps, held-out relative L2 error {last['relative_l2']:.1e}")


if __name__ == "__main__":
    typer.run(main)
