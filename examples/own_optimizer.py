"""An optimizer of your own: Levenberg-Marquardt in thirty lines.

    python examples/own_optimizer.py

A subclass of `LeastSquaresOptimizer` says which step to take; linearising the residuals, moving,
statistics and undoing failed steps are the step loop's.
"""

import torch
import typer

from kfac_pinn import Linearization
from kfac_pinn.optimizers.base import LeastSquaresOptimizer, Parameters
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problems import poisson_2d
from kfac_pinn.pinn.training import Progress, fit
from kfac_pinn.search.line import FixedStep, Objective, Step


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


def main(steps: int = 200) -> None:
    """Poisson's equation on the square."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    model = MLP((2, 16, 16, 1))
    optimizer = LevenbergMarquardt(model.parameters())
    progress = [Progress(steps)]
    history = fit(model, poisson_2d(), optimizer, steps=steps, every=50, callbacks=progress)
    print(f"relative L2 error {history.last['relative_l2']:.1e}")


if __name__ == "__main__":
    typer.run(main)
