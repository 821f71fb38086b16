"""An activation of your own, twice.

    python examples/own_activation.py

Made of functions that jets know, it needs nothing: any module will do. A torch function that they
do not know needs its derivatives, once: here the normal distribution function `torch.special.ndtr`.
"""

import torch
import typer
from torch import Tensor, nn

from kfac_pinn import KFACPINN
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import poisson_2d
from kfac_pinn.pinn.training import fit
from kfac_pinn.taylor_mode.rules import elementwise


class Wavelet(nn.Module):
    """exp(-v^2 / 2) sin(omega v) with a frequency that is trained along."""

    def __init__(self) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.ones(()))

    def forward(self, v: Tensor) -> Tensor:
        return torch.exp(-v * v / 2) * torch.sin(self.omega * v)


@elementwise(torch.special.ndtr)
def ndtr_derivatives(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    """The density phi(v) times Hermite polynomials: Phi^(k) = (-1)^(k-1) He_(k-1)(v) phi(v)."""
    density = torch.exp(-v * v / 2) / (2 * torch.pi) ** 0.5
    he = [torch.ones_like(v), -v]  # (-1)^k He_k, He_(k+1) = v He_k - k He_(k-1)
    for k in range(1, order):
        he.append(-v * he[k] - k * he[k - 1])
    return [density * polynomial for polynomial in he[:order]]


def main(steps: int = 200) -> None:
    """Poisson's equation with both."""
    torch.set_default_dtype(torch.float64)
    activations = {"wavelet": Wavelet(), "normal distribution": torch.special.ndtr}
    for name, activation in activations.items():
        torch.manual_seed(0)
        model = MLP((2, 32, 32, 1), activation)
        optimizer = KFACPINN(model.parameters())
        history = fit(model, poisson_2d(), optimizer, steps=steps, every=50)
        print(f"{name}: relative L2 error {history.last['relative_l2']:.1e}")


if __name__ == "__main__":
    typer.run(main)
