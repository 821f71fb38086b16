"""An activation of your own, twice.

    python examples/own_activation.py

Made of functions that jets know, it needs nothing: any module will do. A torch function that they
do not know needs its derivatives, once: here the normal distribution function `torch.special.ndtr`.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save
from torch import Tensor, nn

from kfac_pinn import KFACPINN, MLP, Progress, elementwise, fit, poisson_2d


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


def main(steps: int = 200, out: Out = Path("figures/own_activation.png")) -> None:
    """Poisson's equation with both."""
    torch.set_default_dtype(torch.float64)
    activations = {"wavelet": Wavelet(), "normal_distribution": torch.special.ndtr}
    errors = {}
    for name, activation in activations.items():
        torch.manual_seed(0)
        model = MLP((2, 32, 32, 1), activation)
        optimizer, callbacks = KFACPINN(model.parameters()), [Progress()]
        history = fit(model, poisson_2d(), optimizer, steps=steps, every=10, callbacks=callbacks)
        errors[name] = history.column("relative_l2")
    save(out, curves("relative L2 error", "steps", history.column("step"), **errors))
    found = ", ".join(f"{name.replace('_', ' ')} {error[-1]:.1e}" for name, error in errors.items())
    print(f"relative L2 errors: {found}")


if __name__ == "__main__":
    typer.run(main)
