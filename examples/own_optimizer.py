"""An optimizer of your own: Levenberg-Marquardt in thirty lines.

    python examples/own_optimizer.py

A subclass of `LeastSquaresOptimizer` says which step to take; linearising the residuals, moving,
statistics and undoing failed steps are the step loop's.
"""

from pathlib import Path

import torch
import typer
from drawing import Out, curves, save

from kfac_pinn import (
    MLP,
    FixedStep,
    LeastSquaresOptimizer,
    Linearization,
    Objective,
    Parameters,
    Progress,
    Step,
    fit,
    poisson_2d,
)


class LevenbergMarquardt(LeastSquaresOptimizer):
    """p = -(J^T J + lambda I)^-1 J^T r, lambda a third after a success, doubled after a failure."""

    def __init__(self, params: Parameters, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr}, FixedStep())

    def direction(self, linearization: Linearization) -> torch.Tensor:
        """The damped Gauss-Newton step."""
        gramian = linearization.gramian()
        gramian.diagonal().add_(self.common.setdefault("damping", 1.0))
        return -torch.linalg.solve(gramian, linearization.gradient)

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """Take the step if it decreases the loss, else stay and damp more."""
        step = self.direction(linearization) * self.expand("lr")
        loss, damping = objective(step), self.common["damping"]
        better = loss < linearization.loss
        self.common["damping"] = damping / 3 if better else 2 * damping
        info = {"damping": damping, "reason": "" if better else "the loss would rise"}
        return Step(step if better else None, loss, info)


def main(steps: int = 200, out: Out = Path("figures/own_optimizer.png")) -> None:
    """Poisson's equation on the square."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = MLP((2, 16, 16, 1))
    optimizer = LevenbergMarquardt(model.parameters())
    history = fit(model, poisson_2d(), optimizer, steps=steps, every=10, callbacks=[Progress()])
    lines = {name: history.column(name) for name in ("relative_l2", "loss")}
    save(out, curves("training", "steps", history.column("step"), **lines))
    print(f"relative L2 error {history.last['relative_l2']:.1e} on held-out points")


if __name__ == "__main__":
    typer.run(main)
