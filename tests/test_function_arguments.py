"""Every public function looks at its arguments: one table over functions and arguments.

As in `test_setting_values.py` for classes: what an argument may be is read off its annotation.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hyperlora_ext
import kfac_pinn
from hyperlora_ext import problems as families
from hyperlora_ext import schedules
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP, Ball, Box, Problem, Term, TimeSpace
from kfac_pinn.pinn.problems import PROBLEMS
from kfac_pinn.settings import POSITIVE, RANGE, takes
from kfac_pinn.taylor_mode.rule_table import RULES

SPACE = hyperlora_ext.Interval(1.0, 2.0)
BOX, ROAD = Box.cube(2), TimeSpace(0.0, 2.0, Box((0.0,), (1.0,)))


def network(*widths: int) -> MLP:
    torch.manual_seed(0)
    return MLP(widths or (2, 4, 1))


def values(u: Any, x: Tensor, *task: Tensor) -> Any:
    return u(x)


U, X = network(), torch.rand(6, 2, generator=torch.Generator().manual_seed(0))
TERMS = {"interior": Term(ROAD.interior, values, 20), "initial": Term(ROAD.initial, values, 5)}
PROBLEM = Problem("p", ROAD, TERMS)
FAMILY = hyperlora_ext.Family(
    "f",
    BOX,
    SPACE,
    {"pde": hyperlora_ext.Condition(BOX.interior, values, 5)},
    lambda x, task: 1 + x[:, :1],
    X,
)
HYPER = hyperlora_ext.HyperLoRA(U, SPACE, 1, hidden=(3,))
ADAPTED = hyperlora_ext.adapt(U, 1)
TASKS = torch.tensor([[1.5]])


def kept(u: Any, problem: Problem) -> None:
    """Trains nothing."""


def of(model: nn.Module) -> Callable[[], Tensor]:
    return lambda: model(X)


# Called with these, a function does what it is for. Arguments that have a default follow.
GIVEN: dict[str, tuple[Any, ...]] = {
    "adapt": (U, 1),
    "averaged": (HYPER.pinn, families.reflection()),
    "bilaplacian": (U, X),
    "by_residual": (X, X[:, 0], 2),
    "calibrate": (HYPER, FAMILY, TASKS, 0),
    "cole_hopf": (X, 0.1),
    "corrected": (network(), network(2, 3, 1), of),
    "divergence": (network(2, 3, 2), X),
    "early": (kfac_pinn.uniform, ROAD),
    "gauss_legendre": (4, 0.0, 1.0),
    "gradient": (U, X),
    "grow": (U, FAMILY.problem(1.5), LevenbergSchedule(), 0.0),
    "heat": (1, lambda x: x[:, :1], (5, 5)),
    "hessian": (U, X),
    "homogeneous": (U, X, {(0, 0): 1.0}),
    "hutchinson_laplacian": (U, X),
    "in_front": (torch.rand(5, 3), torch.tensor([1e-3])),
    "interface": (BOX,),
    "laplacian": (U, X),
    "linearize": (of(U), list(U.parameters())),
    "march": (U, PROBLEM, 2, kept),
    "merge": (ADAPTED,),
    "neumann": (BOX,),
    "parametric": (FAMILY,),
    "partial": (U, X, (0,)),
    "periodic": (0, 1.0),
    "periodic_trapezoid": (4, 1.0),
    "poisson": (1, torch.sin, torch.sin, (5, 5)),
    "pretrain": (network(), FAMILY),
    "relative_l2": (U, U, X),
    "robin": (BOX, 1.0, 1.0),
    "root_mean_square_error": (U, U, X),
    "solve": (HYPER, FAMILY, 1.5, 0.0, 1),
    "solve_burgers": (torch.zeros(1, 128), 0.01, 128, 4),
    "solve_transport": (torch.sin, torch.ones(1, 3), 32, 4),
    "slope": (network(2, 3, 1),),
    "stochastic_bilaplacian": (U, X),
    "subsampled_laplacian": (U, X, 1),
    "suited": (U, FAMILY.problem(1.5)),
    "taylor": (U, X),
    "transport": ((1.0, 2.0),),
    "wall_distance": (BOX,),
    "window": (PROBLEM, (0.0, 1.0)),
}
METHODS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "Ball.interior": (Ball((0.0, 0.0)).interior, (5,)),
    "Box.boundary": (BOX.boundary, (5,)),
    "Box.cube": (Box.cube, (2,)),
    "Box.face": (BOX.face, (0, 0)),
    "Box.interior.where": (BOX.interior.where, (lambda x: x[:, 0] > 0,)),
    "Family.errors": (FAMILY.errors, (HYPER.pinn, TASKS)),
    "Family.near": (FAMILY.near, (1.5, 0.5)),
    "Family.problem": (FAMILY.problem, (1.5,)),
    "Family.reference": (FAMILY.reference, (1.5,)),
    "Family.sample": (FAMILY.sample, (TASKS,)),
    "Family.splits": (FAMILY.splits, ()),
    "GaussianField.sample": (hyperlora_ext.GaussianField().sample, (3,)),
    "HyperLoRA.factors": (HYPER.factors, (TASKS,)),
    "HyperLoRA.numbers": (HYPER.numbers, (HYPER.pinn(1.5),)),
    "HyperLoRA.pinn": (HYPER.pinn, (1.5,)),
    "Interval.nodes": (SPACE.nodes, (3,)),
    "Interval.outside": (SPACE.outside, (3,)),
    "Interval.sample": (SPACE.sample, (3,)),
    "LevenbergSchedule": (LevenbergSchedule(), (U, FAMILY.problem(1.5))),
    "Problem.held_out": (PROBLEM.held_out, ()),
    "Problem.sample": (PROBLEM.sample, ()),
    "TaskProblem.sample": (hyperlora_ext.TaskProblem(FAMILY, 2).sample, ()),
    "TimeSpace.initial": (ROAD.initial, (5,)),
}
FURTHER: dict[str, dict[str, Any]] = {"LevenbergSchedule": {"steps": 0}}

# Fills are called by samplers, `step_function` with jets, too; `fit` has tests of its own; a
# closure's output is told by its residuals' names; the others stand at the end.
ELSEWHERE = {"uniform", "sobol", "grid", "fit", "load", "save", "total_loss"}
ELSEWHERE |= {"rule", "elementwise", "linear", "by_autograd", "together", "step_function"}

ANY = {"weights", "dtype", "device", "published", "run", "x", "domain", "closure", "task", "tasks"}
# Values that the annotation would refuse, and that are right.
RIGHT: dict[str, list[Any]] = {
    "adapt.rank": [1],
    "linearize.check": [True],
    "window.initial": ["1"],
    "window.velocity": ["1"],
    "march.initial": ["1"],
    "march.velocity": ["1"],
}
SIGNED = {"seed", "axis", "lower", "upper", "period", "guess", "speed", "rate", "k", "square"}
ZERO = {"power", "tolerance", "target", "steps", "end", "coordinate", "order", "n", "noise"}
THINGS = [object(), b"1", 1j, nn.Tanh]


def functions() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """All with arguments: the public ones, the problems, and some methods."""
    for module in (kfac_pinn, hyperlora_ext, families, schedules):
        for name in module.__all__:
            made = getattr(module, name)
            if inspect.isfunction(made) and name not in ELSEWHERE:
                yield name, made, GIVEN.get(name, ())
    for name, build in PROBLEMS.items():
        if inspect.isfunction(build):  # variants are partial
            yield name, build, ()
    for name, (method, given) in METHODS.items():
        yield name, method, given


def arguments() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...], inspect.Parameter]]:
    for name, function, given in functions():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name not in ANY:
                yield name, function, given, parameter


def wrong(name: str, parameter: inspect.Parameter) -> list[Any]:
    """What is no value of an argument, by its annotation."""
    place, annotation = f"{name}.{parameter.name}", str(parameter.annotation)
    kinds, found = set(re.split(r" \| ", annotation)), list[Any](THINGS)
    if "None" not in kinds and parameter.default is not None:
        found.append(None)
    if "str" not in kinds:
        found.append("1")
    if kinds & {"int", "float"} or annotation == "Value":
        found += [True, math.nan, math.inf, [1.0]]
        signed = annotation == "Value" or parameter.name in SIGNED
        found += [] if signed else [-1]
        found += [] if signed or parameter.name in ZERO else [0]
        if "int" in kinds and "float" not in kinds:
            found.append(1.5)
    else:
        found += [-1, 0, math.nan] + [True] * ("bool" not in kinds)
    right = RIGHT.get(place, [])
    return [v for v in found if not any(type(v) is type(r) and v == r for r in right)]


CASES = list(arguments())


@pytest.mark.parametrize(
    ("name", "function", "given", "parameter"), CASES, ids=[f"{c[0]}.{c[3].name}" for c in CASES]
)
def test_a_function_refuses_what_is_no_value(
    name: str, function: Callable[..., Any], given: tuple[Any, ...], parameter: inspect.Parameter
) -> None:
    names = list(inspect.signature(function).parameters)
    good = {**dict(zip(names, given, strict=False)), **FURTHER.get(name, {})}
    for value in wrong(name, parameter):
        with pytest.raises((TypeError, ValueError)) as error:
            function(**{**good, parameter.name: value})
        text = str(error.value)
        assert parameter.name in text, (value, text)
        told = [repr(value), str(value), getattr(value, "__name__", "?"), type(value).__name__]
        assert any(each in text for each in told), (value, text)


NAMED = {name: (function, given) for name, function, given in functions()}


@pytest.mark.parametrize("name", [name for name in NAMED if name in {**GIVEN, **METHODS}])
@pytest.mark.filterwarnings("ignore")
def test_what_the_others_are_given_is_right(name: str) -> None:
    """Else it is not the one value that is refused above."""
    function, given = NAMED[name]
    function(*given, **FURTHER.get(name, {}))


FIXED = [kfac_pinn.rule, kfac_pinn.elementwise, kfac_pinn.linear, kfac_pinn.by_autograd]


@pytest.mark.parametrize("wrong", [None, "torch.sin", 1.0, [torch.sin]])
@pytest.mark.parametrize("function", [*FIXED, kfac_pinn.together], ids=lambda f: f.__name__)
def test_several_functions_are_functions(function: Callable[..., Any], wrong: Any) -> None:
    """Named before a rule is registered, which would hold for all."""
    before = dict(RULES)
    with pytest.raises(TypeError, match=re.escape(repr(wrong))):
        function(torch.sin, wrong)
    assert before == RULES


@pytest.mark.parametrize(
    ("wrong", "told"), [(None, "None"), (1, "1"), (b"file", "b'file'"), (nn.Tanh, "class Tanh")]
)
@pytest.mark.parametrize("function", [hyperlora_ext.save, hyperlora_ext.load])
def test_files_have_models_and_paths(function: Any, wrong: Any, told: str) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__}: model .*{told}"):
        function(wrong, "file")
    with pytest.raises(TypeError, match=f"{function.__name__}: path .*{told}"):
        function(ADAPTED, wrong)


def test_arguments_are_found_by_place_and_by_name() -> None:
    @takes(b=POSITIVE, c=RANGE)
    def function(a: float, b: float = 1.0, *, c: tuple[float, float] = (1.0, 2.0)) -> float:
        """Of three."""
        return a + b + sum(c)

    assert function(1.0) == function(1.0, 1.0, c=(1.0, 2.0)) == function(a=1.0, b=1.0) == 5.0
    assert function.__doc__ == "Of three." and "c" in inspect.signature(function).parameters
    for call in (lambda: function(1.0, -1.0), lambda: function(1.0, b=-1.0)):
        with pytest.raises(ValueError, match=r"function: b must be positive \(b > 0\), found -1.0"):
            call()
    with pytest.raises(ValueError, match=r"c must be \(lower, upper\), the larger one last"):
        function(1.0, c=(2.0, 1.0))
    with pytest.raises(TypeError, match=r"c must be two numbers \(lower, upper\), found 3"):
        function(1.0, c=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        function(b=1.0)  # type: ignore[call-arg]
