"""What `fit` was given by mistake: each an error that says what was found and what to write."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kfac_pinn.notices import outside
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.pinn.training.run import Budget, Callback, Run

__all__ = ["check_arguments", "check_budget", "check_points"]

_ORDER = "fit(model, problem, optimizer, steps=...)"


def check_arguments(model: Any, problem: Any, optimizer: Any) -> None:
    """The three arguments of `fit` are what they should be, and belong together.

    Raises:
        TypeError: for a class instead of its instance, a function instead of what it returns, or
            another order.
        ValueError: for a problem without terms, a model without parameters, or an optimizer of
            another model's.
    """
    _is(model, nn.Module, "model", "a torch.nn.Module", "MLP((2, 16, 1))")
    _is(problem, Problem, "problem", "a Problem", "poisson_2d()")
    _is(optimizer, Optimizer, "optimizer", "an optimizer", "KFACPINN(model.parameters())")
    if not problem.terms and type(problem).sample is Problem.sample:  # others draw without terms
        raise ValueError(f"the problem '{problem.name}' has no terms: there is nothing to solve")
    own = {id(p): name for name, p in model.named_parameters()}
    if not own:
        raise ValueError(f"the model, a {_name(model)}, has no parameters: nothing can be trained")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not trained & own.keys():
        raise ValueError(
            f"the {_name(optimizer)} trains no parameter of this model, but those of another one "
            f"(or of a copy): write {_name(optimizer)}(model.parameters())"
        )
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if left := [own[i] for i in own if i in trainable - trained]:
        warnings.warn(
            f"the optimizer does not train {len(left)} of the model's parameters ({left[0]}, ...); "
            "if that is meant, requires_grad_(False) says so",
            stacklevel=outside(),
        )


def check_budget(budget: Budget, every: Any, sampling: Any, callbacks: Any) -> None:
    """The run has an end, and what surrounds the steps is of the right kind.

    Raises:
        TypeError: for a budget that is no number, a sampling that cannot be called, or a callback
            that is none.
        ValueError: for a negative budget, `every` below one, or a run without an end.
    """
    for name, value in (("steps", budget.steps), ("seconds", budget.seconds), ("every", every)):
        if value is not None and not _number(value):
            raise TypeError(f"{name} must be a number, found {value!r}")
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must not be negative, found {value}")
    if every is None or every < 1:
        raise ValueError(f"every must be at least 1 step, found {every}")
    if isinstance(sampling, type) or not (sampling is None or callable(sampling)):
        found = sampling.__name__ if isinstance(sampling, type) else repr(sampling)
        raise TypeError(
            f"sampling must be Fixed(), Every(100) or a function like them, found {found}"
        )
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a list, found {_name(callbacks)}: callbacks=[...]")
    for callback in callbacks:
        _check_callback(callback)
    if budget == Budget() and not any(callback.ends for callback in callbacks):
        raise ValueError("fit has no end: give steps, seconds or a callback that stops")


def check_points(run: Run) -> None:
    """The model takes the points of the problem.

    Raises:
        ValueError: if it does not.
    """
    points = run.places[:1]
    try:
        with torch.no_grad():
            run.problem.value(run.model, points)
    except RuntimeError as error:
        raise ValueError(
            f"the model does not take the points of the problem '{run.problem.name}', which have "
            f"shape (N, {points.shape[1]}) and {points.dtype}: {error}"
        ) from error


def _check_callback(callback: Any) -> None:
    if isinstance(callback, type):
        raise TypeError(f"callbacks holds the class {callback.__name__}: write {_call(callback)}")
    if isinstance(callback, LRScheduler):
        raise TypeError(f"callbacks holds a {_name(callback)}: write Schedule(scheduler)")
    if not isinstance(callback, Callback):
        raise TypeError(
            f"callbacks holds {_name(callback)}: derive it from Callback, and override on_step"
        )


def _is(value: Any, kind: type, role: str, noun: str, example: str) -> None:
    if isinstance(value, kind):
        return
    if isinstance(value, type):
        found = f"the class {value.__name__}: make an instance, {_call(value)}"
    elif isinstance(value, FunctionType):
        found = f"the function {value.__name__}; write what it returns, {value.__name__}()"
    elif isinstance(value, (nn.Module, Problem, Optimizer)):
        found = f"a {_name(value)}; the order is {_ORDER}"
    else:
        found = f"a {_name(value)}; write {example}"
    raise TypeError(f"fit: the {role} must be {noun}, found {found}")


def _call(kind: type) -> str:
    """How an instance is made."""
    arguments = "model.parameters()" if issubclass(kind, Optimizer) else "..."
    return f"{kind.__name__}({arguments})"


def _name(value: Any) -> str:
    return type(value).__name__


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
