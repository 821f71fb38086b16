"""An activation of your own, the normal distribution function: its derivatives, said once."""

from pathlib import Path

import torch
import typer
from drawing import Out, save, training
from torch import Tensor

import kfac_pinn as kp


@kp.elementwise(torch.special.ndtr)
def ndtr_derivatives(v: Tensor, y: Tensor, order: int) -> list[Tensor]:
    """The density phi times Hermite polynomials: Phi^(k) = (-1)^(k-1) He_(k-1)(v) phi(v)."""
    phi, he = torch.exp(-v * v / 2) / (2 * torch.pi) ** 0.5, [torch.ones_like(v), -v]
    for k in range(1, order):  # (-1)^k He_k, since He_(k+1) = v He_k - k He_(k-1)
        he.append(-v * he[k] - k * he[k - 1])
    return [phi * polynomial for polynomial in he[:order]]


def main(steps: int = 200, out: Out = Path("figures/own_activation.png")) -> None:
    """Compare the third derivative with nested autograd, then solve Poisson's equation."""
    torch.set_default_dtype(torch.float64)
    z = torch.linspace(-3, 3, 50)[:, None].requires_grad_()
    derivative = torch.special.ndtr(z)
    for _ in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), z, create_graph=True)
    torch.testing.assert_close(kp.partial(torch.special.ndtr, z, (0, 0, 0)), derivative)
    model, bar = kp.MLP((2, 32, 32, 1), torch.special.ndtr), [kp.Progress()]
    optimizer = kp.KFACPINN(model.parameters())
    history = kp.fit(model, kp.poisson_2d(), optimizer, steps=steps, every=10, callbacks=bar)
    save(out, training(history))
    print(f"relative L2 error {history.last['relative_l2']:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
