"""The only step loop: linearise, propose, move, write down."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.jacobian.closure import Linearization, linearize
from kfac_pinn.jacobian.losses import Residuals
from kfac_pinn.optimizers.saving import placed, plain, restored
from kfac_pinn.search.step import Objective, Outcome, Step

__all__ = ["LeastSquaresOptimizer", "Parameters"]

JUMP = 100.0  # of the loss between two steps: new points of the same kind change it by less

Parameters: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


class LeastSquaresOptimizer(Optimizer, ABC):
    """An optimizer of L(theta) = sum_k 1/2 mean r_k^2: a subclass says which step it proposes.

    Most are of one of two kinds: a `DirectionOptimizer` (a direction and a search) or a
    `DampedOptimizer` (damped steps and a damping law).

    State is replaced, never changed in place, so that a failed step can be undone. Of a parameter:
    `self.state[p]`, tensors, or dataclasses where `kinds` names their type. Of the whole optimizer:
    `self.memory`, a frozen dataclass. In `state_dict` all of it is plain containers.

    Attributes:
        check: when the Jacobian is compared with autograd's; True: at every step, False: never.
        kinds: the types of those entries of `state[p]` that are no tensors.
        memory: what the optimizer remembers, besides the parameters' state.
        steps: how many steps it has taken.
        stats: of the last step: loss, new_loss, evaluations, step_length, shortened, reason, ...
            The reason is empty unless nothing moved.
    """

    kinds: ClassVar[Mapping[str, Any]] = {}
    memory: Any = None
    _left: float = math.nan  # the loss after the last step
    _noticed: bool = False

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.check: bool | CheckSchedule = CheckSchedule()
        self.steps = 0
        self.stats: dict[str, float | int | str] = {}

    @abstractmethod
    def propose(self, linearization: Linearization, objective: Objective) -> Step:
        """Where to go, how far, and what is predicted; lr is included."""

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
        parameters, before = self.parameters, self._snapshot()
        if not parameters:
            raise ValueError("no parameter requires a gradient: there is nothing to train")
        objective = Objective(closure, parameters, self._names())
        try:
            linearization = self._linearize(closure, parameters)
            objective.gradients = linearization.needs_gradients
            self._notice(linearization)
            step = self.propose(linearization, objective)
            self.steps += 1
            self._move(step, objective)
        except BaseException:
            objective.restore()
            self._rollback(before)
            raise
        if step.displacement is not None and not step.is_finite:
            self._rollback(before)
            step = Step.stay(Outcome.NOT_FINITE, **step.info)
        self._write_down(step, objective, linearization)
        return objective.origin.new_tensor(linearization.loss)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train further parameters, from now on, with hyper-parameters of their own.

        Raises:
            ValueError: if its lr is not positive, or it holds a parameter twice.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            if not group["lr"] > 0:
                raise ValueError(f"lr must be positive, found {group['lr']}")
            if len({id(p) for p in group["params"]}) < len(group["params"]):
                raise ValueError("a parameter group holds a parameter twice; pass each once")
        except ValueError:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """All attributes but hooks and a scheduler's wrapper of `step`, for copies and pickles."""
        left_out = {"step"} | {key for key in vars(self) if key.endswith("_hooks")}
        return {key: value for key, value in vars(self).items() if key not in left_out}

    @property
    def parameters(self) -> list[Tensor]:
        """All trained tensors in the order of the groups: the order of flat vectors."""
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

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

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only: `torch.load(weights_only=True)` reads them."""
        saved = super().state_dict()
        saved["state"] = plain(saved["state"])
        return {**saved, "steps": self.steps, "memory": plain(self.memory)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state exactly: torch would cast every state tensor to its parameter's dtype."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(ids, order, strict=True):
            if i in state_dict["state"]:
                entries = placed(state_dict["state"][i], p.device)
                kinds = {key: self.kinds.get(key) for key in entries}
                self.state[p] = {key: restored(kinds[key], entries[key]) for key in entries}
        self.steps = state_dict["steps"]
        self.memory = restored(type(self.memory), placed(state_dict["memory"], order[0].device))

    def _linearize(
        self, closure: Callable[[], Residuals], parameters: list[Tensor]
    ) -> Linearization:
        """Compared with autograd when `check` says so."""
        return linearize(closure, parameters, self.check, self._names())

    def _names(self) -> list[str]:
        names: list[str] = []
        for group in self.param_groups:
            known = group.get("param_names", [None] * len(group["params"]))
            for name, p in zip(known, group["params"], strict=True):
                if p.requires_grad:
                    names.append(name or f"{len(names)} of shape {tuple(p.shape)}")
        return names

    def _move(self, step: Step, objective: Objective) -> None:
        """Go where the step says, or back to the start."""
        if step.displacement is not None and step.is_finite:
            objective.move(step.displacement)
        else:
            objective.restore()

    def _write_down(self, step: Step, objective: Objective, linearization: Linearization) -> None:
        """The gradient and the statistics of a step."""
        gradient, moved = linearization.gradient, step.displacement is not None
        for p, g in zip(objective.parameters, linearization.unflatten(gradient), strict=True):
            p.grad = g.clone()
        self._left = step.loss if moved else linearization.loss
        self.stats = {
            "loss": linearization.loss,
            "new_loss": self._left,
            "evaluations": objective.evaluations,
            "gradient_norm": float(gradient.norm()),
            "step_norm": 0.0 if step.displacement is None else float(step.displacement.norm()),
            "step_length": step.length if moved else 0.0,
            "shortened": step.shortened,
            "reason": step.outcome.value,
            **step.info,
        }

    def _notice(self, linearization: Linearization) -> None:
        """Say so, once, where the last step fitted its points and the next ones show it."""
        left, found = self._left, linearization.loss
        rounding = torch.finfo(linearization.residual.dtype).eps
        if self._noticed or not left > 0 or not found > max(JUMP * left, rounding):
            return
        self._noticed = True
        warnings.warn(
            f"the last step left a loss of {left:.1e}, this one found {found:.1e}: if the points "
            "are new, the last ones were fitted, not the equation. Draw more of them (now "
            f"{len(linearization.residual)} residuals for {linearization.size} parameters), keep "
            "them for fewer steps, or take a smaller network; hold some out to see the error",
            stacklevel=5,  # the line that calls `step`
        )

    def _snapshot(self) -> Snapshot:
        state = {key: dict(value) for key, value in self.state.items()}
        return Snapshot(
            state, [dict(group) for group in self.param_groups], self.steps, self.memory
        )

    def _rollback(self, before: Snapshot) -> None:
        self.state.clear()
        self.state.update(before.state)
        for group, old in zip(self.param_groups, before.groups, strict=True):
            group.clear()  # settings that were added
            group.update(old)
        self.steps, self.memory = before.steps, before.memory


@dataclass(frozen=True)
class Snapshot:
    """The state of an optimizer before a step."""

    state: dict[Any, Any]
    groups: list[dict[str, Any]]
    steps: int
    memory: Any
