"""An operator of your own: diffusion in a medium with a grain, sum_ij K_ij d_i d_j u."""

from collections.abc import Callable
from pathlib import Path

import torch
import typer
from drawing import Out, save, training

import kfac_pinn as kp


def diffusion(u: Callable, x: torch.Tensor) -> torch.Tensor:
    """K = L L^T: second derivatives along the columns l of L, sum_l l.H l = trace(L^T H L)."""
    columns = torch.linalg.cholesky(x.new_tensor([[2.0, 1.0], [1.0, 2.0]])).T
    return kp.taylor(u, x, directions=columns, weights=[1.0, 1.0])[-1]


def solution(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(torch.pi * x).prod(-1, keepdim=True)


def main(steps: int = 200, out: Out = Path("figures/own_operator.png")) -> None:
    """Compare it with nested autograd, then solve with it."""
    torch.set_default_dtype(torch.float64)
    box, model = kp.Box.cube(2), kp.MLP((2, 32, 32, 1))
    H = torch.vmap(torch.func.hessian(lambda z: solution(z)[0]))(x := box.interior(900))
    f = 2 * H[:, 0, 0] + 2 * H[:, 0, 1] + 2 * H[:, 1, 1]
    torch.testing.assert_close(diffusion(solution, x)[:, 0], f)
    inside = kp.Term(lambda *_: x, lambda u, x: diffusion(u, x)[:, 0] - f, 900)
    edge = kp.Term(box.boundary, lambda u, x: u(x), 120)
    problem = kp.Problem("diffusion with a grain", box, {"inside": inside, "edge": edge}, solution)
    optimizer, bar = kp.KFACPINN(model.parameters()), [kp.Progress()]
    history = kp.fit(model, problem, optimizer, steps=steps, every=10, callbacks=bar)
    save(out, training(history))
    print(f"relative L2 error {history.last['relative_l2']:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
