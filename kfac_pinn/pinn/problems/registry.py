"""All problems by name: a function with `@problem` is found here, in the tests and in the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from kfac_pinn.pinn.problem import Problem

__all__ = ["PROBLEMS", "Build", "problem"]

Build: TypeAlias = Callable[..., Problem]

#: Functions that return a problem, called without arguments, by name.
PROBLEMS: dict[str, Build] = {}


def problem(build: Build) -> Build:
    """Enter a function under its name; variants are entered with `PROBLEMS[name] = ...`."""
    PROBLEMS[build.__name__] = build
    return build
