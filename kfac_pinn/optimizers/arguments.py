"""What may be handed to an optimizer: numbers in their range, and names that it knows.

An argument that would be ignored is refused, with what to write instead.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from kfac_pinn import settings
from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.processes import ALONE, Group, Processes
from kfac_pinn.search.one_evaluation import OneEvaluation
from kfac_pinn.settings import BELOW_ONE, NOT_NEGATIVE, POSITIVE, having

__all__ = [
    "PART",
    "PARTS",
    "Common",
    "check_group",
    "check_parts",
    "checked",
    "grouped",
    "natural_lr",
    "only_unseen",
    "refuse_unknown",
]


class Common(TypedDict, total=False):
    """What every optimizer takes besides its own arguments.

    Attributes:
        weight_decay: w >= 0, adds w/2 ||theta||^2 to the loss, exactly; may differ by group.
        max_iter: steps in one call of `step(closure)`, at most, as in `torch.optim.LBFGS`.
        check: when the Jacobian is compared with autograd's: True, at every step; False, never; by
            default in the steps 1, 2, 4, 8, ... and every hundredth (`CheckSchedule()`).
        processes: that train together, each on its points (`Processes()`); None: this one alone.
    """

    weight_decay: float
    max_iter: int
    check: bool | CheckSchedule
    processes: Processes | None


NUMBERS = {  # of a parameter group
    "lr": POSITIVE,
    "damping": NOT_NEGATIVE,
    "momentum": BELOW_ONE,
    "weight_decay": NOT_NEGATIVE,
}

# Parts of optimizers: the method that is called, and an example.
PARTS = {
    "search": ("__call__", "Armijo()"),
    "law": ("__call__", "Marquardt()"),
    "factors": ("measure", "Factors()"),
    "compression": ("__call__", "Sketch()"),
    "control": ("__call__", "RatioControl()"),
    "schedule": ("following", "TargetSchedule()"),
    "gramian": ("factor", "PerLayer()"),
    "kernel": ("factor", "NystromKernel()"),
    "curvature": ("product", "GGN()"),
    "update": ("weights", "SSBroyden()"),
    "solver": ("solve", "TruncatedCG()"),
    "acceleration": ("__call__", "Geodesic()"),
    "exact": ("__call__", "Affordable()"),
    "held_out": ("__call__", "lambda: model(x) - y"),
}
PART = {name: having(*method_and_example) for name, method_and_example in PARTS.items()}

# What other optimizers take: what to write here.
ADVICE: dict[str, str] = {
    "betas": "the step is solved for, not averaged from gradients; leave it out",
    "eps": "what it stands for is called damping, where there is one to be chosen",
    "damping": "the damping follows from what each step achieves; leave it out",
    "momentum": "take KFAC(momentum=...) or SPRING(momentum=...), or leave it out",
    "search": "the step length is part of the method; leave it out",
    "nesterov": "leave it out",
    "dampening": "leave it out",
    "amsgrad": "leave it out",
    "maximize": "a sum of squares can only be minimised; leave it out",
    "foreach": "all parameters move together anyway; leave it out",
    "fused": "all parameters move together anyway; leave it out",
    "capturable": "a step depends on values, which a CUDA graph cannot; leave it out",
    "differentiable": "a step cannot be differentiated; leave it out",
    "max_eval": "max_iter=... bounds the steps of one call; leave it out",
    "tolerance_grad": "stop by the loss that step returns, or by optimizer.stats",
    "tolerance_change": "stop by the loss that step returns, or by optimizer.stats",
    "history_size": "KFACPINN(memory=...) is the nearest to it; leave it out",
    "line_search_fn": "pass an object where there is a search=..., e.g. search=Armijo()",
}
# Entries that torch's schedulers and averages keep in a group.
SCHEDULED = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}


def check_group(
    owner: type, group: Mapping[str, Any], defaults: Mapping[str, Any], positive: Collection[str]
) -> None:
    """A parameter group holds numbers in their range, and none that the optimizer would ignore.

    Raises:
        TypeError, ValueError: naming the entry, or a parameter that is held twice.
    """
    for key in NUMBERS.keys() & defaults.keys():
        rule = POSITIVE if key in positive else NUMBERS[key]
        rule(f"{owner.__name__}: {key}", group[key])
    known = {"params", "param_names", *defaults, *SCHEDULED}
    for key, value in group.items():  # text is somebody's label; a number is meant to count
        if key not in known and (key in ADVICE or isinstance(value, (numbers.Number, tuple))):
            raise TypeError(f"a parameter group has {key!r}, but {unknown(owner, key)}")
    if len({id(p) for p in group["params"]}) < len(group["params"]):
        raise ValueError("a parameter group holds a parameter twice; pass each once")


def refuse_unknown(owner: type, names: Mapping[str, Any]) -> None:
    """Raise `TypeError` for the first argument that no optimizer here has."""
    for name in names:
        raise TypeError(unknown(owner, name))


def unknown(owner: type, name: str) -> str:
    """That there is no such argument, what to do, and which there are."""
    # From the signature, so that the list of arguments is never out of date
    own = inspect.signature(owner).parameters.values()
    arguments = ", ".join([p.name for p in own if p.kind is not p.VAR_KEYWORD][1:])
    common = ", ".join(Common.__annotations__)
    advice = f" ({ADVICE[name]})" if name in ADVICE else ""
    return f"{owner.__name__} has no {name}{advice}. Its arguments are {arguments}, {common}"


def check_parts(optimizer: Any, *names: str) -> None:
    """The named parts of an optimizer can do what it will ask of them.

    Raises:
        TypeError: for a class instead of its instance, a name, a number, and the like.
    """
    settings.check(optimizer, **{name: PART[name] for name in names})


def only_unseen(owner: type, search: Any) -> None:
    """Raise `TypeError` for a search that an optimizer would ignore, finding the length itself."""
    if not (search is None or isinstance(search, OneEvaluation)):
        raise TypeError(
            f"{owner.__name__} finds by itself how long a step is, and evaluates the loss for it: "
            f"search=OneEvaluation() stops that, any other is to be left out, found {search!r}"
        )


def checked(value: Any) -> bool | CheckSchedule:
    """When to compare the Jacobian with autograd's."""
    if isinstance(value, (bool, CheckSchedule)):
        return value
    raise TypeError(f"check is True, False or a CheckSchedule, found {value!r}")


def grouped(value: Any) -> Group:
    """Who trains together."""
    if value is None:
        return ALONE
    if isinstance(value, Processes):
        return value
    raise TypeError(
        f"processes is Processes(), of kfac_pinn, or None, found {value!r}: a group of "
        "torch.distributed is its argument, Processes(group)"
    )


def natural_lr(owner: type) -> Any:
    """The default lr of an optimizer, None where it has none."""
    parameter = inspect.signature(owner).parameters.get("lr")
    return None if parameter is None else parameter.default
