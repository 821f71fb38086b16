"""What an optimizer remembers: typed inside, plain in `state_dict`, undone as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kfac_pinn.optimizers.flat import FlatOptimizer
from kfac_pinn.optimizers.precision import Precision
from kfac_pinn.optimizers.saving import placed, plain, refuse_foreign, restored, signature_of
from kfac_pinn.search.one_evaluation import Unseen

__all__ = ["Snapshot", "StatefulOptimizer"]


@dataclass(frozen=True)
class Snapshot:
    """The state of an optimizer before a step."""

    state: dict[Any, Any]
    groups: list[dict[str, Any]]
    steps: int
    memory: Any
    unseen: Unseen


class StatefulOptimizer(FlatOptimizer):
    """State is replaced, never changed in place, so that a failed step can be undone.

    Of a parameter: `self.state[p]`, tensors, or dataclasses where `kinds` names their type. Of the
    whole optimizer: `self.memory`, a frozen dataclass.

    Attributes:
        kinds: the types of those entries of `state[p]` that are no tensors.
        memory: what the optimizer remembers, besides the parameters' state.
        unseen: what is remembered of a step that is still to be judged.
        steps: how many steps it has taken.
    """

    kinds: ClassVar[Mapping[str, Any]] = {}
    memory: Any = None
    unseen = Unseen()
    steps = 0
    _precision: Precision | None = None  # of the last step

    def __getstate__(self) -> dict[str, Any]:
        """All attributes but hooks and a scheduler's wrapper of `step`, for copies and pickles."""
        # Functions of others, which need not be picklable
        hooks = {key for key in self.__dict__ if key.endswith("_hooks")}
        return {key: value for key, value in self.__dict__.items() if key not in hooks | {"step"}}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only: `torch.load(weights_only=True)` reads them."""
        saved = super().state_dict()
        saved["state"] = plain(saved["state"])
        own = {"steps": self.steps, "memory": plain(self.memory), "unseen": plain(self.unseen)}
        return {**saved, **own, **signature_of(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state exactly: torch would cast every state tensor to its parameter's dtype.

        Raises:
            ValueError: for the state of another optimizer, or of parameters of other shapes.
        """
        refuse_foreign(self, state_dict)
        # For the groups and the order of parameters; the state follows below, as it was saved
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(ids, order, strict=True):
            if i in state_dict["state"]:
                entries = placed(state_dict["state"][i], p.device)
                kinds = {key: self.kinds.get(key) for key in entries}
                self.state[p] = {key: restored(kinds[key], entries[key]) for key in entries}
        self.steps = state_dict["steps"]
        device = order[0].device
        self._precision = Precision.named(state_dict["precision"], device)
        self.memory = restored(type(self.memory), placed(state_dict["memory"], device))
        self.unseen = restored(Unseen, placed(state_dict["unseen"], device))

    def forget(self) -> None:
        """Everything but the number of steps: what was learnt does not hold any longer."""
        self.state.clear()
        self.unseen = Unseen()
        self.memory = None if self.memory is None else type(self.memory)()

    def snapshot(self) -> Snapshot:
        """The state as it is."""
        # Shallow: entries are replaced, never changed in place
        state = {key: dict(value) for key, value in self.state.items()}
        groups = [dict(group) for group in self.param_groups]
        return Snapshot(state, groups, self.steps, self.memory, self.unseen)

    def rollback(self, before: Snapshot) -> None:
        """The state as it was."""
        self.state.clear()
        self.state.update(before.state)
        for group, old in zip(self.param_groups, before.groups, strict=True):
            group.clear()  # settings that were added
            group.update(old)
        self.steps, self.memory, self.unseen = before.steps, before.memory, before.unseen
