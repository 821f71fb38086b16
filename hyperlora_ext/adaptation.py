"""Low-rank adapters on every linear layer of a module.

v = adapt(u, rank=4)            # u is untouched; v(x) == u(x) until A and B are trained
w = merge(v)                    # plain layers again
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hyperlora_ext.base_check import PROBLEM, warn_unsolved
from hyperlora_ext.directions import towards
from hyperlora_ext.lora import LoRALinear, start_of
from hyperlora_ext.ranks import Ranks, ranks_for
from hyperlora_ext.rewiring import rewired
from kfac_pinn.pinn.problem import Problem
from kfac_pinn.settings import FLAG, MODULE, TENSOR, named, optional, shown, takes

__all__ = ["adapt"]


def is_aim(name: str, value: Any) -> None:
    """A problem, or rows by the layer's name."""
    if not (value is None or isinstance(value, (Problem, Mapping))):
        raise TypeError(
            f"{name} must be a Problem, e.g. family.problem(task), or rows of A by the layer's "
            f"name, found {shown(value)}"
        )
    if isinstance(value, Mapping):
        named(TENSOR)(name, value)


@takes(model=MODULE, aimed=is_aim, bias=FLAG, cap=FLAG, solves=optional(PROBLEM))
def adapt(
    model: nn.Module,
    rank: Ranks = 4,
    *,
    aimed: Problem | Mapping[str, Tensor] | None = None,
    bias: bool = False,
    cap: bool = True,
    solves: Problem | None = None,
) -> nn.Module:
    """A copy of the model with an adapter on every linear layer; everything else is shared.

    B = 0, so the copy starts as the model. Only adapters are trained: `optimizer(v.parameters())`.

    Args:
        model: any module; the layers must be called as modules. Classes that derive from nn.Linear
            with a forward of their own are not linear layers, and stay as they are.
        rank: of every layer, or by the layer's name (layers not named get none).
        aimed: a problem along whose full Gauss-Newton step A starts, or rows (>= r, d_in) of A by
            the layer's name; N(0, 1 / d_in) otherwise. The step is that of all weights on few
            points, and does not depend on a seed. On Kovasznay flow the error after four seconds is
            that of the better ones of several random A.
        bias: also train the biases.
        cap: use at most min(d_in, d_out) in a layer; the paper does not, and trains redundant
            factors in the first and last layer.
        solves: the problem that the model was trained on, if it is to be checked: a warning with
            the numbers says where its held-out loss there is poor.

    Raises:
        ValueError: for a model without linear layers, or with adapters already; a rank that is no
            whole number, below one or above every layer's, or by name above its own layer's; or a
            layer that shares a Parameter with another module.
        RuntimeError: when the model uses the weight of a layer otherwise than by calling it.
    """
    ranks = ranks_for(model, rank, cap)
    if solves is not None:
        warn_unsolved(model, solves)
    rows = towards(aimed, model) if isinstance(aimed, Problem) else aimed or {}

    def adapter(name: str, linear: nn.Linear) -> nn.Module:
        return LoRALinear(linear, start_of(linear, ranks[name], rows.get(name)), bias=bias)

    return rewired(model, ranks, adapter)
