"""What a setting may be: who takes it says so in a line, and refuses the rest.

    settings.check(self, c=INSIDE, factor=INSIDE, trials=whole(1))      # a class, of its attributes
    @takes(steps=whole(0), tolerance=NOT_NEGATIVE)                      # a function

A `Rule` is told what a setting is called, "Armijo: c", and its value, and raises: `TypeError` for
another kind of thing, `ValueError` for one that is out of range. The error names what was found and
what is allowed.
"""

from __future__ import annotations

import inspect
import math
import numbers
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import wraps
from sys import float_info
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = [
    "ANY_SIZE",
    "BELOW_ONE",
    "FINITE",
    "FLAG",
    "FUNCTION",
    "GENERATOR",
    "INSIDE",
    "INTEGER",
    "MODULE",
    "NAMES",
    "NOT_NEGATIVE",
    "NOT_ZERO",
    "POSITIVE",
    "RANGE",
    "SHARE",
    "SIZES",
    "TENSOR",
    "TEXT",
    "VALUE",
    "WIDTHS",
    "Rule",
    "accept",
    "at_least",
    "check",
    "having",
    "increasing",
    "instance",
    "is_count",
    "many",
    "named",
    "optional",
    "shown",
    "takes",
    "whole",
    "whole_number",
]

Rule: TypeAlias = Callable[[str, Any], None]
Given = ParamSpec("Given")
Returned = TypeVar("Returned")


FINE = float_info.max  # the largest number that is finite


def check(owner: object, /, **rules: Rule) -> None:
    """Every setting of an object, an attribute, keeps the rule that is given under its name.

    Args:
        owner: whose class the error names.
        rules: by the name of the attribute.

    Raises:
        TypeError, ValueError: for the first that does not.
    """
    for name, rule in rules.items():
        rule(f"{type(owner).__name__}: {name}", getattr(owner, name))


def takes(**rules: Rule) -> Callable[[Callable[Given, Returned]], Callable[Given, Returned]]:
    """A function, or method, whose arguments keep the rules that are given under their names.

    What is not given is not looked at: defaults are right.
    """

    def decorate(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
        called = function.__qualname__.removesuffix(".__call__")
        places = list(inspect.signature(function).parameters)
        looked = [
            (places.index(name), name, f"{called}: {name}", rule) for name, rule in rules.items()
        ]

        @wraps(function)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
            for place, name, title, rule in looked:
                if place < len(args):
                    rule(title, args[place])
                elif name in kwargs:
                    rule(title, kwargs[name])
            return function(*args, **kwargs)

        return checked

    return decorate


def number(holds: Callable[[float], bool], words: str, sign: str = "", most: float = FINE) -> Rule:
    """A number, finite unless `most` is more, for which something holds.

    Args:
        holds: of the number.
        words: that say so, after its name.
        sign: the same as a formula, after its name.
        most: inf where it may be infinite.
    """

    def rule(name: str, value: Any) -> None:
        scalar = isinstance(value, Tensor) and value.ndim == 0
        # bool is a number to Python, and lr=True a mistake
        if isinstance(value, bool) or not (scalar or isinstance(value, numbers.Real)):
            raise TypeError(f"{name} must be a number, found {value!r}{as_number(value)}")
        if not (holds(float(value)) and float(value) <= most):
            formula = f" ({name.rpartition(' ')[2]} {sign})" if sign else ""
            raise ValueError(f"{name} {words}{formula}, found {value}")

    return rule


def as_number(value: Any) -> str:
    """What to write for a number given as text."""
    try:
        return f"; write {float(value)}" if isinstance(value, str) else ""
    except ValueError:
        return ""


FINITE = number(math.isfinite, "must be finite")
POSITIVE = number(lambda value: value > 0, "must be positive", "> 0")
NOT_ZERO = number(lambda value: value != 0, "must not be zero", "!= 0")
NOT_NEGATIVE = number(lambda value: value >= 0, "must not be negative", ">= 0")
ANY_SIZE = number(lambda value: value >= 0, "must not be negative", ">= 0", math.inf)
BELOW_ONE = number(lambda value: 0 <= value < 1, "must be in [0, 1)")
SHARE = number(lambda value: 0 <= value <= 1, "must be in [0, 1]")
INSIDE = number(lambda value: 0 < value < 1, "must be in (0, 1)")


def at_least(least: float) -> Rule:
    """A number that is not below another."""
    return number(lambda value: value >= least, f"must be at least {least:g}")


def whole_number(name: str, value: Any, least: int | None = 1) -> int:
    """The value, a whole number that is not below the least.

    Args:
        name: what it is called.
        value: of any kind.
        least: None where there is none.

    Raises:
        TypeError, ValueError: if it is none, or smaller.
    """
    must = "must be a whole number" + ("" if least is None else f", at least {least}")
    try:
        # Also those of NumPy and torch, and no 4.0
        found = operator.index(value)
    except (TypeError, RuntimeError):
        found = None
    if found is None or isinstance(value, bool):
        raise TypeError(f"{name} {must}, found {shown(value)}")
    if least is not None and found < least:
        raise ValueError(f"{name} {must}, found {shown(value)}")
    return found


def is_count(value: Any) -> bool:
    """Whether it is 1, 2, 3, ..."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def whole(least: int | None) -> Rule:
    """A whole number that is not below the least."""

    def rule(name: str, value: Any) -> None:
        whole_number(name, value, least)

    return rule


INTEGER = whole(None)


def instance(kinds: type | tuple[type, ...], noun: str) -> Rule:
    """An object of a class; `noun` says of which, and how one is made."""

    def rule(name: str, value: Any) -> None:
        refuse_class(name, value, noun)
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {noun}, found {shown(value)}")

    return rule


def having(method: str, example: str) -> Rule:
    """An object that has a method; `example` says how one is made."""

    def rule(name: str, value: Any) -> None:
        refuse_class(name, value, example)
        if not callable(getattr(value, method, None)):
            raise TypeError(f"{name} must be an object, e.g. {example}, found {shown(value)}")

    return rule


def refuse_class(name: str, value: Any, example: str) -> None:
    """Raise `TypeError` for a class where its instance is meant."""
    if isinstance(value, type):
        raise TypeError(f"{name} is the class {value.__name__}: write {example}")


def shown(value: Any) -> str:
    """A value in an error: short, however large it is."""
    if isinstance(value, Tensor):
        return f"{value}" if value.ndim == 0 else f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def function(name: str, value: Any) -> None:
    """A function, or an object that is called as one; a class is taken for a mistake."""
    if isinstance(value, type):
        title = value.__name__
        raise TypeError(f"{name} is the class {title}: pass an instance, {title}()")
    if not callable(value):
        raise TypeError(f"{name} must be a function, found {shown(value)}")


FUNCTION: Rule = function


def accept(name: str, value: Any) -> None:
    """Anything: others look at it."""


FLAG = instance(bool, "True or False")
TEXT = instance(str, "a text")
TENSOR = instance(Tensor, "a tensor")
GENERATOR = instance(torch.Generator, "a torch.Generator, Generator().manual_seed(0)")
MODULE = instance(torch.nn.Module, "a torch.nn.Module, e.g. MLP((2, 16, 1))")


def optional(rule: Rule) -> Rule:
    """None, or what keeps the rule."""
    return lambda name, value: None if value is None else rule(name, value)


def many(rule: Rule, fewest: int = 1, noun: str = "a sequence") -> Rule:
    """A sequence, of so many at least, each of which keeps the rule."""

    def sequence(name: str, value: Any) -> None:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
            raise TypeError(f"{name} must be {noun}, found {shown(value)}")
        if len(value) < fewest:
            raise ValueError(f"{name} must hold {fewest} at least, found {value!r}")
        for index, each in enumerate(value):
            rule(f"{name}[{index}]", each)

    return sequence


def named(rule: Rule) -> Rule:
    """A mapping from names to what keeps the rule."""

    def mapping(name: str, value: Any) -> None:
        if not isinstance(value, Mapping) or not are_names(value):
            raise TypeError(f"{name} must be a dict by names, found {shown(value)}")
        for key, each in value.items():
            rule(f"{name}[{key!r}]", each)

    return mapping


def are_names(values: Iterable[Any]) -> bool:
    """Whether all of them are texts."""
    return all(isinstance(value, str) for value in values)


def value(name: str, found: Any) -> None:
    """What is given at points: a number, a tensor, or a function of them."""
    if not (isinstance(found, Tensor) or (callable(found) and not isinstance(found, type))):
        if isinstance(found, bool) or not isinstance(found, numbers.Real):
            raise TypeError(
                f"{name} must be a number, a tensor or a function of the points, found "
                f"{shown(found)}{as_number(found)}"
            )
        FINITE(name, found)


VALUE: Rule = value


def increasing(rule: Rule) -> Rule:
    """Two numbers (lower, upper) that keep the rule, the larger one last."""

    def pair(name: str, found: Any) -> None:
        if isinstance(found, (str, bytes)) or not isinstance(found, Sequence) or len(found) != 2:
            raise TypeError(f"{name} must be two numbers (lower, upper), found {shown(found)}")
        for index, each in enumerate(found):
            rule(f"{name}[{index}]", each)
        if not found[0] < found[1]:
            raise ValueError(f"{name} must be (lower, upper), the larger one last, found {found}")

    return pair


RANGE = increasing(POSITIVE)
NAMES = many(TEXT, 0, "a list of names, ['interior']")
SIZES = optional(named(whole(1)))


def widths(name: str, value: Any) -> None:
    """Sizes of a network, one tuple."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} is one tuple, (d_in, hidden ..., d_out), not {shown(value)}")
    if len(value) < 2:
        raise ValueError(f"{name} must be (d_in, ..., d_out), at least two, found {value}")
    if not all(isinstance(size, int) and size > 0 for size in value):
        raise ValueError(f"{name} must be positive integers, found {value}")


WIDTHS: Rule = widths
