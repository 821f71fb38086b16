"""PINA on Lightning: its LabelTensors, unknowns that arrive as a late group, checkpoints."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import body
from torch.optim import Optimizer

from kfac_pinn import KFACPINN, Affordable, GaussNewton, OneEvaluation

pina = body("pina_poisson")

Adam = torch.optim.Adam


def test_poisson_ends_below_adam() -> None:
    truncated = {"exact": Affordable(0)}  # exact steps need more than twenty
    assert pina.solve(KFACPINN, 20, **truncated) < pina.solve(Adam, 200, lr=1e-3) / 10


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_a_late_unknown_is_found(kind: type[Optimizer]) -> None:
    assert pina.identify(kind, 30) < 5e-2


def run(problem: Any, kind: type[Optimizer], steps: int, resume: Path | None = None) -> Any:
    """A solver after so many epochs, with a checkpoint of each epoch."""
    pina.lightning.seed_everything(0)
    every = pina.lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=f"of_{steps}", filename="{epoch}", save_top_k=-1
    )
    solver = pina.solver(problem, kind)
    trainer = pina.train(solver, steps, enable_checkpointing=True, callbacks=[every])
    trainer.train(ckpt_path=resume)
    return solver


@pytest.mark.parametrize("kind", [KFACPINN, GaussNewton])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(kind: type[Optimizer]) -> None:
    whole = run(pina.Poisson(), kind, 6)
    resumed = run(pina.Poisson(), kind, 7, resume=Path("of_6/epoch=3.ckpt"))
    at_six = torch.load("of_7/epoch=5.ckpt", weights_only=False)["state_dict"]
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(at_six[name], expected, rtol=0, atol=0)
    assert resumed.optimizer.instance.stats["loss"] > 0


def test_a_checkpoint_of_a_late_group_fits_the_next_run() -> None:
    run(pina.UnknownCentre(), KFACPINN, 3)
    resumed = run(pina.UnknownCentre(), KFACPINN, 5, resume=Path("of_3/epoch=2.ckpt"))
    assert [len(g["params"]) for g in resumed.optimizer.instance.param_groups] == [8, 2]


def test_the_losses_that_pina_logs_are_those_of_the_last_evaluation() -> None:
    pina.lightning.seed_everything(0)
    solver = pina.solver(pina.Poisson(), KFACPINN)
    trainer = pina.train(solver, 5)
    trainer.train()
    terms = [v for k, v in trainer.logged_metrics.items() if k != "train_loss"]
    torch.testing.assert_close(sum(terms), trainer.logged_metrics["train_loss"])


WEIGHTINGS: dict[str, Any] = {
    "scalar": lambda w: w.ScalarWeighting(dict.fromkeys(pina.SIDES, 10.0)),
    "linear": lambda w: w.LinearWeighting(
        dict.fromkeys(["inside", *pina.SIDES], 1.0),
        {"inside": 1.0, **dict.fromkeys(pina.SIDES, 10.0)},
        target_epoch=10,
    ),
    "tangent kernel": lambda w: w.NeuralTangentKernelWeighting(alpha=0.9),
    "self-adaptive": lambda w: w.SelfAdaptiveWeighting(),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings_of_the_losses(name: str) -> None:
    """Those that follow the gradients change at every evaluation: one a step."""
    pina.lightning.seed_everything(0)
    problem = pina.Poisson()
    problem.discretise_domain(8, "grid", domains=["inside", *pina.SIDES])
    solver = pina.PINN(
        problem,
        pina.FeedForward(2, 1, layers=[10, 10], func=torch.nn.Tanh),
        optimizer=pina.TorchOptimizer(KFACPINN, search=OneEvaluation()),
        weighting=WEIGHTINGS[name](importlib.import_module("pina.weighting")),
    )
    before = pina.error(solver)
    pina.train(solver, 15).train()
    assert pina.error(solver) < before / 2


def operator_error(kind: type[Optimizer], epochs: int, **settings: Any) -> float:
    """Mean square of a Fourier neural operator that learns the shift of a function."""
    pina.lightning.seed_everything(0)
    model, zoo = importlib.import_module("pina.model"), importlib.import_module("pina.problem.zoo")
    solver = importlib.import_module("pina.solver").SupervisedSolver
    given = torch.randn(20, 32, 1).cumsum(1) / 10
    wanted = given.roll(1, 1)
    operator = model.FNO(
        lifting_net=torch.nn.Linear(1, 6),
        projecting_net=torch.nn.Linear(6, 1),
        n_modes=6,
        dimensions=1,
        inner_size=6,
        n_layers=2,
    )
    assert any(p.is_complex() for p in operator.parameters())
    trained = solver(
        problem=zoo.SupervisedProblem(given, wanted),
        model=operator,
        optimizer=pina.TorchOptimizer(kind, **settings),
        use_lt=False,
    )
    pina.train(trained, epochs).train()
    with torch.no_grad():
        return float((trained.forward(given) - wanted).square().mean())


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_a_fourier_neural_operator_with_its_complex_weights() -> None:
    assert operator_error(KFACPINN, 60) < operator_error(Adam, 60, lr=1e-2) / 2
