"""Checkpoints: a run stored in one file, from which it continues bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from kfac_pinn import settings
from kfac_pinn.notices import outside
from kfac_pinn.pinn.training import identity, storage
from kfac_pinn.pinn.training.run import Callback, Run
from kfac_pinn.settings import FLAG, instance, is_count

__all__ = ["Checkpoint"]

SHOWN = 5  # differences in a message


class Checkpoint(Callback):
    """Stores the run in a file every so many steps and at its end, after all other callbacks.

    The file is replaced at once, so that it is whole whenever the run is interrupted. A state
    whose parameters or loss are not finite is not stored: the last good one stays. Of several
    processes the first one reads and writes it, for any number of them.

    Args:
        path: the file; `torch.load(path, weights_only=True)` reads it.
        every: steps between two writings.
        resume: continue from the file where there is one: bit for bit the uninterrupted run.

    Raises:
        ValueError: at the start, if the file belongs to another problem, model, optimizer or
            dtype (as `identity.facts_of` describes them).
        TypeError, ValueError: for a setting of another kind, or `every` less than a step.
        RuntimeError: at the start, if the file is damaged.
        OSError: at the start, if the file cannot be written.
    """

    last = True
    ends = False

    def __init__(self, path: str | Path, every: int = 1000, resume: bool = True) -> None:
        instance((str, Path), "a path")("Checkpoint: path", path)
        if not is_count(every):
            raise ValueError(f"Checkpoint: every must be a number of steps, found {every!r}")
        self.path, self.every, self.resume = Path(path), every, resume
        settings.check(self, resume=FLAG)
        self.facts: dict[str, str] = {}

    def on_start(self, run: Run) -> None:
        stored = run.processes.first(lambda: self._stored(run))
        if stored is not None:
            run.load_state_dict(stored)

    def on_step(self, run: Run) -> None:
        if run.step % self.every == 0:
            self.save(run)

    def on_end(self, run: Run) -> None:
        self.save(run)

    def save(self, run: Run) -> None:
        """Replace the file, unless the run has come to numbers that are not finite."""
        if not run.finite():
            warnings.warn(
                f"parameters or loss are not finite at step {run.step}: they are not stored, "
                f"{self.path} is left as it was",
                stacklevel=outside(),
            )
            return
        now = identity.facts_of(run.problem, run.model, run.optimizer)
        facts = {"start": self.facts, "end": now}
        if run.processes.rank == 0:
            storage.save({**run.state_dict(), "facts": facts}, self.path)

    def _stored(self, run: Run) -> dict[str, Any] | None:
        """The run to go on with, if there is one; whose the file will be is noted."""
        storage.writable(self.path)
        self.facts = identity.facts_of(run.problem, run.model, run.optimizer)
        if not (self.resume and self.path.exists()):
            return None
        stored = storage.load(self.path)
        self._belongs(stored)
        self.facts = stored["facts"]["start"]
        return stored

    def _belongs(self, stored: Any) -> None:
        """Refuse the checkpoint of another run."""
        if not (isinstance(stored, dict) and "facts" in stored):
            raise RuntimeError(f"{self.path} holds no run: give the checkpoint another path")
        now, facts = self.facts, stored["facts"]
        if found := identity.differences(facts["start"], facts["end"], now):
            more = [f"and {len(found) - SHOWN} more"] * (len(found) > SHOWN)
            raise ValueError(
                f"{self.path} belongs to another run:\n  "
                + "\n  ".join([*found[:SHOWN], *more])
                + "\nGive it another path, or start from scratch: Checkpoint(path, resume=False)"
            )
