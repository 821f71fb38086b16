"""What `fit` is given by mistake: an error that says what was found and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from kfac_pinn import KFAC, KFACPINN
from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.networks import MLP
from kfac_pinn.pinn.problem import Problem, Term
from kfac_pinn.pinn.problems import heat_4d, poisson_2d
from kfac_pinn.pinn.training import (
    Callback,
    Checkpoint,
    Every,
    Fixed,
    Progress,
    Schedule,
    StopAtError,
    StopAtLoss,
    fit,
)

SMALL = Fixed({"interior": 12, "boundary": 8})


def model_of(*sizes: int) -> MLP:
    return MLP(sizes or (2, 4, 1)).double()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def run(**given: Any) -> Any:
    """A run of two steps, with some arguments replaced."""
    model = given.pop("model", None) or model_of()
    optimizer = given.pop("optimizer", adam)
    if optimizer is adam:
        optimizer = adam(model if isinstance(model, nn.Module) else model_of())
    problem = given.pop("problem", poisson_2d())
    return fit(model, problem, optimizer, **{"steps": 2, "sampling": SMALL, **given})


BOX = Box.cube(2)
MODEL = model_of()
EMPTY = Problem("nothing", BOX, {})
OTHER = Schedule(torch.optim.lr_scheduler.ExponentialLR(adam(model_of()), 0.9))

WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "optimizer's class": (
        TypeError,
        r"optimizer .* the class KFACPINN: make an instance, KFACPINN\(model.parameters\(\)\)",
        lambda: run(optimizer=KFACPINN),
    ),
    "torch optimizer's class": (
        TypeError,
        r"the class Adam: .* Adam\(model.parameters\(\)\)",
        lambda: run(optimizer=torch.optim.Adam),
    ),
    "optimizer's name": (
        TypeError,
        r"found a str; write KFACPINN\(model.parameters\(\)\)",
        lambda: run(optimizer="adam"),
    ),
    "no optimizer": (TypeError, "optimizer must be .* NoneType", lambda: run(optimizer=None)),
    "problem's function": (
        TypeError,
        r"problem must be a Problem, found the function poisson_2d; write .*poisson_2d\(\)",
        lambda: run(problem=poisson_2d),
    ),
    "problem's class": (
        TypeError,
        r"the class Problem: make an instance, Problem\(\.\.\.\)",
        lambda: run(problem=Problem),
    ),
    "a closure for a problem": (
        TypeError,
        "problem must be a Problem, found the function",
        lambda: run(problem=lambda: MODEL(torch.rand(3, 2))),
    ),
    "model's class": (
        TypeError,
        r"the class MLP: make an instance, MLP\(\.\.\.\)",
        lambda: run(model=MLP),
    ),
    "a function for a model": (
        TypeError,
        "model must be a torch.nn.Module, found the function",
        lambda: run(model=lambda x: x),
    ),
    "parameters for a model": (
        TypeError,
        "model must be .* found a generator",
        lambda: run(model=MODEL.parameters()),
    ),
    "another order": (
        TypeError,
        r"problem must be a Problem, found a Adam; the order is fit\(model, problem, optimizer",
        lambda: fit(MODEL, adam(MODEL), poisson_2d(), steps=1),  # type: ignore[arg-type]
    ),
    "the problem first": (
        TypeError,
        "model must be .* found a Problem; the order is",
        lambda: fit(poisson_2d(), MODEL, adam(MODEL), steps=1),  # type: ignore[arg-type]
    ),
    "another model's optimizer": (
        ValueError,
        r"the KFAC trains no parameter of this model.*: write KFAC\(model.parameters\(\)\)",
        lambda: run(optimizer=KFAC(model_of().parameters())),
    ),
    "no parameters": (
        ValueError,
        "a Tanh, has no parameters",
        lambda: run(model=nn.Tanh(), optimizer=adam(MODEL)),
    ),
    "no terms": (ValueError, "'nothing' has no terms", lambda: run(problem=EMPTY)),
    "another dimension": (
        ValueError,
        r"does not take the points of the problem '4d heat|does not take .* shape \(N, 5\)",
        lambda: run(problem=heat_4d(), sampling=None),
    ),
    "another dtype": (
        ValueError,
        r"does not take the points .* torch.float32: .*",
        lambda: run(model=nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1).double())),
    ),
    "an unknown term": (
        KeyError,
        r"has terms \['interior', 'boundary'\], not \['interor'\]",
        lambda: run(sampling=Fixed({"interor": 9})),
    ),
    "no end": (ValueError, "fit has no end", lambda: run(steps=None)),
    "no end but a bar": (
        ValueError,
        "fit has no end",
        lambda: run(steps=None, callbacks=[Progress(), Checkpoint("run.pt")]),
    ),
    "steps as text": (TypeError, "steps must be a number, found '9'", lambda: run(steps="9")),
    "negative steps": (ValueError, "steps must not be negative, found -1", lambda: run(steps=-1)),
    "negative seconds": (ValueError, "seconds must not be neg", lambda: run(seconds=-0.5)),
    "seconds that are none": (ValueError, "seconds .* nan", lambda: run(seconds=float("nan"))),
    "every as text": (TypeError, "every must be a number", lambda: run(every="step")),
    "no period": (ValueError, "every must be at least 1 step, found 0", lambda: run(every=0)),
    "a number for a sampling": (
        TypeError,
        r"sampling must be Fixed\(\), Every\(100\) .*, found 100",
        lambda: run(sampling=100),
    ),
    "sampling's class": (
        TypeError,
        "sampling must be .*, found Every",
        lambda: run(sampling=Every),
    ),
    "one callback": (
        TypeError,
        r"callbacks must be a list, found Progress: callbacks=\[",
        lambda: run(callbacks=Progress()),
    ),
    "callback's class": (
        TypeError,
        r"holds the class StopAtError: write StopAtError\(\.\.\.\)",
        lambda: run(callbacks=[StopAtError]),
    ),
    "a scheduler": (
        TypeError,
        r"holds a ExponentialLR: write Schedule\(scheduler\)",
        lambda: run(callbacks=[torch.optim.lr_scheduler.ExponentialLR(adam(MODEL), 0.9)]),
    ),
    "a function for a callback": (
        TypeError,
        "holds builtin_function_or_method: derive it from Callback",
        lambda: run(callbacks=[print]),
    ),
    "another optimizer's schedule": (
        ValueError,
        "the ExponentialLR was made for another optimizer than the Adam of this run",
        lambda: run(callbacks=[OTHER]),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name: str) -> None:
    error, says, call = WRONG[name]
    with pytest.raises(error, match=f"(?s){says}"):
        call()


def test_what_is_unusual_and_right() -> None:
    """Further parameters, steps as a float, callbacks in a tuple, a callback that ends the run."""
    coefficient = nn.Parameter(torch.ones((), dtype=torch.float64))
    term = Term(BOX.interior, lambda u, x: coefficient * u(x) - 1, 9)
    model = model_of()
    optimizer = torch.optim.SGD([*model.parameters(), coefficient], lr=0.1)
    fit(model, Problem("mine", BOX, {"all": term}), optimizer, steps=2e0, callbacks=(Callback(),))  # type: ignore[arg-type]
    assert coefficient.item() != 1
    assert run(steps=None, callbacks=[StopAtError(float("inf"))]).last["step"] == 1
    assert run(steps=None, callbacks=[StopAtLoss(float("inf"))]).last["step"] == 1
    assert run(steps=0).last["step"] == 0


def test_parameters_left_out_are_named() -> None:
    model = model_of()
    with pytest.warns(UserWarning, match=r"does not train 1 of .* \(layers.1.bias, ") as said:
        run(model=model, optimizer=torch.optim.SGD(list(model.parameters())[:-1], lr=0.1))
    assert said[0].filename == __file__
    model.layers[1].bias.requires_grad_(False)
    run(model=model, optimizer=torch.optim.SGD(list(model.parameters())[:-1], lr=0.1))


def test_a_plateau_is_told_the_loss() -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, eps=0)
    run(model=model, optimizer=optimizer, steps=5, callbacks=[Schedule(plateau)])
    assert optimizer.param_groups[0]["lr"] < 1e-30
