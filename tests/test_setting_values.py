"""Every public class looks at its settings when it is made: one table over classes and arguments.

What an argument may be is read off its annotation, so that a new class, or a new argument of an old
one, is in the table at once; what no annotation says (a bound, say) stands here.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import hyperlora_ext
import kfac_pinn
from hyperlora_ext.near_tasks import Near
from hyperlora_ext.schedules import (
    GaussNewtonSchedule,
    KFACPINNSchedule,
    LevenbergSchedule,
    StochasticSchedule,
)
from kfac_pinn import (
    ENGD,
    KFAC,
    KFACPINN,
    MLP,
    SPRING,
    Armijo,
    Average,
    Box,
    Factors,
    GaussNewton,
    GridSearch,
    HessianFree,
    KFACStar,
    LevenbergMarquardt,
    Marquardt,
    NystromKernel,
    Sketch,
    Term,
    TruncatedCG,
)
from kfac_pinn.linalg import ProgressOfSolve, RelativeProgress, RelativeResidual
from kfac_pinn.search.damping import Towards

OTHERS = [LevenbergSchedule, StochasticSchedule, RelativeProgress, RelativeResidual]
OTHERS += [ProgressOfSolve, Towards, KFACPINNSchedule, GaussNewtonSchedule, Near]

# What the package makes itself and hands to users, or to those who write an optimizer.
MADE = {"Jet", "Linearization", "Objective", "Step", "Outcome", "History", "Run", "Solved"}
MADE |= {"DampedModel"}
MADE |= {"Processes"}  # it needs some: tests/distributed
MADE |= {"Batches"}  # test_batches.py

BOX, SPACE = Box((0.0,), (1.0,)), hyperlora_ext.Interval(0.0, 1.0)


def network() -> nn.Module:
    torch.manual_seed(0)
    return MLP((1, 4, 4, 1))


def residual(u: Any, x: Any, *task: Any) -> Any:
    return u(x)


TERM = Term(BOX.interior, residual, 5)
CONDITION = hyperlora_ext.Condition(BOX.interior, residual, 5)
FAMILY = hyperlora_ext.Family("f", BOX, SPACE, {"pde": CONDITION})
SCHEDULER = torch.optim.lr_scheduler.ConstantLR(torch.optim.Adam(network().parameters()))

# Of the arguments that have no default, in order.
GIVEN: dict[str, tuple[Any, ...]] = {
    "AtTask": (network(), SPACE, torch.zeros(1, 1)),
    "Ball": ((0.0, 0.0),),
    "Batch": ({"pde": TERM}, {"pde": torch.zeros(2, 1)}),
    "Box": ((0.0,), (1.0,)),
    "Calibration": (1.0, 2.0, 16),
    "Checkpoint": ("run.pt",),
    "Condition": (BOX.interior, residual, 5),
    "ConvexLoss": (torch.ones(3), torch.exp),
    "CornerLayers": (kfac_pinn.TimeSpace(0.0, 1.0, BOX), 1.0, [(1, 1)]),
    "Every": (5,),
    "Family": ("f", BOX, SPACE, {"pde": CONDITION}),
    "FourierFeatures": (2, 4),
    "HardConstraint": (network(), torch.zeros_like, torch.ones_like),
    "HyperLoRA": (network(), SPACE),
    "Interval": (0.0, 1.0),
    "Intervals": ((SPACE,),),
    "InverseProblem": ("p", BOX, {"pde": TERM}),
    "LinearMap": (torch.eye(2),),
    "MLP": ((2, 4, 1),),
    "ModifiedMLP": ((2, 4, 1),),
    "Near": (hyperlora_ext.Interval(5.0, 6.0), 5.5, 0.5),
    "Normalized": (BOX,),
    "Patience": (5,),
    "PeriodicFeatures": ((2.0, None),),
    "PirateNet": ((2, 4, 1),),
    "Polygon": ([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)],),
    "Problem": ("p", BOX, {"pde": TERM}),
    "Quadrature": (torch.zeros(3, 1), torch.ones(3)),
    "SIREN": ((2, 4, 1),),
    "Sampler": (torch.clone, 2),
    "TaskFeatures": (SPACE, torch.add),
    "Schedule": (SCHEDULER,),
    "SideBySide": (network(),),
    "Corrected": (network(), network(), 1.0),
    "Symmetry": (torch.neg, torch.neg, torch.neg),
    "StopAtError": (0.1,),
    "StopAtLoss": (0.1,),
    "TaskProblem": (FAMILY,),
    "Term": (BOX.interior, residual, 5),
    "TimeSpace": (0.0, 1.0, BOX),
    "Unknown": (1.0, 0.5),
    "Windows": ([1.0], [network()]),
    "WithDiffusivity": (network(),),
    "WithUnknowns": (network(), {"k": 1.0}),
}

# Values that an annotation would refuse, and that are right; any text is a name.
RIGHT: dict[str, list[Any]] = {
    "Checkpoint.path": ["1"],
    "ConvexLoss.name": ["1"],
    "Family.name": ["1"],
    "Problem.name": ["1"],
    "InverseProblem.name": ["1"],
    "HyperLoRA.rank": [1],
    "StopAtError.target": [math.inf],
    "Affordable.operations": [0, math.inf],
    "StopAtLoss.target": [math.inf],
    "TaskProblem.tasks": [1],
}
SIGNED = {"seed", "low", "start", "end", "guess", "truth", "lower", "upper"}  # may be below zero
ZERO = {"alpha", "decay", "retreats", "shortest", "longest", "expansions", "bisections", "slack"}
ZERO |= {"rounding", "tail", "least", "momentum", "damping", "memory", "tolerance", "power"}
ZERO |= {"coordinates", "margin", "tau", "weight_decay", "target"}
POSITIVE = {"SPRING.damping", "HessianFree.damping", "LevenbergMarquardt.damping"}
POSITIVE |= {"TargetSchedule.low", "TargetSchedule.least", "Towards.target"}
POSITIVE |= {"ProgressOfSolve.least", "RelativeProgress.least", "StochasticSchedule.damping"}
POSITIVE |= {"LevenbergSchedule.start", "WithDiffusivity.start", "DampedOptimizer.start"}

SHARED = {"rank"}  # with `adapt`: the error names the layer

THINGS = [object(), "1", 1j, nn.Tanh]  # nobody's value; the last is a class


def classes() -> Iterator[type]:
    for module in (kfac_pinn, hyperlora_ext):
        yield from (c for name in module.__all__ if inspect.isclass(c := getattr(module, name)))
    yield from OTHERS


def parameters_of(kind: type) -> list[inspect.Parameter]:
    variable = inspect.Parameter.VAR_KEYWORD
    return [p for p in inspect.signature(kind).parameters.values() if p.kind is not variable]


def choices() -> Iterator[tuple[type, inspect.Parameter]]:
    """Every argument of every class that a user makes."""
    for kind in classes():
        written = not (inspect.isabstract(kind) or getattr(kind, "_is_protocol", False))
        if written and kind.__name__ not in MADE:
            yield from ((kind, p) for p in parameters_of(kind) if p.name != "params")


def made(kind: type, name: str | None = None, value: Any = None) -> Any:
    """An object with one setting replaced."""
    wanted = parameters_of(kind)
    given: dict[str, Any] = {}
    if wanted and wanted[0].name == "params":
        given["params"] = network().parameters()
    else:
        required = [p for p in wanted if p.default is p.empty]
        values = GIVEN.get(kind.__name__, ())
        if required and required[0].kind is inspect.Parameter.VAR_POSITIONAL:
            return kind(*(values if name is None else (value,)))
        given = dict(zip([p.name for p in required], values, strict=True))
    return kind(**{**given, **({} if name is None else {name: value})})


def wrong(kind: type, parameter: inspect.Parameter) -> list[Any]:
    """What is no value of an argument, by its annotation."""
    place, annotation = f"{kind.__name__}.{parameter.name}", str(parameter.annotation)
    found: list[Any] = [*THINGS, b"1"]
    kinds = set(re.split(r" \| ", annotation))
    if "None" not in kinds and parameter.default is not None:
        found.append(None)
    if kinds & {"int", "float"}:
        found += [True, math.nan, math.inf, [1.0]]
        if parameter.name not in SIGNED or place in POSITIVE:
            found.append(-1)
        if parameter.name not in ZERO | SIGNED or place in POSITIVE:
            found.append(0)
        if "int" in kinds and "float" not in kinds:
            found.append(1.5)
    else:
        found += [-1, 0, math.nan]
        if "bool" not in kinds:
            found.append(True)
    right = RIGHT.get(place, [])
    return [v for v in found if not any(v is r or (type(v) is type(r) and v == r) for r in right)]


CASES = list(choices())


@pytest.mark.parametrize(
    ("kind", "parameter"), CASES, ids=[f"{kind.__name__}.{p.name}" for kind, p in CASES]
)
def test_a_class_refuses_what_is_no_value(kind: type, parameter: inspect.Parameter) -> None:
    made(kind)  # what is refused below is the one value
    for value in wrong(kind, parameter):
        with pytest.raises((TypeError, ValueError)) as error:
            made(kind, parameter.name, value)
        text = str(error.value)
        assert kind.__name__ in text or parameter.name in SHARED, (value, text)
        assert parameter.name in text, (value, text)
        told = [repr(value), str(value), getattr(value, "__name__", "?")]
        assert any(each in text for each in told), (value, text)


OPTIMIZERS = [ENGD, KFAC, KFACPINN, SPRING, GaussNewton, HessianFree, KFACStar, LevenbergMarquardt]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_all_optimizers_take(kind: Any) -> None:
    for name, values in {
        "weight_decay": [-1.0, math.nan, math.inf, True, "1", None],
        "max_iter": [0, -1, 1.5, True, "1", None],
        "check": [1, "1", None],
        "processes": [0, 1, "1", object()],
    }.items():
        for value in values:
            with pytest.raises((TypeError, ValueError), match=f"{name}.*found"):
                kind(network().parameters(), **{name: value})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Marquardt(low=0.9), "Marquardt: high must be at least 0.9, found 0.75"),
        (lambda: Marquardt(fall=0.5), "Marquardt: fall must be at least 1, found 0.5"),
        (lambda: Sketch(-3), "Sketch: rows must be a whole number, at least 1, found -3"),
        (lambda: Sketch(2, hashes=3), "Sketch: rows must be at least 3, found 2"),
        (lambda: Armijo("0.1"), "Armijo: c must be a number, found '0.1'; write 0.1"),
        (lambda: Armijo(1.0), r"Armijo: c must be in \(0, 1\), found 1.0"),
        (lambda: GridSearch([1.0, -1.0]), r"GridSearch: lengths\[1\] must be positive"),
        (lambda: GridSearch([]), "GridSearch: lengths must hold 1 at least"),
        (lambda: Factors(average=0.9), r"Factors: average must be .* Average\(\), found 0.9"),
        (lambda: Factors(average=Average), r"average is the class Average: write Average\(\)"),
        (lambda: Average(1.0), r"Average: decay must be in \[0, 1\), found 1.0"),
        (
            lambda: NystromKernel(tail=-1),
            r"NystromKernel: tail must not be negative \(tail >= 0\), found -1",
        ),
        (lambda: TruncatedCG(iterations=0), "TruncatedCG: iterations must be a whole number"),
        (lambda: TruncatedCG(stop=[1]), r"TruncatedCG: stop\[0\] must be a function, found 1"),
        (lambda: KFAC(network().parameters(), search=0), r"KFAC: search .*Armijo\(\), found 0"),
        (lambda: KFAC(network().parameters(), factors=0), r"KFAC: factors .*Factors\(\), found 0"),
        (lambda: HessianFree(network().parameters(), law=None), "HessianFree: law must be"),
    ],
)
def test_errors_say_what_is_allowed(make: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        make()


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    assert Armijo(c=np.float64(0.1)).c == 0.1
    assert GridSearch(patience=np.int64(2)).patience == 2
    assert Marquardt(fall=torch.tensor(2.0)).fall == 2


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_custom_part_is_taken(kind: Any) -> None:
    """A part is known by what it can do, not by its class."""
    if "law" in inspect.signature(kind).parameters:
        kind(network().parameters(), law=lambda damping, ratio: damping)
    if "held_out" in inspect.signature(kind).parameters:
        kind(network().parameters(), held_out=lambda: None)
