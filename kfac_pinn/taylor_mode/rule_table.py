"""The table of rules: what each torch function does to jets, how it is looked up and filled."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch.overrides import resolve_name

__all__ = [
    "IN_PLACE",
    "OF_VALUES",
    "RULES",
    "apply",
    "check_functions",
    "is_operator",
    "leaves_among",
    "missing",
    "name_of",
    "positional",
    "register",
    "rule",
]

RULES: dict[Any, Callable[..., Any]] = {}  # torch function -> what it does to jets
IN_PLACE: set[Any] = set()  # those among them that change their first argument
OF_VALUES: set[Any] = set()  # rules of functions without derivatives: plain tensors come out
NAMESPACES = (torch, torch.Tensor, F, torch.special, torch.linalg)
Rule = TypeVar("Rule", bound=Callable[..., Any])


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register the decorated function as what the torch `functions` do to jets.

    It takes the arguments of the torch function, at least one of them a `Jet`, and returns jets.
    Functions of the same name in `torch`, `torch.Tensor`, `torch.nn.functional`, `torch.special`
    and `torch.linalg` follow unless they have a rule of their own, and so do the in-place forms.
    """
    check_functions(functions)

    def register(definition: Rule) -> Rule:
        for function in functions:
            RULES[function] = definition
            for namesake in namesakes(function):
                # A function with a rule of its own keeps it, whichever is read first
                RULES.setdefault(namesake, definition)
        return definition

    return register


def check_functions(functions: Any) -> None:
    """What rules are given for."""
    if wrong := [f for f in functions if not callable(f)]:
        raise TypeError(f"rules are given for functions, such as torch.sin, found {wrong[0]!r}")


def register(maker: Callable[[Any], Callable[..., Any]], *functions: Any) -> None:
    """Register rules that call the torch function itself, for it and for its namesakes.

    A namesake is called as it is: it may differ, as `torch.svd` and `torch.linalg.svd` do.
    """
    check_functions(functions)
    for function in functions:
        RULES[function] = maker(function)
        for namesake in namesakes(function):
            own = function if namesake in IN_PLACE else namesake
            RULES.setdefault(namesake, maker(own))


def namesakes(function: Any) -> list[Any]:
    """The same function elsewhere in torch, and its in-place forms."""
    name = getattr(function, "__name__", "?").removeprefix("special_").removeprefix("linalg_")
    same = [getattr(space, name, None) for space in NAMESPACES]
    in_place = [getattr(space, f"{name}_", None) for space in NAMESPACES]
    IN_PLACE.update(each for each in in_place if callable(each))
    return [each for each in same + in_place if callable(each)]


def name_of(function: Any) -> str:
    """As it is written in code."""
    function = getattr(function, "function", function)
    return str(resolve_name(function) or getattr(function, "__name__", function))


def missing(function: Any) -> str:
    """What to write for a function without a rule."""
    if isinstance(function, (torch.ScriptMethod, torch.ScriptFunction)):
        return SCRIPTED
    name = name_of(function)
    short = name.rsplit(".", 1)[-1]
    return f"""{name} has no rule for jets. Add one, in one of four ways:

    from kfac_pinn.taylor_mode.rules import by_autograd, elementwise, linear, rule

    @elementwise({name})  # it acts on each entry: give its derivatives
    def {short}_derivatives(v, y, order):  # y = {short}(v)
        return [...]  # the first, second, ... derivative, `order` tensors like v

    linear({name})  # it is linear in its first argument

    @rule({name})  # anything else, in terms of functions that have rules
    def {short}_of_jets(x):
        return ...

    by_autograd({name})  # it is differentiable `order` times by autograd: slow, but nothing to do
"""


SCRIPTED = (
    "a module or function compiled by torch.jit (scripted or traced) hides its torch functions, so "
    "that jets cannot pass through it: give the operator the original module, laplacian(model, x), "
    "and compile after training, or use torch.compile(model)"
)
OPERANDS = ("input", "other")  # the names of the first one or two arguments in torch
OF_NUMPY = {"axis": "dim", "keepdims": "keepdim"}  # what torch takes for its own names, too


def apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rule; arguments that it does not know are named."""
    definition = RULES[func]
    try:
        return definition(*args, **kwargs)
    except TypeError as error:
        try:
            # A TypeError from within the rule fits the signature, and is passed on as it is
            inspect.signature(definition).bind(*args, **kwargs)
        except TypeError as misfit:
            raise NotImplementedError(
                f"{name_of(func)} on jets: {misfit}. Leave this argument away or write the "
                f"function out; or give it a rule that knows the argument, @rule({name_of(func)})"
            ) from None
        raise error


def is_operator(func: Any) -> bool:
    """y += z: the name y is bound to the result, whatever that is."""
    return str(getattr(func, "__name__", "")).startswith("__i")


def positional(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as rules take them: operands by position, and torch's names for NumPy's."""
    named = {OF_NUMPY.get(key, key): value for key, value in kwargs.items()}
    return (*args, *(named.pop(key) for key in OPERANDS if key in named)), named


def leaves_among(arguments: Any) -> list[Any]:
    """All arguments, those in lists and tuples one by one."""
    flat: list[Any] = []
    for each in arguments:
        if isinstance(each, (list, tuple)):
            flat += leaves_among(each)
        else:
            flat.append(each)
    return flat
