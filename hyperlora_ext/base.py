"""The network that a family is adapted from, and the task it is trained on by default.

u = pretrain(MLP((2, 32, 32, 1)), family, steps=60)   # the middle task; warns if it is not solved
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import nn

from hyperlora_ext.base_check import warn_unsolved
from hyperlora_ext.family import FAMILY, Family
from hyperlora_ext.schedules import RunArguments, Train, suited
from hyperlora_ext.task_spaces import Task
from kfac_pinn.settings import FUNCTION, MODULE, optional, takes

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["pretrain"]

Network = TypeVar("Network", bound=nn.Module)


@takes(network=MODULE, family=FAMILY, train=optional(FUNCTION))
def pretrain(
    network: Network,
    family: Family,
    task: Task | None = None,
    train: Train | None = None,
    **run: Unpack[RunArguments],
) -> Network:
    """The network itself, trained on one task of the family: the base of its adapters.

    Args:
        network: of d inputs.
        task: (p,); by default the middle of the range (`family.space.middle`), the nearest to all.
        train: the schedule, on the conditions' own points by default: Levenberg-Marquardt where a
            dense solve is cheap, else KFACPINN (`suited`).
        run: what bounds it, `steps=60` (the default) or `seconds=20`; `seed`, `callbacks`.

    Raises:
        ValueError: for a task of the wrong size. Warns where the task is not solved after that.
    """
    problem = family.problem(family.space.middle() if task is None else task)
    if run.get("steps") is None and run.get("seconds") is None:
        run["steps"] = 60
    (train or suited(network, problem))(network, problem, **run)
    warn_unsolved(network, problem, run.get("seed", 0))
    return network
