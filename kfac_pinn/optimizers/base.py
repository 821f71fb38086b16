"""The only step loop: linearise, direction, search, state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from kfac_pinn.linearize import Linearization, linearize
from kfac_pinn.residuals import Residuals
from kfac_pinn.search import Objective, Search, Step

__all__ = ["LeastSquaresOptimizer", "Parameters"]

Parameters: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class LeastSquaresOptimizer(Optimizer):
    """An optimizer of L(theta) = sum_k 1/2 mean r_k^2: a direction and a search.

    A subclass says its `direction`; one whose direction and step length depend on each other
    overrides `propose`. State of the whole optimizer lives in `self.common`, state of one
    parameter in `self.state[p]`; both are replaced, never changed in place, so that a failed step
    can be undone.

    Attributes:
        stats: of the last step: loss, new_loss, evaluations, step_length, reason, ...
    """

    def __init__(self, params: Parameters, defaults: dict[str, Any], search: Search) -> None:
        lr = defaults["lr"]
        if not lr > 0:
            raise ValueError(f"lr must be positive, found {lr}")
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self.search = search
        self.stats: dict[str, float | int | str] = {}
        self._checked: frozenset[int] = frozenset()

    @abstractmethod
    def direction(self, linearization: Linearization) -> Tensor:
        """Where to go, shape (P,), before it is scaled by lr and the search."""

    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """The step: the search along the direction, scaled by each group's lr."""
        direction = self.direction(linearization) * self.expand("lr")
        if not torch.isfinite(direction).all():
            return Step(None, info={"reason": "the direction is not finite"})
        return self.search(objective, linearization, direction)

    @torch.no_grad()
    def step(self, closure: Callable[[], Residuals]) -> Tensor:  # type: ignore[override]
        """One step.

        Args:
            closure: takes no arguments and returns the residuals: a tensor (N,) or (N, 1), a tuple
                or a dict of them. It may be called several times, with gradients disabled.

        Returns:
            The loss before the step, a scalar tensor.

        Raises:
            Whatever `linearize` or the closure raises; parameters and state are then as before.
        """
        parameters = self.parameters
        objective, before = Objective(closure, parameters), self._snapshot()
        try:
            linearization = self._linearize(closure, parameters)
            step = self.propose(linearization, objective)
        except BaseException:
            objective.restore()
            self._rollback(before)
            raise
        self._conclude(step, objective, linearization)
        return torch.as_tensor(linearization.loss, dtype=objective.origin.dtype)

    @property
    def parameters(self) -> list[Tensor]:
        """All trained tensors in the order of the groups: the order of flat vectors."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    @property
    def common(self) -> dict[str, Any]:
        """State that belongs to no single parameter."""
        return self.state["common"]  # type: ignore[index]

    def expand(self, key: str) -> Tensor:
        """A hyper-parameter of the groups as a flat vector (P,)."""
        parts = [
            torch.full((p.numel(),), float(group[key]), dtype=p.dtype, device=p.device)
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        return torch.cat(parts)

    def shared(self, key: str) -> float:
        """A hyper-parameter that all groups must agree on.

        Raises:
            ValueError: if they do not.
        """
        values = {float(group[key]) for group in self.param_groups}
        if len(values) > 1:
            raise ValueError(
                f"{type(self).__name__} works with one {key} for all parameters, but the groups "
                f"have {sorted(values)}; set group[{key!r}] to one value"
            )
        return values.pop()

    def gather(self, key: str) -> Tensor:
        """The parameters' state tensors of one name as a flat vector (P,), zero where missing."""
        parts = [self.state[p].get(key) for p in self.parameters]
        pairs = zip(parts, self.parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if s is None else s).reshape(-1) for s, p in pairs])

    def scatter(self, key: str, flat: Tensor) -> None:
        """The reverse of `gather`."""
        parts = flat.split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            self.state[p][key] = part.view_as(p).clone()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state exactly: torch would cast every state tensor to its parameter's dtype."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(ids, order, strict=True):
            if i in state_dict["state"]:
                self.state[p] = placed(state_dict["state"][i], p.device)
        if "common" in state_dict["state"]:
            device = order[0].device
            self.state["common"] = placed(state_dict["state"]["common"], device)  # type: ignore[index]

    def _linearize(
        self, closure: Callable[[], Residuals], parameters: list[Tensor]
    ) -> Linearization:
        """Checked against autograd whenever the set of parameters is new."""
        current = frozenset(id(p) for p in parameters)
        if not parameters:
            raise ValueError("no parameter requires a gradient: there is nothing to train")
        linearization = linearize(closure, parameters, current != self._checked, self._names())
        self._checked = current
        for p, g in zip(parameters, linearization.unflatten(linearization.gradient), strict=True):
            p.grad = g.clone()
        return linearization

    def _names(self) -> list[str]:
        names = []
        for group in self.param_groups:
            known = group.get("param_names", [None] * len(group["params"]))
            for name, p in zip(known, group["params"], strict=True):
                if p.requires_grad:
                    names.append(name or f"{len(names)} of shape {tuple(p.shape)}")
        return names

    def _conclude(self, step: Step, objective: Objective, linearization: Linearization) -> None:
        """Move (or stay), and write down what happened."""
        moved = step.displacement is not None and bool(torch.isfinite(step.displacement).all())
        if moved:
            objective.move(step.displacement)  # type: ignore[arg-type]
        else:
            objective.restore()
            step.info.setdefault("reason", "the step is not finite")
        self.stats = {
            "loss": linearization.loss,
            "new_loss": step.loss if moved else linearization.loss,
            "evaluations": objective.evaluations,
            "gradient_norm": float(linearization.gradient.norm()),
            "step_norm": float(step.displacement.norm()) if moved else 0.0,  # type: ignore[union-attr]
            **step.info,
        }
        self.stats.setdefault("step_length", math.nan if moved else 0.0)
        self.stats.setdefault("reason", "")

    def _snapshot(self) -> tuple[dict[Any, Any], list[dict[str, Any]]]:
        state = {key: dict(value) for key, value in self.state.items()}
        return state, [dict(group) for group in self.param_groups]

    def _rollback(self, before: tuple[dict[Any, Any], list[dict[str, Any]]]) -> None:
        state, groups = before
        self.state.clear()
        self.state.update(state)
        for group, old in zip(self.param_groups, groups, strict=True):
            group.update(old)


def placed(value: Any, device: torch.device) -> Any:
    """A copy of nested state on the device, every dtype as it was saved."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True) if value.ndim else value.clone()
    if isinstance(value, dict):
        return {key: placed(entry, device) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(placed(entry, device) for entry in value)
    return value
